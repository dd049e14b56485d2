"""A checkpoint becomes a model, its layers spread over one or more devices: explicit placement.

    first device    vision tower, projector, embeddings, the first decoder layers
    ...             decoder layers, contiguous
    last device     the last decoder layers, final norm, head

The model is built on torch's meta device, where tensors have shapes but no data. Then every tensor
is read from its file straight to its own device, and hooks move activations between devices.
"""

import functools
import re
from pathlib import Path

import huggingface_hub
import safetensors
import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import rename_source_key

import common
from vlm import attention, families
from vlm.families import END_OF_TURN
from vlm.lora import PEFT_PREFIX, add_lora, read_adapter

HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer*"]  # the files that are needed


def load(args):
    """Load the model and the tokenizer that the common options --model, --devices, --dtype name."""
    devices = args.devices.split(",") if args.devices else None
    dtype = getattr(torch, args.dtype) if args.dtype else None
    tokenizer = load_tokenizer(args.model)  # first: it takes a second, and may be refused
    return load_model(args.model, devices, dtype), tokenizer


def load_tokenizer(path):
    """Load a tokenizer.

    Raises:
        InputError: if it cannot be read, END_OF_TURN is no token, or its chat template is unusable
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    except Exception as error:  # of many kinds; all mean that a file is missing or damaged
        reason = " ".join(str(error).split())
        raise common.InputError(
            f"{path}: its tokenizer cannot be read, tokenizer.json or tokenizer_config.json is "
            f"missing or damaged ({reason})"
        ) from error
    if END_OF_TURN not in families.control_tokens(tokenizer).values():
        raise common.InputError(f"{path}: its tokenizer needs {END_OF_TURN} as a special token")
    try:
        families.check_chat_template(tokenizer)
    except common.InputError as error:
        raise common.InputError(f"{path}: {error}") from error
    return tokenizer


def load_model(path, devices=None, dtype=None):
    """Load a model in eval mode, its layers spread over one or more devices.

    Args:
        path: directory of a checkpoint, directory of a LoRA adapter (which is not merged:
            tools/merge.py explains why), or hub name
        devices: such as ["cuda:0", "cuda:1"]; default: all visible GPUs, else the CPU
        dtype: default: float32 on a CPU, bfloat16 elsewhere

    Raises:
        InputError: for weights that are missing, truncated, unknown or quantized
    """
    if not devices:
        devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]
    devices = [str(device) for device in devices]
    check_devices(devices)
    if dtype is None:
        dtype = torch.float32 if devices[0].startswith("cpu") else torch.bfloat16

    base, rank, alpha = read_adapter(path)
    adapter = path if rank else None
    directory = find_checkpoint(base, adapter)
    files = sorted(directory.glob("*.safetensors"))
    files += sorted(Path(path).glob("adapter_model.safetensors"))

    attention.register()
    config = transformers.AutoConfig.from_pretrained(directory)
    kinds = {"": "sdpa", "text_config": attention.NAME}  # vision tower, language model
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation=kinds
        )
    language = model.model.language_model
    if rank:
        add_lora(language.layers, rank, alpha)

    place = plan_placement(config, devices)
    renamings = get_model_conversion_mapping(model)  # older files use older names
    for file in files:
        for device in dict.fromkeys(devices):
            read_weights(model, file, device, place, renamings, dtype)

    # These are in no file: a head tied to the embedding, and the buffers of rotary positions
    if model.lm_head.weight.is_meta and config.text_config.tie_word_embeddings:
        model.lm_head.weight = language.embed_tokens.weight
    language.rotary_emb = type(language.rotary_emb)(config.text_config).to(devices[0])

    check_complete(model, path, n_files=len(files), is_adapter=rank > 0)
    if len(set(devices)) > 1:
        move_activations(model)
        print_placement(model, place)
    return model.eval()


def check_devices(devices: list[str]):
    """Raise InputError for a device that torch does not know, or a GPU that is not visible."""
    n_gpus = torch.cuda.device_count()
    visible = "no GPU is visible"
    if n_gpus:
        visible = f"cuda:0 to cuda:{n_gpus - 1} are visible"
    for name in devices:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise common.InputError(
                f"--devices: {name!r} is no device; expected cpu, or cuda:0, cuda:1, ..."
            ) from error
        if device.type == "cuda" and (device.index or 0) >= n_gpus:
            raise common.InputError(f"--devices: {name} is not there; {visible} to PyTorch")


def check_model(path, texts: list = ()):
    """Raise InputError if no model is at a path, or one of another class or with damaged files.

    Stages call this before they write anything, so that a typo in --model leaves nothing behind.
    The tokenizer is loaded, weights are not read.

    texts: that the model will be given, [(where it is from, text), ...]; see families.check_texts
    """
    base, rank, _ = read_adapter(path)
    adapter = path if rank else None
    find_checkpoint(base, adapter)
    families.check_texts(load_tokenizer(path), texts)


def find_checkpoint(base, adapter=None) -> Path:
    """Find a checkpoint, given its directory or hub name, and check its class -> its directory.

    adapter: path of the adapter that names this base, for the error message
    """
    directory = Path(base)
    if not directory.is_dir():
        try:
            directory = Path(
                huggingface_hub.snapshot_download(str(base), allow_patterns=HUB_PATTERNS)
            )
        except Exception as error:  # of many kinds; all mean that there is nothing to load
            source = f"{base}, which {adapter} names as its base" if adapter else base
            raise common.InputError(
                f"{source}: no such directory, and not found on the hub ({type(error).__name__})"
            ) from error

    [kind] = common.read_keys(directory / "config.json", "model_type")
    if kind == "internvl_chat":
        raise common.InputError(
            f"{base}: unknown class {kind}, not internvl; "
            f"convert it: python -m tools.convert {base} DST"
        )
    if kind != "internvl":
        raise common.InputError(f"{base}: unknown class {kind}, not internvl")
    return directory


def read_weights(model, file: Path, device: str, place, renamings, dtype):
    """Read those tensors of a *.safetensors file into the model that belong on one device."""
    try:
        with safetensors.safe_open(file, framework="pt", device=device) as tensors:
            names = {}  # in the file -> in the model
            for key in tensors.keys():
                kind = tensors.get_slice(key).get_dtype()
                if kind not in ("F32", "BF16", "F16"):
                    raise RuntimeError(
                        f"{key} has the type {kind}; "
                        "weights are read in float32, bfloat16 and float16, not quantized"
                    )
                names[key], _ = rename_source_key(key.removeprefix(PEFT_PREFIX), renamings, [])

            chunk = {}
            for key, name in names.items():
                if place(name) == device:
                    kept_in = torch.float32 if ".lora_" in name else dtype
                    chunk[name] = tensors.get_tensor(key).to(kept_in)

        if unknown := model.load_state_dict(chunk, strict=False, assign=True).unexpected_keys:
            raise RuntimeError(f"{model.config.model_type} has no tensor {unknown[0]!r}")
    except torch.OutOfMemoryError:
        raise  # not the file's fault: common.run says what helps
    except (RuntimeError, AssertionError, safetensors.SafetensorError) as error:
        # A truncated file, a tensor of another shape, a device that does not exist
        raise common.InputError(f"{file}: {error} (device {device})") from error


def check_complete(model, path, n_files: int, is_adapter: bool):
    """Raise InputError if a tensor of the model was in none of the files."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    missing = [name for name, tensor in tensors if tensor.is_meta]
    if not missing:
        return
    hint = f"only *.safetensors files are read, and {n_files} of them were found"
    if is_adapter:
        hint = "tools.merge merges such adapters"
    raise common.InputError(f"{path}: there are no weights for {missing[0]}; {hint}")


