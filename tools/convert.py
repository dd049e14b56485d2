"""Convert OpenGVLab's original InternVL2.5 checkpoints to transformers' layout.

    python -m tools.convert InternVL2_5-8B InternVL2_5-8B-native

All sizes from 1B to 78B are read; VideoSAVi's published weights are of this
kind, too.

reads    a directory: config.json, *.safetensors (with
         model.safetensors.index.json if there are several), the tokenizer's
         files
writes   a directory that load_model and transformers read without remote code:
         the same number of shards, the same types, and a tokenizer whose chat
         template contains the original system message. It is written whole or
         not at all.

Everything is checked before anything is written. Then one shard after another
is read, renamed and written, so memory for about one shard is needed. The
tokenizer of InternLM2 (2B, 8B, 26B) needs two packages that nothing else here
needs: pip install sentencepiece protobuf
"""

import argparse
import importlib
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
import transformers

import common
import vlm
from tools.checkpoint import native_tensors, whole_directory
from vlm import limits
from vlm.files import read_headers

# ------------------------------------------------------------------------------
# The original's names, and transformers'


class TextModel(NamedTuple):
    """What is to be known of a class of language models."""

    model_type: str  # transformers' name for it
    chat_start: str  # what a chat begins with
    ids: dict[str, int]  # token ids that the weights were trained with


TEXT = {
    "InternLM2ForCausalLM": TextModel(
        "llama", "<s>", {"<|im_end|>": 92542, "<IMG_CONTEXT>": 92546}
    ),
    "Qwen2ForCausalLM": TextModel("qwen2", "", {"<|im_end|>": 151645, "<IMG_CONTEXT>": 151667}),
}

# Keys of llm_config that have the same name in transformers: required ones, and optional ones
TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
)
TEXT_OPTIONS = (
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
)

# Required keys of vision_config -> transformers' names for them
VISION_KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_channels": "num_channels",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_act": "hidden_act",
    "norm_type": "norm_type",
    "layer_norm_eps": "layer_norm_eps",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
    "dropout": "projection_dropout",
    "initializer_factor": "layer_scale_init_value",
}

# Parts of a tensor's name, replaced one after another, in this order
RENAMED = {
    # The vision tower
    "vision_model.encoder.layers.": "vision_tower.encoder.layer.",
    "vision_model.": "vision_tower.",
    ".class_embedding": ".cls_token",
    ".position_embedding": ".position_embeddings",
    ".patch_embedding.": ".patch_embeddings.projection.",
    ".attn.proj.": ".attention.projection_layer.",
    ".attn.": ".attention.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".ls1": ".lambda_1",
    ".ls2": ".lambda_2",
    # The projector
    "mlp1.0.": "multi_modal_projector.layer_norm.",
    "mlp1.1.": "multi_modal_projector.linear_1.",
    "mlp1.3.": "multi_modal_projector.linear_2.",
    # InternLM2 (Qwen2's names are transformers' already)
    "language_model.output.": "language_model.lm_head.",
    ".tok_embeddings.": ".embed_tokens.",
    ".attention.wqkv.": ".self_attn.qkv.",
    ".attention.wo.": ".self_attn.o_proj.",
    ".feed_forward.w1.": ".mlp.gate_proj.",
    ".feed_forward.w3.": ".mlp.up_proj.",
    ".feed_forward.w2.": ".mlp.down_proj.",
    ".attention_norm.": ".input_layernorm.",
    ".ffn_norm.": ".post_attention_layernorm.",
}
HEADS = {"language_model.output.weight", "language_model.lm_head.weight"}  # InternLM2's, Qwen2's

