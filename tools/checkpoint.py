"""What tools.convert and tools.merge share.

Headers of checkpoint files, which are checked before any weight is read; the tensors of
transformers' own class; a directory that is written whole or not at all.
"""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import rename_source_key

import common

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Entry(NamedTuple):
    """What a header says of one tensor."""

    dtype: torch.dtype
    shape: torch.Size


def read_headers(directory: Path) -> dict[Path, dict[str, Entry]]:
    """Read the headers of a checkpoint's *.safetensors files -> {file: {tensor's name: Entry}}.

    Raises:
        InputError: if there is no such file, or if a file or a tensor that the index lists is
            missing
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        refuse_pickled_weights(directory)

    index = directory / "model.safetensors.index.json"
    file_names = {}  # of each tensor in the index
    if index.exists():
        [file_names] = common.read_keys(index, "weight_map")
    missing = set(file_names.values()) - {file.name for file in files}
    if missing:
        raise common.InputError(f"{directory / min(missing)} is missing; {index.name} lists it")
    if not files:
        raise common.InputError(f"{directory}: no *.safetensors file")

    headers = {file: read_header(file) for file in files}
    for tensor, file_name in file_names.items():
        file = directory / file_name
        if tensor not in headers[file]:
            raise common.InputError(f"{file}: {tensor} is missing; {index.name} lists it")
    return headers


def refuse_pickled_weights(directory: Path):
    """Raise InputError if a directory contains weights in pickle's format."""
    for file in sorted(directory.glob("*")):
        if file.suffix in (".bin", ".pt", ".pth"):
            raise common.InputError(
                f"{file}: pickled weights can run any code and are not read; "
                "use a checkpoint with *.safetensors files"
            )


def read_header(file: Path) -> dict[str, Entry]:
    """Read what a safetensors file says of its tensors -> {name: Entry}.

    The file begins with the header's length N (8 bytes, little endian) and the header, N bytes of
    JSON: {name: {"dtype": ..., "shape": ..., "data_offsets": [begin, end]}}. Offsets count from the
    header's end.

    Raises:
        InputError: if the file is damaged, a tensor is cut off, or a tensor is quantized
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length) if length < size else b""

    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        kinds = {name: entry["dtype"] for name, entry in header.items()}
        shapes = {name: torch.Size(entry["shape"]) for name, entry in header.items()}
        ends = {name: 8 + length + entry["data_offsets"][1] for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise common.InputError(
            f"{file}: not a complete safetensors file ({size} bytes); download it again"
        ) from error

    for name in header:
        if ends[name] > size:
            raise common.InputError(
                f"{file}: {name} is cut off (the file has {size} bytes); download it again"
            )
        if kinds[name] not in DTYPES:
            raise common.InputError(
                f"{file}: {name} is quantized ({kinds[name]}); "
                "only float32, float16 and bfloat16 weights are read"
            )
    return {name: Entry(DTYPES[kinds[name]], shapes[name]) for name in header}


def native_tensors(config):
    """List the tensors of transformers' own class.

    Returns:
        shapes: {name of a tensor in the model: its shape}
        rename: a function from a tensor's name in a file to its name in the model
    """
    with torch.device("meta"):
        model = transformers.InternVLForConditionalGeneration(config)
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
        unfinished.rename(dst)
