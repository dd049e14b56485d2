"""Turns OpenGVLab's original InternVL2.5 checkpoints (1B to 78B; VideoSAVi's published weights are of this kind) into transformers' own layout.

    python -m tools.convert InternVL2_5-8B InternVL2_5-8B-native

reads    a directory: config.json, *.safetensors (with model.safetensors.index.json where there are several), the tokenizer's files
writes   a directory that load_model and transformers read without remote code: as many shards, of the same types, and a tokenizer
         whose chat template holds the original system message. It is there whole or not at all.

Everything is checked before anything is written; then shard by shard is read, renamed and written, in memory of about one shard.
The tokenizer of InternLM2 (2B, 8B, 26B) takes two packages that nothing else here needs: pip install sentencepiece protobuf
"""

import argparse
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import transformers
from tqdm import tqdm

import common
from tools.checkpoint import native_tensors, read_headers, whole_directory

# The original's text classes -> transformers' model_type, what the chat begins with, and ids that the weights were trained with
TEXT = {
    "InternLM2ForCausalLM": ("llama", "<s>", {"<|im_end|>": 92542, "<IMG_CONTEXT>": 92546}),
    "Qwen2ForCausalLM": ("qwen2", "", {"<|im_end|>": 151645, "<IMG_CONTEXT>": 151667}),
}
# What config.json must say of the text model, and may say; what it must say of the vision tower, and transformers' name for it
TEXT_KEYS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
]
TEXT_OPTIONS = [
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
]
VISION_KEYS = {
    key: key
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_channels",
        "image_size",
        "patch_size",
        "hidden_act",
        "norm_type",
        "layer_norm_eps",
        "attention_dropout",
        "initializer_range",
    ]
} | {
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
    "dropout": "projection_dropout",
    "initializer_factor": "layer_scale_init_value",
}
SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"  # of the template internvl2_5
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    + SYSTEM
    + "<|im_end|>\n{% endif %}{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Parts of a tensor's name, replaced one after the other. Qwen2's names are transformers' already.
