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
from vlm import attention, chat, families, files, limits
from vlm.chat import END_OF_TURN
from vlm.families import FAMILIES, choose_n_frames
from vlm.lora import PEFT_PREFIX, add_lora, find_factors, read_adapter

# The files that are needed, and those that a model made from this one takes over
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "tokenizer*", "LICENSE*"]
PREFILL_ROOM = 4 * 2**30  # bytes left free for what the prefill of a video holds, beside the cache
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def load(args):
    """Load the model and the tokenizer that the common options --model, --devices, --dtype name.

    Raises:
        InputError: also if --frames are more than the model has positions for
    """
    devices = args.devices.split(",") if args.devices else None
    if devices and "cuda" in args.devices and common.process().n > 1:
        raise common.InputError(
            f"--devices {args.devices}: under torchrun every process takes its share of the "
            "machine's GPUs; leave the option out"
        )
    dtype = getattr(torch, args.dtype) if args.dtype else None
    tokenizer, config = load_tokenizer_and_config(args)  # first: they may be refused
    n_frames = choose_n_frames(args.frames, config)
    answers = hasattr(args, "videos_per_batch")
    if answers and not devices and not getattr(args, "ask", None):
        dtype_there = dtype or torch.bfloat16
        needed = count_answering(args.model, config, n_frames, dtype_there, args.videos_per_batch)
        tell_faster_way(needed)
    model = load_model(args.model, devices, dtype, getattr(args, "frame_tokens", None))
    return model, tokenizer


def load_tokenizer_and_config(args):
    """Load a model's tokenizer and config; InputError for more --frames than it has positions."""
    tokenizer = load_tokenizer(args.model)
    frame_tokens = getattr(args, "frame_tokens", None)  # tools.bench, for one, has no such option
    config = read_config(find_base(args.model), frame_tokens)
    limits.check_frames(tokenizer, config, choose_n_frames(args.frames, config))
    return tokenizer, config


def list_own_gpus() -> list[str]:
    """List the GPUs that this process takes: of several processes on a machine each has a share."""
    process = common.process()
    n_gpus = torch.cuda.device_count()
    if 0 < n_gpus < process.n_local:
        raise common.InputError(
            f"{process.n_local} processes for {n_gpus} GPUs: at most --nproc-per-node {n_gpus}"
        )
    share = n_gpus // process.n_local
    first = process.local_rank * share
    return [f"cuda:{number}" for number in range(first, first + share)]


def tell_faster_way(needed: int):
    """Print a line if one process takes several GPUs, each of which has room for the whole model.

    Over several GPUs one answers while the others wait; with a process for each, all of them work.

    needed: bytes that answering needs, as count_answering gives them
    """
    n_gpus = torch.cuda.device_count()
    if n_gpus < 2 or common.process().n > 1:
        return
    # Not what is free: to ask for that takes some hundred MiB of each GPU
    smallest = min(torch.cuda.get_device_properties(n).total_memory for n in range(n_gpus))
    if needed + PREFILL_ROOM > smallest:
        return
    print(
        f"one process spreads the model over {n_gpus} GPUs, though it fits on one "
        f"({needed / 2**30:.1f} of {smallest / 2**30:.1f} GiB): faster is one process a GPU, by "
        f"torchrun --standalone --nproc-per-node {n_gpus} in place of python"
    )


def count_answering(path, config, n_frames: int, dtype, n_videos: int = 1) -> int:
    """Count the bytes of a model's weights and of its videos' caches, from config and headers."""
    n_bytes = 0
    for header in files.read_headers(find_base(path)).values():
        n_bytes += dtype.itemsize * sum(entry.shape.numel() for entry in header.values())
    if read_adapter(path).rank:
        factors = files.read_header(find_factors(path))
        n_bytes += 4 * sum(entry.shape.numel() for entry in factors.values())  # float32

    text = config.text_config
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    _, n_tokens = families.count_tokens(config, n_frames)
    n_numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * head_size * n_tokens
    return n_bytes + n_videos * dtype.itemsize * n_numbers


def load_tokenizer(path):
    """Load a tokenizer; that of its base for an adapter without one, as PEFT writes it.

    Raises:
        InputError: if it cannot be read, END_OF_TURN is no token, or its chat template is unusable
    """
    has_own = any((Path(path) / name).exists() for name in TOKENIZER_FILES)
    if read_adapter(path).rank and not has_own:
        path = find_base(path)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    except Exception as error:  # of many kinds; all mean that a file is missing or damaged
        reason = " ".join(str(error).split())
        raise common.InputError(
            f"{path}: its tokenizer cannot be read, tokenizer.json or tokenizer_config.json is "
            f"missing or damaged ({reason})"
        ) from error
    if END_OF_TURN not in chat.control_tokens(tokenizer).values():
        raise common.InputError(f"{path}: its tokenizer needs {END_OF_TURN} as a special token")
    try:
        chat.check_chat_template(tokenizer)
    except common.InputError as error:
        raise common.InputError(f"{path}: {error}") from error
    return tokenizer