# ------------------------------------------------------------------------------
# Which device holds what


def split_layers(n_layers: int, n_devices: int, first_weight: float = 1.0) -> list[int]:
    """Assign each decoder layer a device number: contiguous, and as even as possible.

    first_weight: share of the first device, relative to the others'; less than 1 leaves room for
    the vision tower

    >>> split_layers(5, 2)
    [0, 0, 0, 1, 1]
    >>> split_layers(6, 2, first_weight=0.5)
    [0, 0, 1, 1, 1, 1]
    """
    shares = first_weight + n_devices - 1
    starts = [layer * shares / n_layers for layer in range(n_layers)]  # where each layer starts
    return [int(max(0, start + 1 - first_weight)) for start in starts]


def plan_placement(config, devices: list[str]):
    """Decide where every tensor goes -> a function from a tensor's name to its device."""
    numbers = split_layers(config.text_config.num_hidden_layers, len(devices))

    def place(name: str) -> str:
        if layer := re.match(r"model\.language_model\.layers\.(\d+)", name):
            return devices[numbers[int(layer[1])]]
        if name.startswith(("model.language_model.norm", "lm_head")):
            return devices[-1]
        return devices[0]

    return place


def print_placement(model, place):
    """Print what each device holds: the first weight, the last one, and the size of them all."""
    weights = {}
    for name, weight in model.named_parameters():
        weights.setdefault(place(name), []).append((name, weight.nbytes))
    for device, part in weights.items():
        first, _ = part[0]
        last, _ = part[-1]
        gib = sum(n_bytes for _, n_bytes in part) / 2**30
        print(f"{device}: {first} to {last}, {gib:.2f} GiB")


def move_activations(model):
    """Add hooks that bring the inputs of each layer, norm and head to the device they are on.

    Caches are not moved: the part that belongs to a layer is on the layer's device already.
    """
    # A copy makes two devices wait for each other. Mask and positions are the same tensors for all
    # layers, so each device gets one copy of them, which its layers share.
    copy_once = functools.lru_cache(64)(torch.Tensor.to)
    each_tensor = functools.partial(torch.utils._pytree.tree_map_only, torch.Tensor)

    def hook(module, args, kwargs):
        device = next(module.parameters()).device
        hidden = each_tensor(lambda tensor: tensor.to(device), args)
        shared = each_tensor(lambda tensor: copy_once(tensor, device), kwargs)
        return hidden, shared

    language = model.model.language_model
    for module in [*language.layers, language.norm, model.lm_head]:
        module.register_forward_pre_hook(hook, with_kwargs=True)