RENAMED = {
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
    "mlp1.0.": "multi_modal_projector.layer_norm.",
    "mlp1.1.": "multi_modal_projector.linear_1.",
    "mlp1.3.": "multi_modal_projector.linear_2.",
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


def read_config(src):
    """The original config.json -> dict. InputError names what is not converted, and a key that is missing."""
    path = src / "config.json"
    if (kind := common.read_json(path, "model_type")[0]) != "internvl_chat":
        hint = "load_model reads it as it is" if kind == "internvl" else "internvl_chat is expected"
        raise common.InputError(f"{src}: unknown class {kind}; {hint}")
    text, vision, *_ = common.read_json(
        path,
        "llm_config",
        "vision_config",
        "ps_version",
        "template",
        "select_layer",
        "downsample_ratio",
    )
    raw = common.read_json(path)
    if quantized := raw.get("quantization_config") or text.get("quantization_config"):
        raise common.InputError(
            f"{src}: quantized weights ({quantized.get('quant_method')}) are not read; take the bfloat16 checkpoint"
        )
    for part, known in ((text, TEXT), (vision, ("InternVisionModel",))):
        if (name := (part.get("architectures") or [None])[0]) not in known:
            raise common.InputError(f"{src}: unknown class {name}; known are {' and '.join(known)}")
    for key, known in (("ps_version", "v2"), ("template", "internvl2_5")):
        if raw[key] != known:
            raise common.InputError(f"{src}: {key} {raw[key]} is not converted, only {known}")
    for part, keys in (("llm_config", [*TEXT_KEYS, "rope_theta"]), ("vision_config", VISION_KEYS)):
        if missing := [key for key in keys if key not in raw[part]]:
            raise common.InputError(f"{path}: {part} has no key {missing[0]!r}")
    return raw


def convert_config(raw, tied, dtype):
    """The original config.json -> InternVLConfig. tied: the files hold no head, for it is the embedding; dtype: of the weights."""
    text, vision = raw["llm_config"], raw["vision_config"]
    model_type, _, ids = TEXT[text["architectures"][0]]
    image_size, scaling = (
        raw.get("force_image_size") or vision["image_size"],
        dict(text.get("rope_scaling") or {}),
    )
    text_config = {
        key: value for key, value in text.items() if key in (*TEXT_KEYS, *TEXT_OPTIONS)
    } | {
        "model_type": model_type,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": scaling.pop("type", "default")}
        | scaling
        | {"rope_theta": float(text["rope_theta"])},
    }
    if model_type == "llama":
        text_config["attention_bias"] = text.get("bias", True)  # InternLM2's default
    vision_config = {new: vision[old] for old, new in VISION_KEYS.items()} | {
        "image_size": image_size,
        "use_mean_pooling": True,
    }
    return transformers.InternVLConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=ids["<IMG_CONTEXT>"],
        downsample_ratio=raw["downsample_ratio"],
        image_seq_length=int(
            (image_size // vision["patch_size"]) ** 2 * raw["downsample_ratio"] ** 2
        ),
        vision_feature_layer=raw["select_layer"],
        tie_word_embeddings=tied,
        dtype=dtype,
        architectures=["InternVLForConditionalGeneration"],
    )


def convert_tensor(name, tensor, text):
    """A tensor of the original -> {its name as save_pretrained writes it: tensor}; of a joint q, k, v three. Rows keep their order.
    InternLM2 joins them head by head: (kv heads, g query heads + key + value, head_dim) rows; the vision tower as three blocks.
    """
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    if ".qkv." not in name:
        return {name: tensor}
    if ".self_attn." in name:
        heads = tensor.unflatten(
            0, (text.num_key_value_heads, -1, text.hidden_size // text.num_attention_heads)
        )
        parts = [
            part.flatten(0, -tensor.dim()).contiguous()
            for part in (heads[:, :-2], heads[:, -2], heads[:, -1])
        ]
    else:
        parts = tensor.unflatten(0, (3, -1)).unbind()
    return {
        name.replace(".qkv.", f".{letter}_proj."): part
        for letter, part in zip("qkv", parts, strict=True)
    }


def check_tensors(src, headers, config):
    """Each tensor of the native class comes from one tensor of the files, and has its shape. InputError names the first that does not."""
    left, rename = native_tensors(config)
    for file, header in headers.items():
        for key, (_, shape) in header.items():
            try:
                parts = convert_tensor(key, torch.empty(shape, device="meta"), config.text_config)
                shapes = {rename(name): part.shape for name, part in parts.items()}
            except RuntimeError:  # a joint q, k, v that cannot be split
                shapes = None
            if shapes is None or any(
                left.get(name, shape) != shape for name, shape in shapes.items()
            ):
                raise common.InputError(
                    f"{file}: {key} has the shape {tuple(shape)}, which does not fit config.json"
                )
            if unknown := [name for name in shapes if left.pop(name, None) is None]:
                raise common.InputError(
                    f"{file}: {key} (as {unknown[0]}) is no tensor of this model, or stands twice"
                )
    if missing := [
        name for name in left if not (name == "lm_head.weight" and config.tie_word_embeddings)
    ]:
        raise common.InputError(
            f"{[*headers][0] if len(headers) == 1 else src}: there are no weights for {missing[0]}"
        )


def convert_tokenizer(src, dst, text_class):
    """Writes the tokenizer without remote code, with the original's ids and prompt. InputError where they would be others."""
    (_, begin, ids), pieces, own_ids, sample = (
        TEXT[text_class],
        src / "tokenizer.model",
        None,
        f"why  {SYSTEM}\n",
    )
    if not any(
        (src / name).exists() for name in ("tokenizer.model", "vocab.json", "tokenizer.json")
    ):
        print(
            f"warning: {src} has no tokenizer files; {dst.name} has none, and its image_token_id {ids['<IMG_CONTEXT>']} is the published models'"
        )
        return
    if pieces.exists():
        try:
            import google.protobuf  # noqa: F401
            import sentencepiece

            own_ids = sentencepiece.SentencePieceProcessor(model_file=str(pieces)).encode(sample)
        except ImportError as error:
            raise common.InputError(
                f"{pieces}: to read it takes two packages: pip install sentencepiece protobuf"
            ) from error
        except RuntimeError as error:
            raise common.InputError(
                f"{pieces}: no whole sentencepiece model; download it again"
            ) from error
    # TokenizersBackend, not LlamaTokenizer: it gives the pieces [UNUSED_TOKEN_...] their names (<|im_end|>, ...), and puts no space before a text
    tokenizer = (
        transformers.TokenizersBackend
        if text_class == "InternLM2ForCausalLM"
        else transformers.Qwen2Tokenizer
    ).from_pretrained(src)
    tokenizer.init_kwargs.pop("auto_map", None)  # it names the remote code
    tokenizer.chat_template = begin + CHAT_TEMPLATE
    tokenizer.save_pretrained(dst)
    tokenizer, path = common.load_tokenizer(dst), src / "tokenizer_config.json"
    declared = common.read_json(path).get("added_tokens_decoder", {}) if path.exists() else {}
    for token, id in ({token["content"]: int(id) for id, token in declared.items()} | ids).items():
        if tokenizer.convert_tokens_to_ids(token) != id:
            raise common.InputError(
                f"{src}: {token} becomes {tokenizer.convert_tokens_to_ids(token)}, in the original it is {id}"
            )
    if own_ids and own_ids != tokenizer.encode(sample, add_special_tokens=False):
        raise common.InputError(
            f"{pieces}: sentencepiece gives other ids (add_dummy_prefix, remove_extra_whitespaces?); InternLM2's has neither"
        )


def convert(src, dst):
    """A directory of the original format -> one of transformers' format. InputError where it is not one, or not whole."""
    raw, headers = read_config(src), read_headers(src)
    dtypes = {name: dtype for header in headers.values() for name, (dtype, _) in header.items()}
    tied = bool(raw["llm_config"].get("tie_word_embeddings")) and not {
        "language_model.output.weight",
        "language_model.lm_head.weight",
    } & {*dtypes}
    config = convert_config(raw, tied, next(iter(dtypes.values())))
    check_tensors(src, headers, config)
    with whole_directory(dst) as part:
        convert_tokenizer(src, part, raw["llm_config"]["architectures"][0])
        config.save_pretrained(part)
        index = {"metadata": {"total_size": 0}, "weight_map": {}}
        for number, file in enumerate(tqdm(headers, unit="shard", disable=len(headers) < 2), 1):
            name, shard = (
                f"model-{number:05}-of-{len(headers):05}.safetensors"
                if len(headers) > 1
                else "model.safetensors",
                {},
            )
            with safetensors.safe_open(
                file, framework="pt"
            ) as tensors:  # mapped, not read: what is not split goes from file to file
                for key in tensors.keys():
                    shard |= convert_tensor(key, tensors.get_tensor(key), config.text_config)
                safetensors.torch.save_file(shard, part / name, {"format": "pt"})
            index["weight_map"] |= dict.fromkeys(shard, name)
            index["metadata"]["total_size"] += sum(tensor.nbytes for tensor in shard.values())
        if len(headers) > 1:
            common.write_json(part / "model.safetensors.index.json", index)
    print(f"{dst}: {len(index['weight_map'])} tensors in {len(headers)} files, {config.dtype}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "src", metavar="SRC", type=Path, help="directory of the original checkpoint"
    )
    parser.add_argument("dst", metavar="DST", type=Path, help="directory to write, not there yet")
    args = parser.parse_args()
    convert(args.src, args.dst)


if __name__ == "__main__":
    common.run(main)
