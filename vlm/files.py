"""The files of a checkpoint: which hold its weights, what their headers say, what else is there.

A directory that transformers opens is opened here, by the same rule: model.safetensors if it is
there, else the files that model.safetensors.index.json names. Other *.safetensors files beside
them, such as an older save's, are not read.
"""

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

import common

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Buffers that older files have, and that a model makes for itself
BUFFERS = ("rotary_emb.inv_freq", "position_ids")
PICKLED = (".bin", ".pt", ".pth")

# Of a base's files, those that a model made from it has its own of, or has no use for: weights in
# any format, what describes them, and what dpo.py writes
NOT_CARRIED = (*PICKLED, ".safetensors", ".gguf", ".onnx", ".h5", ".msgpack", ".jsonl")
NOT_CARRIED_NAMES = ("config.json", "README.md")
TEMPLATES = "additional_chat_templates"  # a directory, of named ones


class Entry(NamedTuple):
    """What a header says of one tensor."""

    dtype: torch.dtype
    shape: torch.Size


def find_weights(directory: Path) -> list[Path]:
    """Find the files that hold a checkpoint's weights, by transformers' own rule.

    Raises:
        InputError: if there are none, or if one that the index names is missing or elsewhere
    """
    if (directory / WEIGHTS).exists():
        return [directory / WEIGHTS]
    index = directory / INDEX
    if not index.exists():
        refuse_pickled_weights(directory)
        raise common.InputError(
            f"{directory}: there is neither {WEIGHTS} nor {INDEX}, which names the files of "
            "weights; is the download complete?"
        )
    files = []
    for name in sorted(set(read_index(index).values())):
        file = directory / name
        if not file.exists():
            raise common.InputError(f"{file} is missing; {INDEX} lists it. Download it again")
        files.append(file)
    return files


def read_index(index: Path) -> dict[str, str]:
    """Read an index -> {name of a tensor: name of its file}.

    Raises:
        InputError: if it is no such table, or if it names a file outside of its directory
    """
    [file_names] = common.read_keys(index, "weight_map")
    if not isinstance(file_names, dict) or not file_names:
        raise common.InputError(f"{index}: weight_map is not a table of tensors and their files")
    for tensor, name in file_names.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise common.InputError(
                f"{index}: weight_map has {name!r} for {tensor}, which is not a *.safetensors file"
            )
        # By the names alone: the files of a hub's cache are links to elsewhere
        if Path(name).is_absolute() or Path(os.path.normpath(name)).parts[0] == "..":
            raise common.InputError(
                f"{index}: weight_map has {name!r} for {tensor}, which leads out of the directory"
            )
    return file_names


def refuse_pickled_weights(directory: Path):
    """Raise InputError if a directory contains weights in pickle's format."""
    for file in sorted(directory.glob("*")):
        if file.suffix in PICKLED:
            raise common.InputError(
                f"{file}: pickled weights can run any code and are not read; "
                "use a checkpoint with *.safetensors files"
            )


def read_headers(directory: Path) -> dict[Path, dict[str, Entry]]:
    """Read the headers of a checkpoint's files of weights -> {file: {tensor's name: Entry}}.

    Raises:
        InputError: if a file is missing or damaged, if it lacks a tensor that the index lists for
            it, or if two files have the same tensor
    """
    headers = {file: read_header(file) for file in find_weights(directory)}
    if directory / WEIGHTS not in headers:
        for tensor, name in read_index(directory / INDEX).items():
            if tensor not in headers[directory / name]:
                raise common.InputError(
                    f"{directory / name}: {tensor} is missing; {INDEX} lists it"
                )

    files = {}  # of each tensor
    for file, header in headers.items():
        for tensor in header:
            if tensor in files:
                raise common.InputError(
                    f"{file}: {tensor} is a duplicate, {files[tensor].name} has it too; "
                    "which of them is right cannot be told"
                )
            files[tensor] = file
    return headers


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
        header = {name: entry for name, entry in header.items() if not name.endswith(BUFFERS)}
        kinds = {name: entry["dtype"] for name, entry in header.items()}
        shapes = {name: torch.Size(entry["shape"]) for name, entry in header.items()}
        ends = {name: 8 + length + entry["data_offsets"][1] for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
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
                f"{file}: {name} has the type {kinds[name]}; "
                "weights are read in float32, bfloat16 and float16, not quantized"
            )
    return {name: Entry(DTYPES[kinds[name]], shapes[name]) for name in header}


def carry_over(base: Path, directory: Path):
    """Copy what a base has beside its weights and config.json: a model made from it needs it too.

    These are the tokenizer's files and chat templates, generation_config.json, the processors'
    configs, the licence. Other directories, hidden files and outputs' meta.json are left out.
    """
    for file in base.iterdir():
        own = file.suffix in NOT_CARRIED or file.name in NOT_CARRIED_NAMES
        own = own or file.name.endswith((".index.json", ".meta.json"))
        if file.is_file() and not own and not file.name.startswith("."):
            shutil.copyfile(file, directory / file.name)
    if (base / TEMPLATES).is_dir():
        shutil.copytree(base / TEMPLATES, directory / TEMPLATES, dirs_exist_ok=True)


def share(directory: Path):
    """Give the files of weights the mode that other new files have: safetensors writes 0600.

    So the umask decides whether others on a shared disk can read a model.
    """
    umask = os.umask(0)  # it can only be read by setting it
    os.umask(umask)
    for file in directory.rglob("*.safetensors"):
        file.chmod(0o666 & ~umask)
