"""Merges a LoRA adapter into its base's weights: a plain checkpoint comes out.

    python -m tools.merge ADAPTER DST

reads    an adapter in PEFT's format (adapter_config.json, adapter_model.safetensors), and the base that adapter_config.json names
writes   a checkpoint directory like the base's, whole or not at all: as many shards, of the same types

W + alpha / r * B A is computed in float32, then rounded to the type of W. That costs: bfloat16 has 8 significant bits, so of a delta of 1e-3 of
the weights' norm most is lost. What this adapter loses is printed; where it is much, use the adapter as it is, and keep it for the next round.
"""

import argparse
import shutil
from pathlib import Path

import huggingface_hub
import safetensors
import safetensors.torch
import torch
import transformers
from tqdm import tqdm

import common
from tools.checkpoint import native_tensors, read_header, read_headers, whole_directory


def read_adapter(directory):
    """An adapter directory -> (its base, alpha / r, {name of a weight: [A (r, in), B (out, r)]}). InputError for more than plain LoRA."""
    path, weights = directory / "adapter_config.json", directory / "adapter_model.safetensors"
    if not path.exists() or not weights.exists():
        raise common.InputError(
            f"{directory}: no adapter ({path.name} and {weights.name} make one)"
        )
    base, rank, alpha = common.read_adapter(directory)
    read_header(weights)  # InputError where it is cut off
    tensors, factors = safetensors.torch.load_file(weights), {}
    for key, tensor in tensors.items():
        name, _, factor = key.removeprefix("base_model.model.").rpartition(".lora_")
        if factor not in ("A.weight", "B.weight"):
            raise common.InputError(
                f"{weights}: {key} is no factor of plain LoRA (lora_A.weight, lora_B.weight)"
            )
        factors.setdefault(f"{name}.weight", [None, None])["AB".index(factor[0])] = tensor
    for name, (a, b) in factors.items():
        if a is None or b is None or len(a) != rank or b.shape[1] != rank:
            raise common.InputError(
                f"{weights}: of {name} one factor is missing, or its rank is not r = {rank}"
            )
    return base, alpha / rank, factors


def find_base(name):
    """A directory or hub name -> the directory. InputError where there is neither, or where it is in the original format."""
    directory = Path(name)
    if not directory.is_dir():
        try:
            directory = Path(
                huggingface_hub.snapshot_download(
                    name, allow_patterns=["*.safetensors", "*.json", "*.jinja", "tokenizer*"]
                )
            )
        except Exception as error:  # of many kinds; all mean that there is nothing to load
            raise common.InputError(
                f"the base {name} is neither a directory nor to be had from the hub ({type(error).__name__})"
            ) from error
    if (kind := common.read_json(directory / "config.json", "model_type")[0]) != "internvl":
        hint = " (tools.convert makes it one)" if kind == "internvl_chat" else ""
        raise common.InputError(f"{directory}: the base is of the class {kind}, not internvl{hint}")
    return directory


def merge_weight(weight, a, b, scale):
    """W + scale * B A, in float32, rounded to W's type -> (merged, squared norms of: W, the delta, what rounding lost of it)."""
    delta = scale * (b.float() @ a.float())
    exact = weight.float() + delta
    merged = exact.to(weight.dtype)
    return merged, torch.stack(
        [part.double().square().sum() for part in (weight.float(), delta, merged.float() - exact)]
    )


def merge(adapter, dst):
    """An adapter directory and its base -> a plain checkpoint in dst. Returns the share of the delta's norm that rounding lost."""
    base, scale, factors = read_adapter(adapter)
    base = find_base(base)
    headers, (_, rename) = (
        read_headers(base),
        native_tensors(transformers.InternVLConfig.from_pretrained(base)),
    )
    shapes = {
        rename(key): shape for header in headers.values() for key, (_, shape) in header.items()
    }
    for name, (a, b) in factors.items():
        if shapes.get(name) != (len(b), a.shape[1]):
            raise common.InputError(
                f"{adapter}: its {name} is {(len(b), a.shape[1])}, the base's {tuple(shapes.get(name, ())) or 'is not there'}"
            )
    norms = torch.zeros(3, dtype=torch.double)
    with whole_directory(dst) as part:
        for file in base.iterdir():
            if file.suffix in (".json", ".jinja", ".txt", ".model"):  # config, tokenizer, index
                shutil.copyfile(file, part / file.name)
        for file in tqdm(headers, unit="shard", disable=len(headers) < 2):
            with safetensors.safe_open(file, framework="pt") as tensors:
                shard = {key: tensors.get_tensor(key) for key in tensors.keys()}  # mapped, not read
                for key in [key for key in shard if rename(key) in factors]:
                    shard[key], squares = merge_weight(shard[key], *factors[rename(key)], scale)
                    norms += squares
                safetensors.torch.save_file(shard, part / file.name, {"format": "pt"})
    weights, delta, lost = norms.sqrt().tolist()
    types = sorted(
        {
            str(dtype).removeprefix("torch.")
            for header in headers.values()
            for dtype, _ in header.values()
        }
    )
    print(
        f"{dst}: {len(factors)} weights merged, in {', '.join(types)}; the delta is {delta / weights:.1e} of their norm, "
        f"and rounding lost {lost / (delta or 1):.0%} of it"
    )
    return lost / (delta or 1)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "adapter", metavar="ADAPTER", type=Path, help="adapter directory, as PEFT writes it"
    )
    parser.add_argument("dst", metavar="DST", type=Path, help="directory to write, not there yet")
    args = parser.parse_args()
    merge(args.adapter, args.dst)


if __name__ == "__main__":
    common.run(main)
