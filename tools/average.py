"""Average the weights of models that were trained from one base: a checkpoint like them comes out.

    python -m tools.average MODEL MODEL [MODEL ...] --output DST

reads    two checkpoint directories or more, with the same tensors
writes   a checkpoint directory, whole or not at all: all that the last MODEL has
         beside its weights, and as weights the mean

Models that were trained from one base, on other rows or in another order, each
make errors of their own. Their mean makes fewer, and answers as fast as one
("model soups", arXiv 2203.05482). This holds for models of one base alone: the
mean of two that began apart is no model at all.

Means are computed in float32, then rounded to the type of the weights.
"""

import argparse
import contextlib
import shutil
from pathlib import Path

import safetensors
import safetensors.torch
import torch

import common
import vlm
from tools.checkpoint import whole_directory
from vlm.files import INDEX, WEIGHTS, carry_over, read_headers


def average(models: list[Path], dst: Path):
    """Write the mean of some checkpoints.

    Raises:
        InputError: if one of them is an adapter or no checkpoint, if their tensors differ in name,
            shape or type, or if dst exists
    """
    for model in models:
        check_whole(model)
    headers = [read_headers(model) for model in models]
    files = [locate(header) for header in headers]  # {tensor's name: its file}, of each model
    check_alike(models, headers)

    last = models[-1]
    with whole_directory(dst) as directory:
        carry_over(last, directory)
        shutil.copyfile(last / "config.json", directory / "config.json")
        if last / WEIGHTS not in headers[-1]:
            shutil.copyfile(last / INDEX, directory / INDEX)
        shards = common.progress(headers[-1], unit="shard", disable=len(headers[-1]) < 2)
        for file in shards:
            target = directory / file.relative_to(last)
            target.parent.mkdir(parents=True, exist_ok=True)
            mean = average_tensors(headers[-1][file], files)
            safetensors.torch.save_file(mean, target, {"format": "pt"})
    print(f"{dst}: the mean of {len(models)} models' weights")


def check_whole(model: Path):
    """Raise InputError for an adapter: the mean of factors is not the mean of their products."""
    if (model / "adapter_config.json").exists():
        raise common.InputError(
            f"{model}: an adapter; python -m tools.merge makes a whole model of it, which can be "
            "averaged"
        )
    vlm.check_model(model)


def locate(header: dict) -> dict[str, Path]:
    """Find each tensor's file -> {tensor's name: file}; header: as of vlm.files.read_headers."""
    files = {}
    for file, entries in header.items():
        for name in entries:
            files[name] = file
    return files


def check_alike(models: list[Path], headers: list[dict]):
    """Raise InputError for models whose tensors differ in name, shape or type."""
    first, *others = [merge_entries(header) for header in headers]
    for model, entries in zip(models[1:], others):
        for name in sorted(first.keys() | entries.keys()):
            if first.get(name) != entries.get(name):
                raise common.InputError(
                    f"{model}: its {name} is {describe(entries.get(name))}, that of {models[0]} is "
                    f"{describe(first.get(name))}; only models of one base can be averaged"
                )


def merge_entries(header: dict) -> dict:
    """Put the entries of all files of a checkpoint together -> {tensor's name: Entry}."""
    merged = {}
    for entries in header.values():
        merged |= entries
    return merged


def describe(entry) -> str:
    """Describe a tensor in words: its type and shape, or that it is missing."""
    if entry is None:
        return "missing"
    return f"{str(entry.dtype).removeprefix('torch.')} {tuple(entry.shape)}"


def average_tensors(names, files: list[dict[str, Path]]) -> dict[str, torch.Tensor]:
    """Average some tensors over all models -> {name: mean, in the type of the tensors}.

    files: of each model {tensor's name: its file}
    """
    with contextlib.ExitStack() as stack:
        opened = {}
        for path in {file for of_model in files for file in of_model.values()}:
            opened[path] = stack.enter_context(safetensors.safe_open(path, framework="pt"))
        means = {}
        for name in names:
            tensors = [opened[of_model[name]].get_tensor(name) for of_model in files]
            total = sum(tensor.float() for tensor in tensors)
            means[name] = (total / len(tensors)).to(tensors[0].dtype)
    return means


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("models", metavar="MODEL", type=Path, nargs="+", help="directories, two or more")
    add("--output", metavar="DST", type=Path, required=True, help="must not exist yet")
    args = parser.parse_args()
    if len(args.models) < 2:
        parser.error(f"a mean needs two models or more, and {args.models[0]} is alone")
    return args


def main():
    """Average the models that the command line names."""
    args = parse_args()
    average(args.models, args.output)


if __name__ == "__main__":
    common.run(main)
