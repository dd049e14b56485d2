"""LoRA (arXiv 2106.09685): low-rank factors beside frozen weights, in directories as PEFT has them.

    y = W x + alpha / rank * B A x

An adapter directory has adapter_config.json, which names the base model, and
adapter_model.safetensors with the factors A (rank, in) and B (out, rank) of each linear layer.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch

import common
from vlm import processes

PEFT_PREFIX = "base_model.model."  # what PEFT puts before the name of every tensor

# What adapter_config.json may say: keys that may have any value, and keys that may have only
# these. Values that are empty, zero, false or null are accepted for every key.
LORA_KEYS = {
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "task_type",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "qalora_group_size",
    "megatron_core",
}
LORA_VALUES = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": ("True", "gaussian"),
}


class Adapter(NamedTuple):
    """What an adapter directory says of itself."""

    base: str  # directory or hub name of the model that it belongs to
    rank: int  # 0: the model is a checkpoint without an adapter
    alpha: float


def read_adapter(path) -> Adapter:
    """Read adapter_config.json of a model; for a plain checkpoint -> Adapter(path, 0, 0).

    Raises:
        InputError: if the adapter is more than plain LoRA
    """
    file = Path(path) / "adapter_config.json"
    if not file.exists():
        return Adapter(path, 0, 0)
    base, rank, alpha = common.read_keys(file, "base_model_name_or_path", "r", "lora_alpha")
    if not isinstance(base, str) or not base:
        raise common.InputError(
            f"{file}: base_model_name_or_path is {base!r}; write the directory of the base there"
        )
    if not is_number(rank) or rank != int(rank) or rank < 1:
        raise common.InputError(f"{file}: r is {rank!r}; a whole number from 1 on is expected")
    if not is_number(alpha) or alpha <= 0:
        raise common.InputError(f"{file}: lora_alpha is {alpha!r}; a number above 0 is expected")
    for key, value in common.read_json(file).items():
        is_plain = key in LORA_KEYS or str(value) in LORA_VALUES.get(key, ())
        if value and not is_plain:
            raise common.InputError(
                f"{file}: {key} is more than plain LoRA, and only plain LoRA can be read"
            )
    return Adapter(base, int(rank), alpha)


def is_number(value) -> bool:
    """Say whether a value of a JSON file is a number of any use; true, NaN and 1e400 are none."""
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and abs(value) < 2**31


def find_factors(directory) -> Path:
    """Find the file of an adapter's factors; InputError says what helps if it is not there."""
    file = Path(directory) / "adapter_model.safetensors"
    if file.exists():
        return file
    if file.with_suffix(".bin").exists():
        raise common.InputError(
            f"{file.with_suffix('.bin')}: pickled weights can run any code and are not read; "
            "PEFT writes adapter_model.safetensors with save_pretrained(..., "
            "safe_serialization=True)"
        )
    raise common.InputError(f"{file} is missing; is the adapter's download complete?")


def add_lora(layers, rank: int, alpha: int):
    """Add factors to all linear layers: y = W x + alpha / rank * B A x.

    A (rank, in) and B (out, rank) are float32, whatever W is. B starts at 0, so that y = W x.
    """

    def add_delta(linear, inputs, output):
        a = linear.lora_A.weight.T.to(output.dtype)  # (in, rank)
        b = linear.lora_B.weight.T.to(output.dtype)  # (rank, out)
        return output + alpha / rank * (inputs[0] @ a) @ b

    for linear in [module for module in layers.modules() if isinstance(module, torch.nn.Linear)]:
        factor = functools.partial(
            torch.nn.Linear, bias=False, device=linear.weight.device, dtype=torch.float32
        )
        linear.lora_A = factor(linear.in_features, rank)
        linear.lora_B = factor(rank, linear.out_features)
        torch.nn.init.zeros_(linear.lora_B.weight)
        linear.register_forward_hook(add_delta)


def save_adapter(model, directory: Path, adapter: Adapter):
    """Write a model's factors as an adapter directory that PEFT reads too."""
    factors = {}
    for name, weight in model.state_dict().items():
        if ".lora_" in name:
            factors[f"{PEFT_PREFIX}{name}"] = processes.whole(weight)
    if not processes.is_first():
        return
    weights = directory / "adapter_model.safetensors"
    safetensors.torch.save_file(factors, weights, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "target_modules": r".*language_model\.layers.*_proj",
        "base_model_name_or_path": adapter.base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
    }
    common.write_json(directory / "adapter_config.json", config)
