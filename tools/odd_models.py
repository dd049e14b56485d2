"""Odd checkpoints, adapters, tokenizers and texts, and what must come of them: for `tools.fuzz`.

A case makes one from a small model of the real class, with random weights, and returns what is
wrong, or None. The truth comes from the making.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import safetensors.torch
import tokenizers
import torch
import transformers

import vlm
from tools.odd_rows import compare, refusal
from vlm import limits

BASE = Path(__file__).parent.parent / "shapes" / "model"

# ------------------------------------------------------------------------------
# What they are made from


def write_checkpoint(directory: Path, tied: bool = False, **text) -> Path:
    """Write a checkpoint of one layer, 32 wide, with the tiny model's tokenizer."""
    config = transformers.AutoConfig.from_pretrained(BASE)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "layer_types": None,
    }
    for key, value in (sizes | text).items():
        setattr(config.text_config, key, value)
    config.vision_config.num_hidden_layers = 1
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    config = transformers.InternVLConfig(**config.to_dict())
    torch.manual_seed(0)
    model = transformers.InternVLForConditionalGeneration(config)
    model.save_pretrained(directory, max_shard_size="100KB")
    for file in BASE.iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(file, directory)
    return directory


def edit(file: Path, change):
    """Change the object in a JSON file."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def pick(directory: Path, rng) -> tuple[Path, str, dict]:
    """Pick a file of weights and a tensor in it -> (file, the tensor's name, all its tensors)."""
    files = sorted(directory.glob("model*.safetensors"))
    file = files[rng.integers(len(files))]
    tensors = safetensors.torch.load_file(file)
    name = str(rng.choice(sorted(tensors)))
    return file, name, tensors


# ------------------------------------------------------------------------------
# Checkpoints


def stray_shards(directory: Path, rng) -> str | None:
    """Put another save's weights beside those that the index names: they are not read."""
    path = write_checkpoint(directory / "model")
    before = vlm.load_model(path, ["cpu"]).state_dict()
    file, _, tensors = pick(path, rng)
    others = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    safetensors.torch.save_file(
        others, path / f"model-0000{rng.integers(1, 9)}-of-00009.safetensors"
    )
    after = vlm.load_model(path, ["cpu"]).state_dict()
    same = all(torch.equal(before[name], after[name]) for name in before)
    return None if same else f"zeros were read beside {file.name}"


def damaged_index(directory: Path, rng) -> str | None:
    """Let the index name a file that is not there, or is elsewhere."""
    path = write_checkpoint(directory / "model")
    index = path / "model.safetensors.index.json"
    outside, words = [
        ("../other.safetensors", "leads out of the directory"),
        ("/etc/other.safetensors", "leads out of the directory"),
        ("a/../../other.safetensors", "leads out of the directory"),
        ("missing.safetensors", "missing.safetensors is missing"),
        ("model.bin", "not a *.safetensors file"),
    ][rng.integers(5)]
    name = str(rng.choice(sorted(json.loads(index.read_text())["weight_map"])))
    edit(index, lambda value: value["weight_map"].update({name: outside}))
    return compare(refusal(vlm.check_model, path), words)


def lost_or_doubled(directory: Path, rng) -> str | None:
    """Remove a shard, take a tensor out, put one in twice, or give it another shape."""
    path = write_checkpoint(directory / "model")
    file, name, tensors = pick(path, rng)
    kind = rng.integers(4)
    if kind == 0:
        file.unlink()
        return compare(refusal(vlm.check_model, path), file.name, "missing")
    if kind == 1:
        del tensors[name]
        words = (name, "missing")
    elif kind == 2:
        [other, *_] = [other for other in sorted(path.glob("model*.safetensors")) if other != file]
        safetensors.torch.save_file(
            safetensors.torch.load_file(other) | {name: tensors[name]}, other
        )
        words = (name, "duplicate")
    else:
        tensors[name] = torch.zeros(3, 5, 7)
        words = (name, "(3, 5, 7)")
    safetensors.torch.save_file(tensors, file)
    return compare(refusal(vlm.check_model, path), *words)


def cut_weights(directory: Path, rng) -> str | None:
    """Cut a file of weights off anywhere, or put a git-lfs pointer in its place."""
    path = write_checkpoint(directory / "model")
    file, _, _ = pick(path, rng)
    data = file.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    file.write_bytes([data[: rng.integers(len(data))], pointer][rng.integers(2)])
    return compare(refusal(vlm.check_model, path), file.name, "download it again")


def not_finite(directory: Path, rng) -> str | None:
    """Put one NaN or inf into one tensor."""
    path = write_checkpoint(directory / "model")
    file, name, tensors = pick(path, rng)
    value = float(rng.choice([np.nan, np.inf, -np.inf]))
    tensors[name].view(-1)[rng.integers(tensors[name].numel())] = value
    safetensors.torch.save_file(tensors, file)
    return compare(refusal(vlm.load_model, path, ["cpu"]), name, "infinite or NaN")


def tied_heads(directory: Path, rng) -> str | None:
    """Tie the head to the embedding, or not: what is loaded is what transformers loads."""
    path = write_checkpoint(directory / "model", tied=bool(rng.integers(2)))
    ids = torch.from_numpy(rng.integers(10, 200, (1, 8)))
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(path).eval()
    with torch.no_grad():
        same = torch.equal(vlm.load_model(path, ["cpu"])(ids).logits, theirs(ids).logits)
    return None if same else "other logits than those of from_pretrained"


def attention_that_is_not_full(directory: Path, rng) -> str | None:
    """Let the language model have a window, or only say that it could have one."""
    path = write_checkpoint(directory / "model")
    is_used = bool(rng.integers(2))

    def change(config):
        text = config["text_config"]
        text |= {"use_sliding_window": is_used, "sliding_window": 16, "max_window_layers": 0}
        text["layer_types"] = ["sliding_attention" if is_used else "full_attention"]

    edit(path / "config.json", change)
    message = refusal(vlm.check_model, path)
    if is_used:
        return compare(message, "sliding_attention", "cannot be used")
    return None if message is None else f"refused: {message}"


def dropout(directory: Path, rng) -> str | None:
    """Put dropouts into the config: none acts, also in train mode."""
    path = write_checkpoint(directory / "model")
    rate = float(rng.uniform(0.1, 0.9))

    def change(config):
        config["text_config"]["attention_dropout"] = rate
        config["vision_config"] |= {"attention_dropout": rate, "hidden_dropout_prob": rate}

    edit(path / "config.json", change)
    model = vlm.load_model(path, ["cpu"]).train()
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    rates |= {
        module.attention_dropout
        for module in model.modules()
        if hasattr(module, "attention_dropout")
    }
    return f"dropouts: {rates}" if rates - {0.0} else None


def too_many_frames(directory: Path, rng) -> str | None:
    """Ask for frames around the most that fit: the message names the most."""
    config = transformers.AutoConfig.from_pretrained(BASE)
    tokenizer = vlm.load_tokenizer(BASE)
    limit = int(rng.integers(400, 3000))
    config.text_config.max_position_embeddings = limit
    one, two = (len(vlm.encode_prefix(tokenizer, config, n)) for n in (1, 2))
    most = 1 + (limit - limits.ROOM - one) // (two - one)  # each frame takes as many tokens
    asked = max(1, most + int(rng.integers(-2, 3)))
    message = refusal(limits.check_frames, tokenizer, config, asked)
    if asked <= most:
        return None if message is None else f"{asked} of {most} frames are refused: {message}"
    return compare(message, f"{asked} frames", f"--frames {most} fits" if most else "not even one")


# ------------------------------------------------------------------------------
# Adapters


def adapter(directory: Path, rng) -> str | None:
    """Write an adapter, whole or with something wrong."""
    base = write_checkpoint(directory / "model")
    model = vlm.load_model(base, ["cpu"])
    vlm.add_lora(model.model.language_model.layers, 2, 4)
    path = directory / "adapter"
    path.mkdir()
    vlm.save_adapter(model, path, vlm.Adapter(str(base), 2, 4))
    file = path / "adapter_config.json"
    kind = rng.integers(6)
    if kind == 0:  # as PEFT writes it: the tokenizer is the base's
        same = vlm.load_tokenizer(path).get_vocab() == vlm.load_tokenizer(base).get_vocab()
        message = refusal(vlm.load_model, path, ["cpu"])
        return None if same and message is None else f"refused: {message}"
    if kind == 1:
        key = str(rng.choice(["r", "lora_alpha", "base_model_name_or_path"]))
        value = [None, [], {}, True, -1, "", float("nan")][rng.integers(7)]
        edit(file, lambda config: config.update({key: value}))
        return compare(refusal(vlm.check_model, path), "adapter_config.json", key)
    if kind == 2:
        key = str(rng.choice(["use_dora", "use_rslora", "modules_to_save", "rank_pattern"]))
        edit(file, lambda config: config.update({key: {"a": 1} if "pattern" in key else True}))
        return compare(refusal(vlm.check_model, path), key, "plain LoRA")
    factors = path / "adapter_model.safetensors"
    if kind == 3:
        factors.rename(path / "adapter_model.bin")
        return compare(refusal(vlm.check_model, path), "adapter_model.bin", "safetensors")
    tensors = safetensors.torch.load_file(factors)
    name = str(rng.choice(sorted(tensors)))
    moved = tensors.pop(name)
    if kind == 4:
        tensors[name.replace("proj", "other")] = moved
    safetensors.torch.save_file(tensors, factors)
    return compare(refusal(vlm.check_model, path), "lora", "tools.merge")


# ------------------------------------------------------------------------------
# Texts, and chat templates

MARKS = ("<|im_end|>", "<|im_start|>", "<IMG_CONTEXT>", "<img>", "</img>")


def make_tokenizer(directory: Path) -> transformers.PreTrainedTokenizerFast:
    """Make a tokenizer of bytes, as Qwen's, with InternVL's special tokens and an added <think>."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    model.train_from_iterator(["the red square moves left of the blue circle"] * 3, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = (BASE / "chat_template.jinja").read_text()
    return tokenizer


def control_tokens_in_a_text(directory: Path, rng) -> str | None:
    """Put control tokens into a question or an answer: they must be letters there."""
    tokenizer = make_tokenizer(directory)
    marks = [*MARKS, "<think>", "</think>"]
    words = ["the red square", "left", "\u00fc\u4e2d", "?", "\n", ""]
    parts = [str(rng.choice([*words, *marks])) for _ in range(rng.integers(2, 8))]
    text = "".join(parts) + str(rng.choice(marks))
    branch = vlm.encode_branch(tokenizer, text, text)
    controls = {tokenizer.convert_tokens_to_ids(mark) for mark in marks}
    end = tokenizer.convert_tokens_to_ids(vlm.END_OF_TURN)
    *answer, last = branch.answer
    if last != end or controls & set(answer):
        return f"the answer {text!r} has control tokens: {branch.answer}"
    if tokenizer.decode(answer) != text:
        return f"{text!r} became {tokenizer.decode(answer)!r}"
    _, after = vlm.chat_parts(tokenizer)
    n_after = len(tokenizer.encode(after, add_special_tokens=False))
    if controls & set(branch.prompt[:-n_after]):
        return f"the prompt {text!r} has control tokens: {branch.prompt}"
    return None


def control_tokens_as_words(directory: Path, rng) -> str | None:
    """Put a control token into a text for the tiny model, whose tokenizer has words alone."""
    mark = str(rng.choice(["<|im_end|>", "<|im_start|>", "<img>", "</img>"]))
    text = f"how many {mark} are there?"
    message = refusal(vlm.encode_branch, vlm.load_tokenizer(BASE), text)
    return compare(message, mark, "control token")


def chat_template(directory: Path, rng) -> str | None:
    """Write a chat template that can be used, or cannot."""
    path = directory / "model"
    path.mkdir()
    for file in BASE.iterdir():
        if file.name.startswith(("tokenizer", "config")):
            shutil.copy(file, path)
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    answer = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    start = "{% for m in messages %}"
    stop = "{% endfor %}"
    good = [
        start + turn + stop + answer,
        "<|im_start|>system\nWORDS of the user<|im_end|>\n" + start + turn + stop + answer,
    ]
    bad = [
        start + turn,  # broken jinja
        start + turn.replace("<|im_end|>", "</s>") + stop + answer,
        start + turn.replace("m.content", "m.content[0].text") + stop + answer,
        start + turn.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}") + stop + answer,
        "{{ raise_exception('no videos') }}",
        "no turns",
    ]
    is_good = bool(rng.integers(2))
    choices = good if is_good else bad
    (path / "chat_template.jinja").write_text(choices[rng.integers(len(choices))])
    message = refusal(vlm.load_tokenizer, path)
    if is_good:
        return None if message is None else f"refused: {message}"
    return compare(message, "chat template")


CASES = [
    stray_shards,
    damaged_index,
    lost_or_doubled,
    cut_weights,
    not_finite,
    tied_heads,
    attention_that_is_not_full,
    dropout,
    too_many_frames,
    adapter,
    control_tokens_in_a_text,
    control_tokens_as_words,
    chat_template,
]
