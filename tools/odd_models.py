"""Odd checkpoints and adapters, each with what must come of it: cases of `tools.fuzz`.

All are made from one model of the real classes, with 17,032 random parameters. What it must give is
known from the tensors that were written, not from reading them back.
"""

import argparse
import functools
import json
import shutil
from pathlib import Path

import safetensors.torch
import torch
import transformers

import common
import vlm
from tools.odd import Case, Gives, Refused
from vlm import limits

SHIPPED = Path(__file__).parent.parent / "shapes" / "model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"
VOCABULARY = 219
HIDDEN = 16
TOKENS_A_FRAME = 8  # 4 visual ones, "Frame1" and ":", <img> and </img>
RANK = 2
FULL = ["full_attention"] * 2

# ------------------------------------------------------------------------------
# A small model, and how it is written


@functools.cache
def small_model():
    """Make the model that all cases are made from -> (its config, {name: tensor})."""
    shipped = transformers.AutoConfig.from_pretrained(SHIPPED)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 24, "num_attention_heads": 2}
    text = shipped.text_config.to_dict() | sizes
    text |= {"num_hidden_layers": 2, "num_key_value_heads": 1, "layer_types": FULL}
    vision = shipped.vision_config.to_dict() | sizes
    vision |= {"num_hidden_layers": 1, "image_size": [28, 28], "patch_size": [7, 7]}
    config = transformers.InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=5, image_seq_length=4
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    return config.to_dict(), {name: t.clone() for name, t in model.state_dict().items()}


def make_config() -> dict:
    """Make the small model's config, to be changed."""
    config, _ = small_model()
    return json.loads(json.dumps(config))


def make_tensors() -> dict:
    """Copy the small model's tensors, to be changed -> {name: tensor}."""
    _, tensors = small_model()
    return {name: tensor.clone() for name, tensor in tensors.items()}


def old_name(name: str) -> str:
    """Give a tensor the name that it has on disk, as transformers writes it."""
    if name == HEAD:
        return f"language_model.{HEAD}"
    name = name.removeprefix("model.")
    return name.replace("language_model.", "language_model.model.", 1)


def write(directory: Path, rng, tensors: dict, config: dict | None = None, shards=None) -> Path:
    """Write a checkpoint, with the old names of tensors or the new ones.

    Args:
        shards: number of files that the tensors are dealt to; None: it is drawn, and 1 has no index
    """
    directory.mkdir(exist_ok=True)
    common.write_json(directory / "config.json", config or make_config())
    for name in TOKENIZER_FILES:
        shutil.copy(SHIPPED / name, directory)
    if rng.integers(2):
        tensors = {old_name(name): tensor for name, tensor in tensors.items()}
    shards = shards or int(rng.integers(1, 4))
    if shards == 1:
        save(directory / WEIGHTS, tensors)
        return directory
    names = rng.permutation(list(tensors)).tolist()
    table = {name: f"part-{place % shards}.safetensors" for place, name in enumerate(names)}
    write_index(directory, table)
    for file in set(table.values()):
        save(directory / file, {name: tensors[name] for name in names if table[name] == file})
    return directory


def save(file: Path, tensors: dict):
    """Write a file of weights."""
    safetensors.torch.save_file(tensors, file, {"format": "pt"})


def write_index(directory: Path, table):
    """Write the index of a checkpoint in several files."""
    common.write_json(directory / INDEX, {"metadata": {}, "weight_map": table})


def read_index(directory: Path) -> dict:
    """Read the table of an index, to change it."""
    return json.loads((directory / INDEX).read_text())["weight_map"]


def choose(rng, things):
    """Draw one of some things."""
    things = list(things)
    return things[rng.integers(len(things))]


# ------------------------------------------------------------------------------
# What is done with them


def loads(directory: Path, expected: dict) -> Case:
    """Say that a model must be loaded, with these tensors and no others."""
    return Gives(functools.partial(load, directory), as_bytes(expected))