# The system message of the original's template internvl2_5
SYSTEM = (
    "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    + SYSTEM
    + "<|im_end|>\n{% endif %}{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def convert(src: Path, dst: Path):
    """Convert a directory of the original format to one of transformers' format.

    Raises:
        InputError: if src is not of the original format, or not complete; if dst exists
    """
    # Check all that can be checked from config.json and the headers
    raw = read_config(src)
    headers = read_headers(src)
    entries = {}
    for header in headers.values():
        entries |= header
    has_head = not HEADS.isdisjoint(entries)
    tied = bool(raw["llm_config"].get("tie_word_embeddings")) and not has_head
    dtype = next(iter(entries.values())).dtype
    config = convert_config(raw, tied, dtype)
    limits.check_attention(config, src / "config.json")
    check_tensors(src, headers, config)

    text_class = raw["llm_config"]["architectures"][0]
    with whole_directory(dst) as directory:
        convert_tokenizer(src, directory, text_class)
        config.save_pretrained(directory)
        make_generation_config(config, text_class).save_pretrained(directory)
        n_tensors = convert_shards(list(headers), directory, config.text_config)
    print(f"{dst}: {n_tensors} tensors in {len(headers)} files, {config.dtype}")


# ------------------------------------------------------------------------------
# config.json


def read_config(src: Path) -> dict:
    """Read the original config.json.

    Raises:
        InputError: if a key is missing, or if it describes something that is not converted
    """
    path = src / "config.json"
    [kind] = common.read_keys(path, "model_type")
    if kind == "internvl":
        raise common.InputError(f"{src}: unknown class {kind}; load_model reads it as it is")
    if kind != "internvl_chat":
        raise common.InputError(f"{src}: unknown class {kind}; internvl_chat is expected")
    parts = ("llm_config", "vision_config")
    options = ("ps_version", "template", "select_layer", "downsample_ratio")
    text, vision, *_ = common.read_keys(path, *parts, *options)
    raw = common.read_json(path)

    quantized = raw.get("quantization_config") or text.get("quantization_config")
    if quantized:
        raise common.InputError(
            f"{src}: quantized weights ({quantized.get('quant_method')}) are not read; "
            "use the bfloat16 checkpoint"
        )
    check_class(src, text, TEXT)
    check_class(src, vision, ["InternVisionModel"])
    for key, known in (("ps_version", "v2"), ("template", "internvl2_5")):
        if raw[key] != known:
            raise common.InputError(f"{src}: {key} {raw[key]} is not converted, only {known}")

    required = {"llm_config": (*TEXT_KEYS, "rope_theta"), "vision_config": VISION_KEYS}
    for part, keys in required.items():
        for key in keys:
            if key not in raw[part]:
                raise common.InputError(f"{path}: {part} has no key {key!r}")
    return raw


def check_class(src: Path, part: dict, known):
    """Raise InputError if the class of a part of config.json is not one of the known classes."""
    [name, *_] = part.get("architectures") or [None]
    if name not in known:
        raise common.InputError(f"{src}: unknown class {name}; known are {' and '.join(known)}")


def convert_config(raw: dict, tied: bool, dtype: torch.dtype):
    """Convert the original config.json to an InternVLConfig.

    Args:
        tied: the files contain no head, which is the embedding
        dtype: of the weights
    """
    vision = raw["vision_config"]
    image_size = raw.get("force_image_size") or vision["image_size"]
    vision_config = {new: vision[old] for old, new in VISION_KEYS.items()}
    vision_config |= {"image_size": image_size, "use_mean_pooling": True}

    n_patches = (image_size // vision["patch_size"]) ** 2
    n_visual_tokens = int(n_patches * raw["downsample_ratio"] ** 2)  # of one frame
    text_class = raw["llm_config"]["architectures"][0]
    return transformers.InternVLConfig(
        text_config=convert_text_config(raw["llm_config"], tied),
        vision_config=vision_config,
        image_token_id=TEXT[text_class].ids["<IMG_CONTEXT>"],
        downsample_ratio=raw["downsample_ratio"],
        image_seq_length=n_visual_tokens,
        vision_feature_layer=raw["select_layer"],
        tie_word_embeddings=tied,
        dtype=dtype,
        architectures=["InternVLForConditionalGeneration"],
    )


def make_generation_config(config, text_class: str):
    """Make a generation_config.json that ends an answer where the chat template ends it.

    Without one, other programs take eos_token_id of config.json. InternLM2's is </s>, which no
    answer has, so that they would never stop.
    """
    return transformers.GenerationConfig(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=TEXT[text_class].ids[vlm.END_OF_TURN],
        pad_token_id=config.text_config.pad_token_id,
    )


def convert_text_config(text: dict, tied: bool) -> dict:
    """Convert the original llm_config to transformers' text_config."""
    scaling = dict(text.get("rope_scaling") or {})
    rope = {"rope_type": scaling.pop("type", "default")}
    rope |= scaling
    rope["rope_theta"] = float(text["rope_theta"])

    model_type = TEXT[text["architectures"][0]].model_type
    kept = (*TEXT_KEYS, *TEXT_OPTIONS)
    text_config = {key: value for key, value in text.items() if key in kept}
    text_config["model_type"] = model_type
    text_config["tie_word_embeddings"] = tied
    text_config["rope_parameters"] = rope
    if model_type == "llama":
        text_config["attention_bias"] = text.get("bias", True)  # InternLM2's default
    return text_config


# ------------------------------------------------------------------------------
# Tensors


def convert_tensor(name: str, tensor, text) -> dict:
    """Convert a tensor of the original -> {its name as save_pretrained writes it: tensor}.

    A joint q, k, v tensor becomes three tensors. Rows keep their order.

    Args:
        text: transformers' config of the language model
    """
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    if ".qkv." not in name:
        return {name: tensor}

    if ".self_attn." in name:
        parts = split_heads(tensor, text)
    else:  # the vision tower: a block of rows each for q, k and v
        parts = tensor.unflatten(0, (3, -1)).unbind()  # (3 rows, ...) -> three of (rows, ...)
    converted = {}
    for letter, part in zip("qkv", parts, strict=True):
        converted[name.replace(".qkv.", f".{letter}_proj.")] = part
    return converted


def split_heads(tensor, text) -> list:
    """Split InternLM2's joint q, k, v tensor, whose rows are ordered by key-value head.

    K key-value heads have g query heads each; D is the head size. Each key-value head has g D rows
    of its query heads, then D rows of its key and D rows of its value.

    Args:
        tensor: (K (g + 2) D, ...)

    Returns:
        q (K g D, ...), k (K D, ...), v (K D, ...)
    """
    head_size = text.hidden_size // text.num_attention_heads
    # (K, g + 2, D, ...)
    heads = tensor.unflatten(0, (text.num_key_value_heads, -1, head_size))
    split = []
    for part in (heads[:, :-2], heads[:, -2], heads[:, -1]):
        rows = part.flatten(0, -tensor.dim())  # as many dimensions as the tensor had
        split.append(rows.contiguous())
    return split


def check_tensors(src: Path, headers: dict, config):
    """Check that each tensor of transformers' class comes from one tensor of the files.

    Raises:
        InputError: names the first tensor that is of another shape, unknown, duplicate or missing
    """
    wanted, rename = native_tensors(config)  # what is found is deleted from wanted
    for file, header in headers.items():
        for key, entry in header.items():
            try:
                tensor = torch.empty(entry.shape, device="meta")
                parts = convert_tensor(key, tensor, config.text_config)
            except RuntimeError:
                parts = None  # a joint q, k, v tensor that cannot be split
            if parts is None or not fit(parts, wanted, rename):
                raise common.InputError(
                    f"{file}: {key} has the shape {tuple(entry.shape)}, "
                    "which does not fit config.json"
                )
            for name in map(rename, parts):
                if name not in wanted:
                    raise common.InputError(
                        f"{file}: {key} (as {name}) is not a tensor of this model, or a duplicate"
                    )
                del wanted[name]

    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    if wanted:
        place = next(iter(headers)) if len(headers) == 1 else src
        raise common.InputError(f"{place}: there are no weights for {next(iter(wanted))}")


def fit(parts: dict, wanted: dict, rename) -> bool:
    """Tell whether tensors have the shapes that are wanted; unknown tensors have any shape."""
    for name, part in parts.items():
        if wanted.get(rename(name), part.shape) != part.shape:
            return False
    return True


def convert_shards(files: list[Path], directory: Path, text) -> int:
    """Convert files one by one, and write their index if there are several.

    Returns:
        the number of tensors written
    """
    n_bytes = 0
    file_names = {}  # of each tensor
    for number, file in enumerate(common.progress(files, unit="shard", disable=len(files) < 2), 1):
        file_name = "model.safetensors"
        if len(files) > 1:
            file_name = f"model-{number:05}-of-{len(files):05}.safetensors"
        sizes = convert_shard(file, directory / file_name, text)
        file_names |= dict.fromkeys(sizes, file_name)
        n_bytes += sum(sizes.values())

    if len(files) > 1:
        index = {"metadata": {"total_size": n_bytes}, "weight_map": file_names}
        common.write_json(directory / "model.safetensors.index.json", index)
    return len(file_names)


def convert_shard(src: Path, dst: Path, text) -> dict[str, int]:
    """Convert one file -> {name of a tensor in the new file: its size in bytes}."""
    shard = {}
    # Files are mapped, not read: a tensor that is not split goes from file to file
    with safetensors.safe_open(src, framework="pt") as tensors:
        for key in tensors.keys():
            shard |= convert_tensor(key, tensors.get_tensor(key), text)
        safetensors.torch.save_file(shard, dst, {"format": "pt"})
    return {name: tensor.nbytes for name, tensor in shard.items()}


# ------------------------------------------------------------------------------
# The tokenizer

SAMPLE = f"why  {SYSTEM}\n"  # a text that a tokenizer with other settings encodes differently


def convert_tokenizer(src: Path, dst: Path, text_class: str):
    """Write the tokenizer so that it needs no remote code, with the original's ids and prompt.

    Raises:
        InputError: if it cannot be read, or if an id would differ from the original's
    """
    text_model = TEXT[text_class]
    names = ("tokenizer.model", "vocab.json", "tokenizer.json")
    if not any((src / name).exists() for name in names):
        print(
            f"warning: {src} has no tokenizer files; {dst.name} has none, and its image_token_id "
            f"{text_model.ids['<IMG_CONTEXT>']} is the published models'"
        )
        return

    pieces = src / "tokenizer.model"
    sample_ids = encode_sample(pieces) if pieces.exists() else None

    if text_class == "InternLM2ForCausalLM":
        # Not LlamaTokenizer: this class gives the pieces [UNUSED_TOKEN_...] their names
        # (<|im_end|>, ...), and adds no space before a text
        tokenizer_class = transformers.TokenizersBackend
    else:
        tokenizer_class = transformers.Qwen2Tokenizer
    tokenizer = tokenizer_class.from_pretrained(src)
    tokenizer.init_kwargs.pop("auto_map", None)  # it names the remote code
    tokenizer.chat_template = text_model.chat_start + CHAT_TEMPLATE
    tokenizer.save_pretrained(dst)

    tokenizer = vlm.load_tokenizer(dst)
    check_ids(src, tokenizer, read_declared_ids(src) | text_model.ids)
    if sample_ids and sample_ids != tokenizer.encode(SAMPLE, add_special_tokens=False):
        raise common.InputError(
            f"{pieces}: sentencepiece gives other ids "
            "(add_dummy_prefix, remove_extra_whitespaces?); InternLM2's has neither"
        )


def encode_sample(pieces: Path) -> list[int]:
    """Encode SAMPLE with sentencepiece itself, from a tokenizer.model."""
    try:
        importlib.import_module("google.protobuf")  # transformers needs it to read this file
        sentencepiece = importlib.import_module("sentencepiece")
        return sentencepiece.SentencePieceProcessor(model_file=str(pieces)).encode(SAMPLE)
    except ImportError as error:
        raise common.InputError(
            f"{pieces}: two packages are needed to read it: pip install sentencepiece protobuf"
        ) from error
    except RuntimeError as error:
        raise common.InputError(
            f"{pieces}: not a complete sentencepiece model; download it again"
        ) from error


def read_declared_ids(src: Path) -> dict[str, int]:
    """Read the added tokens and their ids from tokenizer_config.json, if there is one."""
    path = src / "tokenizer_config.json"
    if not path.exists():
        return {}
    declared = common.read_json(path).get("added_tokens_decoder", {})
    return {token["content"]: int(id) for id, token in declared.items()}


def check_ids(src: Path, tokenizer, ids: dict[str, int]):
    """Raise InputError if the tokenizer gives a token another id than the original."""
    for token, id in ids.items():
        actual = tokenizer.convert_tokens_to_ids(token)
        if actual != id:
            raise common.InputError(f"{src}: {token} becomes {actual}, in the original it is {id}")


# ------------------------------------------------------------------------------
# The command


def main():
    """Convert the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument(
        "src", metavar="SRC", type=Path, help="directory of the original checkpoint"
    )
    parser.add_argument(
        "dst", metavar="DST", type=Path, help="directory to write, which must not exist yet"
    )
    args = parser.parse_args()
    convert(args.src, args.dst)


if __name__ == "__main__":
    common.run(main)
