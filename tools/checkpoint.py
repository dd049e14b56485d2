"""What tools.convert and tools.merge share.

The tensors of transformers' own class; a directory that is written whole or not at all. (Which
files hold weights, and what their headers say: vlm/files.py.)
"""

import contextlib
import tempfile
from pathlib import Path

import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import rename_source_key

import common
from vlm.files import share


def native_tensors(config):
    """List the tensors of transformers' own class.

    Returns:
        shapes: {name of a tensor in the model: its shape}
        rename: a function from a tensor's name in a file to its name in the model
    """
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    renamings = get_model_conversion_mapping(model)

    def rename(key: str) -> str:
        name, _ = rename_source_key(key, renamings, [])
        return name

    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return shapes, rename


@contextlib.contextmanager
def whole_directory(dst: Path):
    """Write a directory whole or not at all.

    Yields:
        a temporary directory to write into. It becomes dst at the end, and is deleted after an
        error

    Raises:
        InputError: if dst exists already
    """
    if dst.exists():
        raise common.InputError(f"{dst} exists already; name another directory, or remove it")
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dst.name}.", dir=dst.parent) as temporary:
        unfinished = Path(temporary) / dst.name
        unfinished.mkdir()
        yield unfinished
        share(unfinished)
        unfinished.rename(dst)