def load(directory: Path, dtype=None) -> dict[str, bytes]:
    """Check and load a model, as the stages do -> {name: bytes of the tensor}."""
    vlm.check_model(directory)
    return as_bytes(vlm.load_model(directory, ["cpu"], dtype).state_dict())


def as_bytes(tensors: dict) -> dict[str, bytes]:
    """Make tensors comparable, NaN by NaN."""
    return {name: tensor.float().numpy().tobytes() for name, tensor in tensors.items()}


def refused(directory: Path, *words: str) -> Case:
    """Say that a model must be refused before its weights are read."""
    return Refused(functools.partial(vlm.check_model, directory), words)


def refused_when_read(directory: Path, *words: str, dtype=None) -> Case:
    """Say that a model must be refused, when its weights are read at the latest."""
    return Refused(functools.partial(load, directory, dtype), words)


# ------------------------------------------------------------------------------
# Files


def stray_shards(directory: Path, rng) -> Case:
    """Put files of an older save beside those of the model, or what is not even complete."""
    tensors = make_tensors()
    path = write(directory / "m", rng, tensors)
    for number in range(rng.integers(1, 4)):
        stray = path / f"model-{number + 1:05}-of-00099.safetensors"
        if rng.integers(2):
            save(stray, {name: -tensor for name, tensor in tensors.items()})
        else:
            stray.write_bytes(rng.bytes(100))
    return loads(path, tensors)


def shard_in_a_folder(directory: Path, rng) -> Case:
    """Let the index name a file in a folder below, also by a detour."""
    tensors = make_tensors()
    path = write(directory / "m", rng, tensors, shards=2)
    table = read_index(path)
    (path / "below").mkdir()
    (path / "part-1.safetensors").rename(path / "below" / "part-1.safetensors")
    name = choose(rng, ["below/part-1.safetensors", "below/../below/part-1.safetensors"])
    moved = {t: name if file == "part-1.safetensors" else file for t, file in table.items()}
    write_index(path, moved)
    return loads(path, tensors)


def index_that_leads_out(directory: Path, rng) -> Case:
    """Let the index name a file that is elsewhere, and is there."""
    path = write(directory / "m", rng, make_tensors(), shards=2)
    table = read_index(path)
    tensor = choose(rng, table)
    outside = directory / "outside.safetensors"
    shutil.copy(path / table[tensor], outside)
    names = ["../outside.safetensors", "./../outside.safetensors", "a/../../outside.safetensors"]
    table[tensor] = choose(rng, [*names, str(outside)])
    write_index(path, table)
    return refused(path, INDEX, table[tensor], "leads out of the directory")


def index_of_another_kind(directory: Path, rng) -> Case:
    """Write an index that is no table of names."""
    path = write(directory / "m", rng, make_tensors(), shards=2)
    table = read_index(path)
    tensor = choose(rng, table)
    value = choose(rng, [7, None, ["part-0.safetensors"], "part-0.bin", {}])
    write_index(path, choose(rng, [table | {tensor: value}, [], {}, "part-0.safetensors", None]))
    return refused(path, f"{INDEX}: weight_map")


def broken_index(directory: Path, rng) -> Case:
    """Cut an index off."""
    path = write(directory / "m", rng, make_tensors(), shards=2)
    data = (path / INDEX).read_bytes().rstrip()
    (path / INDEX).write_bytes(data[: rng.integers(len(data))])
    return refused(path, f"{INDEX}: not JSON")


def missing_shard(directory: Path, rng) -> Case:
    """Take a file away that the index names."""
    path = write(directory / "m", rng, make_tensors(), shards=3)
    name = f"part-{rng.integers(3)}.safetensors"
    (path / name).unlink()
    return refused(path, f"{name} is missing")


