"""What tools.convert and tools.merge share: checkpoint files, looked at before they are read, and a directory that is written whole or not at all."""

import contextlib
import json
import tempfile
from pathlib import Path

import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import rename_source_key

import common

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_header(file):
    """What a safetensors file says of itself -> {name of a tensor: (dtype, shape)}. InputError names a tensor that is cut off, or quantized."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(length) if length < size else b"")
            header = {
                name: (
                    entry["dtype"],
                    torch.Size(entry["shape"]),
                    8 + length + entry["data_offsets"][1],
                )
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise common.InputError(
                f"{file}: no whole safetensors file ({size} bytes); download it again"
            ) from error
    for name, (dtype, _, end) in header.items():
        if end > size:
            raise common.InputError(
                f"{file}: {name} is cut off (the file has {size} bytes); download it again"
            )
        if dtype not in DTYPES:
            raise common.InputError(
                f"{file}: {name} is quantized ({dtype}); only float32, float16 and bfloat16 weights are read"
            )
    return {name: (DTYPES[dtype], shape) for name, (dtype, shape, _) in header.items()}


def read_headers(directory):
    """{file: its header} of a checkpoint's *.safetensors files. InputError where one, or a tensor that the index promises, is missing."""
    index, files = (
        directory / "model.safetensors.index.json",
        sorted(directory.glob("*.safetensors")),
    )
    if not files and (
        pickled := [
            file for file in sorted(directory.glob("*")) if file.suffix in (".bin", ".pt", ".pth")
        ]
    ):
        raise common.InputError(
            f"{pickled[0]}: pickled weights can run any code and are not read; take a checkpoint with *.safetensors files"
        )
    promised = common.read_json(index, "weight_map")[0] if index.exists() else {}
    if missing := sorted({*promised.values()} - {file.name for file in files}):
        raise common.InputError(f"{directory / missing[0]} is missing; {index.name} promises it")
    if not files:
        raise common.InputError(f"{directory}: no *.safetensors file")
    headers = {file: read_header(file) for file in files}
    for tensor, name in promised.items():
        if tensor not in headers[directory / name]:
            raise common.InputError(
                f"{directory / name}: {tensor} is missing; {index.name} promises it"
            )
    return headers


def native_tensors(config):
    """Of transformers' class: ({name of a tensor: shape}, a function: its name in a file -> its name in the model)."""
    with torch.device("meta"):
        model = transformers.InternVLForConditionalGeneration(config)
    renamings = get_model_conversion_mapping(model)
    return {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }, lambda key: rename_source_key(key, renamings, [])[0]


@contextlib.contextmanager
def whole_directory(dst):
    """A directory to write into, which becomes dst when all is written; after an error there is none. InputError where dst is there already."""
    if dst.exists():
        raise common.InputError(f"{dst} is there already; name another directory, or remove it")
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dst.name}.", dir=dst.parent) as temporary:
        (Path(temporary) / dst.name).mkdir()
        yield Path(temporary) / dst.name
        (Path(temporary) / dst.name).rename(dst)
