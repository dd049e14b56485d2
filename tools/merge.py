"""Merge a LoRA adapter into its base's weights: a plain checkpoint comes out.

    python -m tools.merge ADAPTER DST

reads    an adapter in PEFT's format (adapter_config.json,
         adapter_model.safetensors), and the base that adapter_config.json
         names
writes   a checkpoint directory like the base's, whole or not at all: the same
         number of shards, the same types

W + alpha / r * B A is computed in float32, then rounded to the type of W. That
costs something: bfloat16 has 8 significant bits, so most of a delta of 1e-3 of
the weights' norm is lost. What this adapter loses is printed; if that is much,
use the adapter as it is, and keep it for the next round.
"""

import argparse
import shutil
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch

import common
import prompts
import vlm
from tools.checkpoint import native_tensors, whole_directory
from vlm import placement
from vlm.files import INDEX, WEIGHTS, carry_over, read_header, read_headers
from vlm.lora import PEFT_PREFIX, find_factors


class Factors(NamedTuple):
    """What LoRA adds to one weight W (out, in): the delta alpha / r * B A."""

    a: torch.Tensor  # (r, in)
    b: torch.Tensor  # (out, r)


class Lora(NamedTuple):
    """An adapter, read."""

    base: str  # directory or hub name
    scale: float  # alpha / r
    factors: dict[str, Factors]  # of each adapted weight, by its name


def merge(adapter: Path, dst: Path) -> float:
    """Merge an adapter directory and its base into a plain checkpoint.

    Returns:
        the share of the delta's norm that rounding lost

    Raises:
        InputError: if the adapter is not plain LoRA or does not fit its base; if dst exists
    """
    lora = read_adapter(adapter)
    base = vlm.find_checkpoint(lora.base, adapter)
    vlm.check_model(base)
    headers = read_headers(base)
    _, rename = native_tensors(placement.read_config(base))
    check_factors(adapter, lora.factors, headers, rename)

    squared_norms = torch.zeros(3, dtype=torch.double)  # of the weights, the deltas, what is lost
    with whole_directory(dst) as directory:
        carry_over(base, directory)
        shutil.copyfile(base / "config.json", directory / "config.json")
        if (adapter / prompts.OWN).exists():  # the prompt that its answers were trained behind
            shutil.copyfile(adapter / prompts.OWN, directory / prompts.OWN)
        if base / WEIGHTS not in headers:
            shutil.copyfile(base / INDEX, directory / INDEX)
        for file in common.progress(headers, unit="shard", disable=len(headers) < 2):
            merged = directory / file.relative_to(base)
            merged.parent.mkdir(parents=True, exist_ok=True)
            squared_norms += merge_shard(file, merged, lora, rename)

    weights, delta, lost = squared_norms.sqrt().tolist()
    lost_share = lost / (delta or 1)
    print(
        f"{dst}: {len(lora.factors)} weights merged, in {', '.join(type_names(headers))}; "
        f"the delta is {delta / weights:.1e} of their norm, "
        f"and rounding lost {lost_share:.0%} of it"
    )
    return lost_share


def read_adapter(directory: Path) -> Lora:
    """Read an adapter in PEFT's format.

    Raises:
        InputError: if it is not an adapter, damaged, or more than plain LoRA
    """
    path = directory / "adapter_config.json"
    if not path.exists():
        raise common.InputError(
            f"{directory}: not an adapter, which consists of {path.name} and "
            "adapter_model.safetensors"
        )
    weights = find_factors(directory)
    base, rank, alpha = vlm.read_adapter(directory)
    read_header(weights)  # InputError if it is damaged
    factors = read_factors(weights, rank)
    return Lora(base, alpha / rank, factors)


def read_factors(file: Path, rank: int) -> dict[str, Factors]:
    """Read the factors of an adapter_model.safetensors -> {name of a weight: Factors}."""
    pairs = {}  # name of a weight -> {"A": factor, "B": factor}
    for key, tensor in safetensors.torch.load_file(file).items():
        name, _, factor = key.removeprefix(PEFT_PREFIX).rpartition(".lora_")
        if factor not in ("A.weight", "B.weight"):
            raise common.InputError(
                f"{file}: {key} is not a factor of plain LoRA (lora_A.weight, lora_B.weight)"
            )
        pairs.setdefault(f"{name}.weight", {})[factor[0]] = tensor

    factors = {}
    for name, pair in pairs.items():
        is_complete = "A" in pair and "B" in pair
        if not is_complete or len(pair["A"]) != rank or pair["B"].shape[1] != rank:
            raise common.InputError(
                f"{file}: one factor of {name} is missing, or its rank is not r = {rank}"
            )
        factors[name] = Factors(pair["A"], pair["B"])
    return factors


def check_factors(adapter: Path, factors: dict[str, Factors], headers: dict, rename):
    """Raise InputError if the base has no weight that fits a pair of factors."""
    shapes = {}  # of the base's weights
    for header in headers.values():
        for key, entry in header.items():
            shapes[rename(key)] = tuple(entry.shape)
    for name, (a, b) in factors.items():
        shape = (len(b), a.shape[1])  # (out, in)
        if name not in shapes:
            raise common.InputError(f"{adapter}: {name} is not a weight of the base")
        if shapes[name] != shape:
            raise common.InputError(f"{adapter}: its {name} is {shape}, the base's {shapes[name]}")


def merge_shard(src: Path, dst: Path, lora: Lora, rename):
    """Write a file of the base with its adapted weights merged.

    Returns:
        (3,) squared norms as of merge_weight, summed over the file's adapted weights
    """
    squared_norms = torch.zeros(3, dtype=torch.double)
    with safetensors.safe_open(src, framework="pt") as tensors:
        shard = {key: tensors.get_tensor(key) for key in tensors.keys()}  # mapped, not read
        for key, weight in shard.items():
            name = rename(key)
            if name in lora.factors:
                shard[key], squared = merge_weight(weight, lora.factors[name], lora.scale)
                squared_norms += squared
        safetensors.torch.save_file(shard, dst, {"format": "pt"})
    return squared_norms


def merge_weight(weight, factors: Factors, scale: float):
    """Compute W + scale * B A in float32, rounded to W's type.

    Returns:
        merged: (out, in), like W
        squared_norms: (3,), of W, of the delta, and of what rounding lost
    """
    delta = scale * (factors.b.float() @ factors.a.float())  # (out, in)
    exact = weight.float() + delta
    merged = exact.to(weight.dtype)
    lost = merged.float() - exact
    squared_norms = [part.double().square().sum() for part in (weight.float(), delta, lost)]
    return merged, torch.stack(squared_norms)


def type_names(headers: dict) -> list[str]:
    """List the types of a checkpoint's tensors, such as bfloat16, in alphabetical order."""
    names = set()
    for header in headers.values():
        for entry in header.values():
            names.add(str(entry.dtype).removeprefix("torch."))
    return sorted(names)


def main():
    """Merge the adapter that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument(
        "adapter", metavar="ADAPTER", type=Path, help="adapter directory, as PEFT writes it"
    )
    parser.add_argument(
        "dst", metavar="DST", type=Path, help="directory to write, which must not exist yet"
    )
    args = parser.parse_args()
    merge(args.adapter, args.dst)


if __name__ == "__main__":
    common.run(main)