def wrong_shard(directory: Path, rng) -> Case:
    """Let the index say of a tensor that it is in a file where it is not."""
    path = write(directory / "m", rng, make_tensors(), shards=2)
    table = read_index(path)
    tensor = choose(rng, table)
    other = "part-0.safetensors" if table[tensor] == "part-1.safetensors" else "part-1.safetensors"
    write_index(path, table | {tensor: other})
    return refused(path, f"{other}: {tensor} is missing")


def tensor_twice(directory: Path, rng) -> Case:
    """Have a tensor in two files, or in one under its old name and its new one."""
    tensors = make_tensors()
    name = choose(rng, [HEAD, EMBEDDING])
    if rng.integers(2):
        path = write(directory / "m", rng, tensors, shards=1)
        save(path / WEIGHTS, tensors | {old_name(name): tensors[name] + 1})
        return refused(path, WEIGHTS, "is a duplicate")
    path = write(directory / "m", rng, tensors, shards=2)
    table = read_index(path)
    name = choose(rng, table)
    other = "part-0.safetensors" if table[name] == "part-1.safetensors" else "part-1.safetensors"
    there = safetensors.torch.load_file(path / other)
    save(path / other, there | {name: torch.zeros(2)})
    return refused(path, f"{name} is a duplicate")


def tensor_too_few(directory: Path, rng) -> Case:
    """Take a tensor away, with no word of it in the index."""
    tensors = make_tensors()
    name = choose(rng, tensors)
    tensors.pop(name)
    return refused(write(directory / "m", rng, tensors), f"there are no weights for {name}")


def tensor_too_many(directory: Path, rng) -> Case:
    """Add a tensor that the model does not have."""
    names = [
        "stranger",
        "model.language_model.layers.7.mlp.up_proj.weight",
        "model.vision_tower.x",
    ]
    name = choose(rng, names)
    tensors = make_tensors() | {name: torch.zeros(3)}
    return refused(write(directory / "m", rng, tensors), f"internvl has no tensor {name!r}")


def another_size(directory: Path, rng) -> Case:
    """Let config.json have another size than the weights."""
    config = make_config()
    part, key, size = choose(
        rng,
        [
            ("text_config", "hidden_size", 32),
            ("text_config", "intermediate_size", 40),
            ("text_config", "vocab_size", VOCABULARY + 5),
            ("text_config", "num_attention_heads", 4),
            ("vision_config", "hidden_size", 32),
            ("vision_config", "intermediate_size", 40),
            ("vision_config", "image_size", [56, 56]),
        ],
    )
    config[part][key] = size
    if key == "num_attention_heads":
        config[part]["head_dim"] = 8
    path = write(directory / "m", rng, make_tensors(), config)
    return refused(path, "has the shape", "but by the config it is")


def config_of_another_type(directory: Path, rng) -> Case:
    """Put something that is no size, or cannot be one, where config.json has a size."""
    config = make_config()
    part = choose(rng, ["text_config", "vision_config"])
    key = choose(rng, ["hidden_size", "intermediate_size", "num_attention_heads"])
    values = ["large", [16], {"size": 16}, 1.5]
    if key != "num_attention_heads":  # a vision tower with fewer than none is still taken
        values.append(-16)
    config[part][key] = choose(rng, values)
    return refused(write(directory / "m", rng, make_tensors(), config), "config.json: ")


def broken_config(directory: Path, rng) -> Case:
    """Cut config.json off, or let it be something else than an object."""
    path = write(directory / "m", rng, make_tensors())
    data = (path / "config.json").read_bytes().rstrip()
    cut = data[: rng.integers(len(data))]
    (path / "config.json").write_bytes(choose(rng, [cut, b"[]", b"7", b"null", b"\xff{}"]))
    return refused(path, "config.json: ")