def load_model(path, devices=None, dtype=None, frame_tokens=None):
    """Load a model in eval mode, all weights frozen, its layers spread over one or more devices.

    Args:
        path: directory of a checkpoint, directory of a LoRA adapter (which is not merged:
            tools/merge.py explains why), or hub name
        devices: such as ["cuda:0", "cuda:1"]; default: all visible GPUs, else the CPU
        dtype: default: float32 on a CPU, bfloat16 elsewhere

    Raises:
        InputError: for weights that are missing, truncated, unknown, quantized or not finite, and
            for a language model that cannot be used behind a shared video
    """
    if not devices:
        devices = list_own_gpus() or ["cpu"]
    devices = [str(device) for device in devices]
    check_devices(devices)
    if dtype is None:
        dtype = torch.float32 if devices[0].startswith("cpu") else torch.bfloat16

    model, names = plan_model(path, dtype, frame_tokens)
    config = model.config
    place = plan_placement(config, devices)
    for file, names_of_file in names.items():
        for device in dict.fromkeys(devices):
            read_weights(model, file, device, place, names_of_file, dtype)

    # These are in no file: a head tied to the embedding, and the buffers of rotary positions
    tie_head(model)
    make_buffers(model, devices[0])

    check_complete(model, path)
    if len(set(devices)) > 1:
        move_activations(model)
        print_placement(model, place)
    return model.eval().requires_grad_(False)  # what is trained of it, dpo.py says


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
        if device.type == "meta":
            raise common.InputError("--devices: meta has no memory; expected cpu, or cuda:0, ...")
        if device.type == "cuda" and (device.index or 0) >= n_gpus:
            raise common.InputError(f"--devices: {name} is not there; {visible} to PyTorch")


def check_model(path, texts: list = (), frame_tokens: list[int] | None = None):
    """Raise InputError if a model cannot be loaded, as far as configs and headers tell.

    Stages call this before they write anything, so that a typo in --model leaves nothing behind.
    The tokenizer is loaded, weights are not read.

    Args:
        texts: that the model will be given, [(where it is from, text), ...]; see chat.check_texts
        frame_tokens: what --frame-tokens says
    """
    config = read_config(find_base(path), frame_tokens)
    tokenizer = load_tokenizer(path)
    families.check_tokenizer(tokenizer, config, path)
    chat.check_texts(tokenizer, texts)
    plan_model(path, torch.float32)


def plan_model(path, dtype, frame_tokens=None):
    """Build a model on the meta device, without data, and find its tensors in the files.

    Args:
        path: directory of a checkpoint or of an adapter, or hub name

    Returns:
        model: with the factors of the adapter, if it is one
        names: {file: {name of a tensor in the file: its name in the model}}

    Raises:
        InputError: if the class cannot be used, or a tensor is missing, unknown, a duplicate,
            quantized, or of another shape
    """
    adapter = read_adapter(path)
    directory = find_base(path)
    config = read_config(directory, frame_tokens)
    kinds = {"": "sdpa", "text_config": attention.NAME}  # vision tower, language model
    attention.register()
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForImageTextToText.from_config(
                config, dtype=dtype, attn_implementation=kinds
            )
    except Exception as error:  # of many kinds; all mean that the sizes do not go together
        raise common.InputError(
            f"{directory / 'config.json'}: no model can be made from it: {common.first_line(error)}"
        ) from error
    limits.check_language_model(model, directory)
    headers = files.read_headers(directory)
    if adapter.rank:
        add_lora(model.model.language_model.layers, adapter.rank, adapter.alpha)
        weights = find_factors(path)
        headers |= {weights: files.read_header(weights)}

    renamings = get_model_conversion_mapping(model)  # older files use older names
    names = {}
    for file, header in headers.items():
        names[file] = {}
        for key in header:
            names[file][key], _ = rename_source_key(key.removeprefix(PEFT_PREFIX), renamings, [])
    check_tensors(model, path, headers, names)
    return model, names


def check_tensors(model, path, headers: dict, names: dict):
    """Check that every tensor of the model is in the files once, and in the model's shape.

    Args:
        headers: {file: {name of a tensor in the file: Entry}}
        names: {file: {name of a tensor in the file: its name in the model}}
    """
    missing = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = set()
    for file, header in headers.items():
        for key, entry in header.items():
            name = names[file][key]
            if name in found:
                raise common.InputError(f"{file}: {key} (as {name}) is a duplicate")
            if name not in missing:
                hint = "; tools.merge merges such adapters" if ".lora_" in name else ""
                raise common.InputError(
                    f"{file}: {model.config.model_type} has no tensor {name!r}{hint}"
                )
            shape = missing.pop(name)
            if entry.shape != shape:
                raise common.InputError(
                    f"{file}: {key} has the shape {tuple(entry.shape)}, but by the config it is "
                    f"{tuple(shape)}; are they of the same model?"
                )
            found.add(name)

    for target, source in model.all_tied_weights_keys.items():
        if {target, source} & found:  # either can be made from the other
            missing.pop(target, None)
            missing.pop(source, None)
    if missing:
        name = next(iter(missing))
        hint = f"the files of weights are {', '.join(file.name for file in headers)}"
        if ".lora_" in name:
            hint = (
                "an adapter needs factors for all linear layers of the decoder, and for no others; "
                "tools.merge merges such adapters"
            )
        raise common.InputError(f"{path}: there are no weights for {name}; {hint}")


def find_base(path) -> Path:
    """Find the directory of a checkpoint, or of an adapter's base; its class is checked."""
    base, rank, _ = read_adapter(path)
    adapter = path if rank else None
    return find_checkpoint(base, adapter)


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
            hint = ""
            if adapter and not Path(base).is_absolute():
                hint = (
                    f"; a relative path is taken from where you are ({Path.cwd()}), so go where "
                    "it is right, or write the whole path into adapter_config.json"
                )
            raise common.InputError(
                f"{source}: no such directory, and not found on the hub "
                f"({type(error).__name__}){hint}"
            ) from error

    [kind] = common.read_keys(directory / "config.json", "model_type")
    if kind not in FAMILIES:
        hint = ""
        if kind == "internvl_chat":
            hint = f"; convert it: python -m tools.convert {base} DST"
        raise common.InputError(
            f"{base}: unknown class {kind}, not {', '.join(FAMILIES[:-1])} or {FAMILIES[-1]}{hint}"
        )
    return directory


def read_config(directory: Path, frame_tokens: list[int] | None = None):
    """Read a checkpoint's config.json as transformers does; dropout is taken out of it.

    frame_tokens: what --frame-tokens says, in the place of what config.json may say

    Raises:
        InputError: if transformers cannot read it, or it has values that cannot be used
    """
    path = directory / "config.json"
    try:
        config = transformers.AutoConfig.from_pretrained(directory)
    except Exception as error:  # of many kinds; all mean that a value is not what it should be
        message = " ".join(str(error).split())
        raise common.InputError(f"{path}: transformers cannot read it: {message}") from error
    limits.check_attention(config, path)
    limits.remove_dropout(config)
    families.take_frame_tokens(config, frame_tokens)
    families.check_config(config, path)
    return config


def read_weights(model, file: Path, device: str, place, names: dict, dtype):
    """Read those tensors of a *.safetensors file into the model that belong on one device.

    names: {name of a tensor in the file: its name in the model}
    """
    try:
        with safetensors.safe_open(file, framework="pt", device=device) as tensors:
            chunk = {}
            for key, name in names.items():
                if place(name) == device:
                    kept_in = torch.float32 if ".lora_" in name else dtype
                    chunk[name] = tensors.get_tensor(key).to(kept_in)
                    check_finite(file, key, chunk[name])
        model.load_state_dict(chunk, strict=False, assign=True)
    except torch.OutOfMemoryError:
        raise  # not the file's fault: common.run says what helps
    except (RuntimeError, AssertionError, safetensors.SafetensorError) as error:
        # A device that does not exist, a file that changes while it is read
        raise common.InputError(f"{file}: {common.first_line(error)} (device {device})") from error


def check_finite(file: Path, key: str, tensor):
    """Raise InputError if a tensor has a NaN or an infinite number in it.

    A model with one of them answers all the same, and scores 0.
    """
    if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():  # NaN wins both
        kind = str(tensor.dtype).removeprefix("torch.")
        raise common.InputError(
            f"{file}: {key} has numbers that are infinite or NaN in {kind}; the file is damaged, "
            "or was saved from a training that ran away, or needs another --dtype"
        )


def tie_head(model):
    """Make the head the embedding, or the embedding the head, by transformers' own rule.

    If config.json ties them, one that is in no file is the other. If both are in the files they are
    tied only if they are equal.
    """
    if not model.all_tied_weights_keys:
        return
    head = model.lm_head
    embedding = model.model.language_model.embed_tokens
    if embedding.weight.is_meta:
        embedding.weight = head.weight
        return
    is_same = head.weight.is_meta or torch.equal(
        head.weight.to(embedding.weight.device), embedding.weight
    )
    if is_same:
        head.weight = embedding.weight
    else:
        model.all_tied_weights_keys.clear()  # so that both are saved


def make_buffers(model, device: str):
    """Make the buffers that are in no file, those of rotary positions, as the library does."""
    for module in list(model.modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            module._buffers = type(module)(module.config).to(device)._buffers


def check_complete(model, path):
    """Raise InputError if a part of the model was in none of the files, such as a buffer."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise common.InputError(f"{path}: there are no weights for {name}")


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