def unknown_class(directory: Path, rng) -> Case:
    """Let config.json name another class."""
    kind = choose(rng, ["llava", "qwen2_vl", "internvl_chat", "InternVL", ""])
    path = write(directory / "m", rng, make_tensors(), make_config() | {"model_type": kind})
    words = ("python -m tools.convert",) if kind == "internvl_chat" else ()
    return refused(path, f"unknown class {kind}, not internvl", *words)


def pickled(directory: Path, rng) -> Case:
    """Have weights in pickle's format alone."""
    path = write(directory / "m", rng, make_tensors(), shards=1)
    name = choose(rng, ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
    (path / WEIGHTS).rename(path / name)
    return refused(path, f"{name}: pickled weights")


# ------------------------------------------------------------------------------
# Headers


def cut_weights(directory: Path, rng) -> Case:
    """Cut a file of weights off, at any byte; or leave git-lfs's pointer in its place."""
    path = write(directory / "m", rng, make_tensors(), shards=1)
    data = (path / WEIGHTS).read_bytes()
    cut = data[: rng.integers(len(data))]
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    (path / WEIGHTS).write_bytes(choose(rng, [cut, cut, cut, pointer]))
    return refused(path, WEIGHTS)


def damaged_header(directory: Path, rng) -> Case:
    """Write a header that is no table of tensors, or says impossible things of one."""
    path = write(directory / "m", rng, make_tensors(), shards=1)
    header, data = split_file(path / WEIGHTS)
    name = choose(rng, [name for name in header if name != "__metadata__"])
    entry = header[name]
    begin, _ = entry["data_offsets"]
    entry |= choose(
        rng,
        [
            {"dtype": 7},
            {"dtype": "I4000"},
            {"shape": "large"},
            {"shape": [-1, 2]},
            {"shape": [2**70]},
            {"shape": [1.5]},
            {"shape": None},
            {"data_offsets": []},
            {"data_offsets": [0, 10**12]},
            {"data_offsets": ["0", "8"]},
            {"data_offsets": [begin, begin - 4]},
        ],
    )
    whole = choose(rng, [header, header, header, [], "header", {name: 7}, {name: None}])
    join_file(path / WEIGHTS, whole, data)
    return refused_when_read(path, WEIGHTS)


def split_file(file: Path) -> tuple[dict, bytes]:
    """Split a safetensors file into its header and what follows."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_file(file: Path, header, data: bytes):
    """Write a safetensors file with another header."""
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def quantized(directory: Path, rng) -> Case:
    """Store a tensor in a type that is no float of 16 or 32 bits."""
    tensors = make_tensors()
    name = choose(rng, tensors)
    kind, letters = choose(
        rng, [(torch.int8, "I8"), (torch.uint8, "U8"), (torch.int16, "I16"), (torch.int64, "I64")]
    )
    tensors[name] = tensors[name].to(kind)
    path = write(directory / "m", rng, tensors)
    return refused(path, f"has the type {letters}", "not quantized")


def several_types(directory: Path, rng) -> Case:
    """Store each tensor in a type of its own: all are read in float32."""
    tensors = make_tensors()
    for name in tensors:
        kind = choose(rng, [torch.float32, torch.float16, torch.bfloat16])
        tensors[name] = tensors[name].to(kind)
    return loads(write(directory / "m", rng, tensors), tensors)


# ------------------------------------------------------------------------------
# Numbers, and heads


def not_finite(directory: Path, rng) -> Case:
    """Put a NaN or an infinite number at any place of any tensor."""
    tensors = make_tensors()
    name = choose(rng, tensors)
    flat = tensors[name].view(-1)
    flat[rng.integers(len(flat))] = choose(rng, [float("nan"), float("inf"), float("-inf")])
    words = (name.removeprefix("model.").split(".")[-2], "infinite or NaN")
    return refused_when_read(write(directory / "m", rng, tensors), *words)


def too_large_for_float16(directory: Path, rng) -> Case:
    """Have a number of more than 65,504: infinite in float16, and right elsewhere."""
    tensors = make_tensors()
    name = choose(rng, tensors)
    flat = tensors[name].view(-1)
    flat[rng.integers(len(flat))] = choose(rng, [7e4, -1e6])
    path = write(directory / "m", rng, tensors)
    if rng.integers(2):
        return loads(path, tensors)
    return refused_when_read(path, "infinite or NaN in float16", dtype=torch.float16)


def tied_heads(directory: Path, rng) -> Case:
    """Tie head and embedding by config.json, or not; have one of them in the file, or both."""
    tensors = make_tensors()
    is_tied = bool(rng.integers(2))
    held = choose(rng, ["both", "equal", "head", "embedding"])
    if held == "equal":
        tensors[HEAD] = tensors[EMBEDDING].clone()
    expected = dict(tensors)
    if held == "head":
        expected[EMBEDDING] = tensors[HEAD]
        tensors.pop(EMBEDDING)
    if held == "embedding":
        expected[HEAD] = tensors[EMBEDDING]
        tensors.pop(HEAD)
    config = make_config() | {"tie_word_embeddings": is_tied}
    config["text_config"]["tie_word_embeddings"] = bool(rng.integers(2))  # it has no say in it
    path = write(directory / "m", rng, tensors, config)
    if is_tied or held in ("both", "equal"):
        return loads(path, expected)
    lacking = EMBEDDING if held == "head" else HEAD
    return refused(path, f"there are no weights for {lacking}")


# ------------------------------------------------------------------------------
# Language models


def other_attention(directory: Path, rng) -> Case:
    """Let a layer of the language model see less than all tokens before it."""
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    slides = {"use_sliding_window": True, "sliding_window": 8}
    qwen = make_config()["text_config"]
    layers = [FULL[0], "sliding_attention"]
    text, kind = choose(
        rng,
        [
            (qwen | slides | {"layer_types": layers}, "sliding_attention"),
            (qwen | slides | {"layer_types": None, "max_window_layers": 1}, "sliding_attention"),
            (sizes | {"model_type": "mistral", "sliding_window": 8}, "sliding_attention"),
            (sizes | {"model_type": "gpt_oss"}, "sliding_attention"),
            (sizes | {"model_type": "llama4_text"}, "chunked_attention"),
            (sizes | {"model_type": "gemma2", "layer_types": FULL}, "capped logits"),
        ],
    )
    path = write(directory / "m", rng, make_tensors(), make_config() | {"text_config": text})
    return refused(path, "config.json", kind)


def window_that_is_not_used(directory: Path, rng) -> Case:
    """Name a window that use_sliding_window switches off, as Qwen2's configs do."""
    tensors = make_tensors()
    config = make_config()
    width = int(rng.integers(1, 5000))
    config["text_config"] |= {"sliding_window": width, "use_sliding_window": False}
    return loads(write(directory / "m", rng, tensors, config), tensors)


def experts(directory: Path, rng) -> Case:
    """Let the language model be a mixture of experts: one line, not one for each tensor."""
    kind = choose(rng, ["qwen3_moe", "qwen2_moe", "mixtral", "gpt_oss"])
    text = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": None}
    text |= {"model_type": kind, "layer_types": FULL}
    path = write(directory / "m", rng, make_tensors(), make_config() | {"text_config": text})
    return refused(path, kind, "is a mixture of experts")


def dropout(directory: Path, rng) -> Case:
    """Ask for dropout in config.json: in train mode, too, two passes are one function."""
    config = make_config()
    config["text_config"]["attention_dropout"] = float(rng.uniform(0.1, 0.9))
    for key in ("attention_dropout", "hidden_dropout_prob", "projection_dropout"):
        config["vision_config"][key] = float(rng.choice([0.0, 0.5]))
    path = write(directory / "m", rng, make_tensors(), config)

    def run_twice() -> bool:
        model = vlm.load_model(path, ["cpu"]).train()
        ids = torch.arange(10, 60)[None]
        pixels = torch.ones(1, 3, 28, 28)
        with torch.no_grad():
            first = [model(ids).logits, model.model.vision_tower(pixels).last_hidden_state]
            second = [model(ids).logits, model.model.vision_tower(pixels).last_hidden_state]
        return all(torch.equal(*both) for both in zip(first, second))

    return Gives(run_twice, True)


def too_many_frames(directory: Path, rng) -> Case:
    """Ask for more frames than the model has positions for, or for as many as it has.

    A video of n frames is 2 + 8 n tokens here, and 256 are kept for a prompt with its answer.
    """
    config = make_config()
    limit = int(rng.integers(100, 2000))
    config["text_config"]["max_position_embeddings"] = limit
    most = max(0, (limit - limits.ROOM - 2) // TOKENS_A_FRAME)
    path = write(directory / "m", rng, make_tensors(), config)

    def load_with(n: int) -> bool:
        args = argparse.Namespace(model=path, frames=n, devices="cpu", dtype=None)
        return bool(vlm.load(args))

    if most and rng.integers(2):
        return Gives(functools.partial(load_with, int(rng.integers(1, most + 1))), True)
    n = most + choose(rng, [1, 2, 1000, 10**8])
    hint = f"--frames {most} fits" if most else "not even one frame fits"
    return Refused(functools.partial(load_with, n), (f"{n} frames", f"{limit} positions", hint))


# ------------------------------------------------------------------------------
# Adapters


def write_adapter(directory: Path, rng, factors: dict, base=None, **config) -> Path:
    """Write an adapter of the small model as PEFT does, without a tokenizer."""
    if base is None:
        base = write(directory / "base", rng, make_tensors())
    path = directory / "adapter"
    path.mkdir()
    save(
        path / "adapter_model.safetensors", {f"base_model.model.{n}": t for n, t in factors.items()}
    )
    says = {"peft_type": "LORA", "base_model_name_or_path": str(base), "bias": "none"}
    says |= {"r": RANK, "lora_alpha": 4, "use_dora": False, "rank_pattern": {}}
    (path / "adapter_config.json").write_text(json.dumps(says | config))
    return path


def make_factors(rng) -> dict:
    """Make factors for all linear layers of the decoder -> {name: tensor}."""
    factors = {}
    for name, weight in make_tensors().items():
        if "language_model.layers" in name and weight.dim() == 2:
            stem = name.removesuffix(".weight")
            n_out, n_in = weight.shape
            factors[f"{stem}.lora_A.weight"] = torch.tensor(rng.normal(size=(RANK, n_in))).float()
            factors[f"{stem}.lora_B.weight"] = torch.tensor(rng.normal(size=(n_out, RANK))).float()
    return factors


def adapter_as_peft_writes_it(directory: Path, rng) -> Case:
    """Write a good adapter, without a tokenizer: the base's is taken."""
    factors = make_factors(rng)
    path = write_adapter(directory, rng, factors, lora_alpha=float(rng.uniform(0.5, 64)))
    return loads(path, make_tensors() | factors)


def adapter_values(directory: Path, rng) -> Case:
    """Write values into adapter_config.json that are of another type, or out of range."""
    key, values = choose(
        rng,
        [
            ("r", ["16", None, [2], {}, True, 0, -2, 1.5, float("nan"), 1e400]),
            ("lora_alpha", ["4", None, [4], {}, True, 0, -4, float("nan"), float("inf")]),
            ("base_model_name_or_path", [None, 7, [], ["m"], {}, "", True]),
        ],
    )
    path = write_adapter(directory, rng, make_factors(rng), **{key: choose(rng, values)})
    return refused(path, f"adapter_config.json: {key} is ")


def more_than_plain(directory: Path, rng) -> Case:
    """Ask for more than plain LoRA in adapter_config.json."""
    key, value = choose(
        rng,
        [
            ("use_rslora", True),
            ("use_dora", True),
            ("rank_pattern", {"q_proj": 2}),
            ("alpha_pattern", {"q_proj": 2}),
            ("modules_to_save", ["lm_head"]),
            ("init_lora_weights", "pissa"),
            ("bias", "all"),
            ("peft_type", "LOHA"),
            ("of_a_later_version", 1),
        ],
    )
    path = write_adapter(directory, rng, make_factors(rng), **{key: value})
    return refused(path, f"adapter_config.json: {key} is more than plain LoRA")


def pickled_adapter(directory: Path, rng) -> Case:
    """Have an adapter's factors in pickle's format, or not at all."""
    path = write_adapter(directory, rng, make_factors(rng))
    file = path / "adapter_model.safetensors"
    if rng.integers(2):
        file.rename(path / "adapter_model.bin")
        return refused(path, "adapter_model.bin: pickled", "safe_serialization=True")
    file.unlink()
    return refused(path, "adapter_model.safetensors is missing")


def factors_of_other_modules(directory: Path, rng) -> Case:
    """Have factors for fewer layers, as PEFT does by default; or for the vision tower, too."""
    factors = make_factors(rng)
    if rng.integers(2):
        kept = choose(rng, [("q_proj", "v_proj"), ("up_proj",), ("layers.0",)])
        factors = {n: f for n, f in factors.items() if any(part in n for part in kept)}
    else:
        layer = "model.vision_tower.encoder.layer.0.attention.q_proj"
        for letter in "AB":
            factors[f"{layer}.lora_{letter}.weight"] = torch.zeros(RANK, HIDDEN)
    return refused(write_adapter(directory, rng, factors), "tools.merge merges such adapters")


def adapter_of_another_size(directory: Path, rng) -> Case:
    """Say another rank than the factors have."""
    rank = choose(rng, [1, 3, 8, 500])
    path = write_adapter(directory, rng, make_factors(rng), r=rank)
    return refused(path, "has the shape", f"({rank}, 24)")


def adapter_without_base(directory: Path, rng) -> Case:
    """Name a base that is not there, or by a relative path."""
    base = choose(rng, ["../base", "my/old/base", str(directory / "nowhere")])
    path = write_adapter(directory, rng, make_factors(rng), base=base)
    return refused(path, f"{base}, which {path} names as its base: no such directory")


def damaged_adapter(directory: Path, rng) -> Case:
    """Cut a file of an adapter off, or put a NaN into a factor."""
    factors = make_factors(rng)
    name = choose(rng, [name for name in factors if "lora_B" in name])
    is_spoilt = bool(rng.integers(2))
    if is_spoilt:
        factors[name][0, 0] = float("nan")
    path = write_adapter(directory, rng, factors)
    if is_spoilt:
        return refused_when_read(path, "adapter_model.safetensors", name, "infinite or NaN")
    file = path / choose(rng, ["adapter_model.safetensors", "adapter_config.json"])
    data = file.read_bytes()
    file.write_bytes(data[: rng.integers(len(data))])
    return refused(path, file.name)


CASES = [
    stray_shards,
    shard_in_a_folder,
    index_that_leads_out,
    index_of_another_kind,
    broken_index,
    missing_shard,
    wrong_shard,
    tensor_twice,
    tensor_too_few,
    tensor_too_many,
    another_size,
    config_of_another_type,
    broken_config,
    unknown_class,
    pickled,
    cut_weights,
    damaged_header,
    quantized,
    several_types,
    not_finite,
    too_large_for_float16,
    tied_heads,
    other_attention,
    window_that_is_not_used,
    experts,
    dropout,
    too_many_frames,
    adapter_as_peft_writes_it,
    adapter_values,
    more_than_plain,
    pickled_adapter,
    factors_of_other_modules,
    adapter_of_another_size,
    adapter_without_base,
    damaged_adapter,
]
