"""Converted InternVL2.5 checkpoints give their authors' logits and ids; incomplete ones are refused.

tests/fixtures/ contains two tiny, random checkpoints of the original format, with logits that OpenGVLab's own classes
computed from them.
"""

import io
import itertools
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForImageTextToText

import common
import dpo
import vlm
from tools import convert

KINDS = ("internlm2", "qwen2")
CONTEXT = 5  # the id of <IMG_CONTEXT> in the fixtures
WEIGHTS = "model.safetensors"


def fixture(kind):
    return Path(__file__).parent / "fixtures" / f"internvl2_5-tiny-{kind}-vit300m"


def copy_fixture(kind, tmp_path):
    """Copy a fixture to `original`, where it can be changed."""
    return Path(shutil.copytree(fixture(kind), tmp_path / "original"))


def edit_config(directory, part=None, **values):
    """Set values in config.json, or in a part of it such as llm_config."""
    config = json.loads((directory / "config.json").read_text())
    edited = config[part] if part else config
    edited.update(values)
    (directory / "config.json").write_text(json.dumps(config))


def edit_tensors(directory, edit, name=WEIGHTS):
    """Apply a function to the dict of a file's tensors, and write the file again."""
    tensors = safetensors.torch.load_file(directory / name)
    edit(tensors)
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, directory / name)


@pytest.fixture(scope="module", params=KINDS)
def converted(request, tmp_path_factory):
    """(directory in transformers' layout, oracle: ids, pixels and logits) of each fixture."""
    directory = tmp_path_factory.mktemp(request.param) / "model"
    convert.convert(fixture(request.param), directory)
    edit_config(directory, image_token_id=CONTEXT)  # the fixtures have no tokenizer that says so
    return directory, np.load(fixture(request.param) / "expected.npz")


@torch.no_grad()
def logits_of(model, oracle, n):
    ids = torch.from_numpy(oracle[f"ids_{n}"])
    pixels = torch.from_numpy(oracle[f"pixel_values_{n}"])
    return model(ids, pixel_values=pixels).logits


def test_the_logits_are_those_of_the_original_authors(converted):
    directory, oracle = converted
    model = vlm.load_model(directory, ["cpu"])
    # 120 tokens are more than max_position_embeddings: InternLM2 changes its rotary frequencies there, and back
    for n in (20, 120, 20):
        np.testing.assert_allclose(logits_of(model, oracle, n), oracle[f"logits_{n}"], rtol=0, atol=5e-5)


def test_a_converted_model_can_be_saved_and_loaded_by_transformers(converted, tmp_path):
    directory, oracle = converted
    model = vlm.load_model(directory, ["cpu"])
    model.save_pretrained(tmp_path)
    with (
        safetensors.safe_open(directory / WEIGHTS, "pt") as ours,
        safetensors.safe_open(tmp_path / WEIGHTS, "pt") as theirs,
    ):
        assert sorted(ours.keys()) == sorted(theirs.keys())
    for path in (directory, tmp_path):
        again = AutoModelForImageTextToText.from_pretrained(path).eval()
        assert torch.equal(logits_of(again, oracle, 20), logits_of(model, oracle, 20))


def test_rows_of_a_joint_tensor_are_split_by_hand():
    # InternLM2, 2 key-value heads with 2 query heads each, head size 1: rows q q k v | q q k v
    text = transformers.LlamaConfig(hidden_size=4, num_attention_heads=4, num_key_value_heads=2)
    layer = "language_model.model.layers.0."
    rows = torch.arange(8.0)[:, None]
    parts = convert.convert_tensor(f"{layer}attention.wqkv.weight", rows, text)
    assert {name: part[:, 0].tolist() for name, part in parts.items()} == {
        f"{layer}self_attn.q_proj.weight": [0, 1, 4, 5],
        f"{layer}self_attn.k_proj.weight": [2, 6],
        f"{layer}self_attn.v_proj.weight": [3, 7],
    }

    # The vision tower: blocks q | k | v
    parts = convert.convert_tensor("vision_model.encoder.layers.0.attn.qkv.bias", torch.arange(6.0), text)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "vision_tower.encoder.layer.0.attention.q_proj.bias": [0, 1],
        "vision_tower.encoder.layer.0.attention.k_proj.bias": [2, 3],
        "vision_tower.encoder.layer.0.attention.v_proj.bias": [4, 5],
    }


# ------------------------------------------------------------------------------
# The vision tower of 26B, 38B and 78B


def keep_vit_300m(directory):
    """Leave a fixture's vision tower as it is."""


def make_vit_6b(directory):
    """Make a fixture's vision tower like ViT-6B.

    It has RMS norms, no bias at q, k and v, and norms of q and k over all heads together.
    """

    def edit(tensors):
        for key in list(tensors):
            if re.search(r"(norm\d|qkv)\.bias$", key):
                del tensors[key]
        for layer, letter in itertools.product(range(2), "qk"):
            generator = torch.Generator().manual_seed(2 * layer + "qk".index(letter))
            weight = torch.rand(32, generator=generator) + 0.5
            tensors[f"vision_model.encoder.layers.{layer}.attn.{letter}_norm.weight"] = weight

    edit_config(directory, "vision_config", norm_type="rms_norm", qkv_bias=False, qk_normalization=True)
    edit_tensors(directory, edit)


def original_vision(tensors, pixels, heads):
    """The original tower, written from its description: (F, 3, 28, 28) -> (F, 17, 32)."""

    def norm(x, name):
        """A layer norm if there is a bias, else an RMS norm."""
        weight = tensors[f"{name}.weight"]
        if f"{name}.bias" in tensors:
            return F.layer_norm(x, weight.shape, weight, tensors[f"{name}.bias"], 1e-6)
        mean_square = (x * x).mean(-1, keepdim=True)
        return weight * x * (mean_square + 1e-6).rsqrt()

    def linear(x, name):
        return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def attend(x, layer):
        q, k, v = linear(x, f"{layer}attn.qkv").chunk(3, -1)
        if f"{layer}attn.q_norm.weight" in tensors:
            q = norm(q, f"{layer}attn.q_norm")
            k = norm(k, f"{layer}attn.k_norm")
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))  # (F, heads, 17, head size)
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        return linear(mixed.transpose(1, 2).flatten(2), f"{layer}attn.proj")

    stem = "vision_model.embeddings."
    kernel = tensors[f"{stem}patch_embedding.weight"]
    patches = F.conv2d(pixels, kernel, tensors[f"{stem}patch_embedding.bias"], stride=7)  # (F, 32, 4, 4)
    classes = tensors[f"{stem}class_embedding"].expand(len(pixels), -1, -1)  # (F, 1, 32)
    x = torch.cat([classes, patches.flatten(2).mT], 1) + tensors[f"{stem}position_embedding"]
    for layer in ("vision_model.encoder.layers.0.", "vision_model.encoder.layers.1."):
        x = x + tensors[f"{layer}ls1"] * attend(norm(x, f"{layer}norm1"), layer)
        hidden = F.gelu(linear(norm(x, f"{layer}norm2"), f"{layer}mlp.fc1"))
        x = x + tensors[f"{layer}ls2"] * linear(hidden, f"{layer}mlp.fc2")
    return x


@pytest.mark.parametrize("change", [keep_vit_300m, make_vit_6b], ids=["vit300m", "vit6b"])
def test_both_kinds_of_vision_towers_are_converted(change, tmp_path):
    """There is no 6B fixture. But the function above agrees with the 300M one, whose logits are the authors', and so
    it can stand for both."""
    original = copy_fixture("qwen2", tmp_path)
    change(original)
    convert.convert(original, tmp_path / "model")
    pixels = torch.from_numpy(np.load(fixture("qwen2") / "expected.npz")["pixel_values_20"])
    expected = original_vision(safetensors.torch.load_file(original / WEIGHTS), pixels, heads=2)
    model = vlm.load_model(tmp_path / "model", ["cpu"])
    with torch.no_grad():
        actual = model.model.vision_tower(pixels).last_hidden_state
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


# ------------------------------------------------------------------------------
# Shards, types, tied heads

FIRST_SHARD = "model-00001-of-00002.safetensors"
SECOND_SHARD = "model-00002-of-00002.safetensors"


def split_in_two(directory):
    """Write the same checkpoint as two shards with an index; the second contains the layers' weights."""
    tensors = safetensors.torch.load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    names = {key: SECOND_SHARD if "layers" in key else FIRST_SHARD for key in tensors}
    for name in (FIRST_SHARD, SECOND_SHARD):
        shard = {key: tensor for key, tensor in tensors.items() if names[key] == name}
        safetensors.torch.save_file(shard, directory / name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def to_bfloat16(tensors):
    for key, tensor in tensors.items():
        tensors[key] = tensor.bfloat16()


def test_shards_stay_shards_and_bfloat16_stays_bfloat16(tmp_path):
    one = copy_fixture("internlm2", tmp_path)
    edit_tensors(one, to_bfloat16)
    two = Path(shutil.copytree(one, tmp_path / "two"))
    split_in_two(two)
    convert.convert(one, tmp_path / "from-one")
    convert.convert(two, tmp_path / "from-two")

    whole = safetensors.torch.load_file(tmp_path / "from-one" / WEIGHTS)
    index = json.loads((tmp_path / "from-two" / "model.safetensors.index.json").read_text())
    shards = [safetensors.torch.load_file(file) for file in sorted((tmp_path / "from-two").glob("*.safetensors"))]
    assert len(shards) == 2
    assert {key for shard in shards for key in shard} == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for shard in shards for tensor in shard.values())
    for key, tensor in itertools.chain(shards[0].items(), shards[1].items()):
        assert torch.equal(tensor, whole[key])
        assert tensor.dtype == torch.bfloat16
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "from-two").dtype == torch.bfloat16


def test_a_head_that_the_config_ties_to_the_embedding_needs_no_weights(tmp_path):
    original = copy_fixture("qwen2", tmp_path)
    edit_tensors(original, lambda tensors: tensors.pop("language_model.lm_head.weight"))
    with pytest.raises(common.InputError, match="no weights for lm_head.weight"):
        convert.convert(original, tmp_path / "model")

    edit_config(original, "llm_config", tie_word_embeddings=True)
    convert.convert(original, tmp_path / "model")
    ours = vlm.load_model(tmp_path / "model", ["cpu"])
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    for model in (ours, theirs):
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


# ------------------------------------------------------------------------------
# What is refused

QKV = "vision_model.encoder.layers.1.attn.qkv.weight"
WQKV = "language_model.model.layers.2.attention.wqkv.weight"


def check_refused(original, complaint):
    """Check that a directory is refused with this complaint, and that nothing is written beside it."""
    with pytest.raises(common.InputError, match=complaint):
        convert.convert(original, original.parent / "model")
    assert [path.name for path in original.parent.iterdir()] == ["original"]


@pytest.mark.parametrize(
    "part, values, complaint",
    [
        (None, {"ps_version": "v1"}, "ps_version v1"),
        (None, {"template": "phi3-chat"}, "template phi3-chat"),
        (None, {"model_type": "qwen2_vl"}, "unknown class qwen2_vl"),
        (None, {"model_type": "internvl"}, "load_model reads it as it is"),
        (None, {"vision_config": {"architectures": ["InternVisionModel"]}}, "vision_config has no key 'hidden_size'"),
        ("llm_config", {"architectures": ["Phi3ForCausalLM"]}, "unknown class Phi3ForCausalLM"),
        ("llm_config", {"quantization_config": {"quant_method": "awq"}}, "quantized weights .awq."),
        ("vision_config", {"architectures": ["SiglipVisionModel"]}, "unknown class SiglipVisionModel"),
    ],
)
def test_a_config_that_is_not_known_is_refused_and_nothing_is_written(part, values, complaint, tmp_path):
    original = copy_fixture("internlm2", tmp_path)
    edit_config(original, part, **values)
    check_refused(original, complaint)


def test_a_window_that_slides_is_refused_and_nothing_is_written(tmp_path):
    original = copy_fixture("qwen2", tmp_path)
    edit_config(original, "llm_config", use_sliding_window=True, sliding_window=32, max_window_layers=1)
    check_refused(original, "config.json: its language model .qwen2. has layers with sliding_attention")


def quantize(tensors):
    tensors[WQKV] = torch.zeros(96, 64, dtype=torch.int8)


def lose_a_tensor(tensors):
    del tensors[QKV]


def add_a_stranger(tensors):
    tensors["stranger"] = torch.zeros(1)


def cut_a_column(tensors):
    tensors[QKV] = tensors[QKV][:, :-1]


def cut_a_row(tensors):
    tensors[WQKV] = tensors[WQKV][:-1]


def cut_a_head(tensors):
    tensors[WQKV] = tensors[WQKV][:-16]


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (quantize, f"model.safetensors: {WQKV} has the type I8; .* not quantized"),
        (lose_a_tensor, "model.safetensors: there are no weights for .*layer.1.attention.q_proj.weight"),
        (add_a_stranger, "model.safetensors: stranger"),
        (cut_a_column, rf"model.safetensors: {QKV} has the shape \(96, 31\)"),
        (cut_a_row, rf"model.safetensors: {WQKV} has the shape \(95, 64\)"),
        (cut_a_head, rf"model.safetensors: {WQKV} has the shape \(80, 64\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_nothing_is_written(damage, complaint, tmp_path):
    original = copy_fixture("internlm2", tmp_path)
    edit_tensors(original, damage)
    check_refused(original, complaint)


def pickle_the_weights(directory):
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")


def delete_the_weights(directory):
    (directory / WEIGHTS).unlink()


def damage_the_config(directory):
    (directory / "config.json").write_text("{")


def cut_off(directory):
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def leave_a_git_lfs_pointer(directory):
    (directory / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")


def lose_a_shard(directory):
    split_in_two(directory)
    (directory / SECOND_SHARD).unlink()


def lose_a_tensor_of_a_shard(directory):
    split_in_two(directory)
    edit_tensors(directory, lambda tensors: tensors.pop("mlp1.0.bias"), FIRST_SHARD)


def duplicate_a_tensor(directory):
    split_in_two(directory)
    norm = {"language_model.model.norm.weight": torch.zeros(64)}
    edit_tensors(directory, lambda tensors: tensors.update(norm), SECOND_SHARD)


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (pickle_the_weights, "pytorch_model.bin: pickled weights"),
        (delete_the_weights, "neither model.safetensors nor model.safetensors.index.json"),
        (damage_the_config, "config.json: not JSON in UTF-8"),
        (cut_off, "model.safetensors: .* is cut off"),
        (leave_a_git_lfs_pointer, "model.safetensors: not a complete safetensors file"),
        (lose_a_shard, f"{SECOND_SHARD} is missing"),
        (lose_a_tensor_of_a_shard, f"{FIRST_SHARD}: mlp1.0.bias is missing"),
        (duplicate_a_tensor, f"{SECOND_SHARD}: language_model.model.norm.weight .* a duplicate"),
    ],
)
def test_files_that_are_damaged_or_missing_are_refused_and_nothing_is_written(damage, complaint, tmp_path):
    original = copy_fixture("internlm2", tmp_path)
    damage(original)
    check_refused(original, complaint)


def test_a_model_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full_disk)
        with pytest.raises(OSError, match="No space"):
            convert.convert(fixture("qwen2"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []

    convert.convert(fixture("qwen2"), tmp_path / "model")
    with pytest.raises(common.InputError, match="exists already"):
        convert.convert(fixture("qwen2"), tmp_path / "model")


# ------------------------------------------------------------------------------
# Tokenizers

SPECIALS = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
CORPUS = [
    "Which way does the red square move?\n",
    "It moves left, then it stops.\n",
    "Why does it stop? Because the blue circle hits it.\n",
    "  Two  spaces, 12 squares, a 你好 and a 王.\n",
] * 20
QUESTIONS = [
    "why does it move?",
    "Which  way?\nSay it in short.",
    "12?",
    "'s",
    '"it", (it)',
    "你好",
    "王",
    "émigré 😀?",
    " a space before",
]
SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"


def write_tokenizer_config(directory, ids, **more):
    """Write tokenizer_config.json like the original's: it declares the ids of all special tokens."""
    flags = ("lstrip", "rstrip", "normalized", "single_word")
    declared = {}
    for token, id in ids.items():
        declared[str(id)] = {"content": token, "special": True, **dict.fromkeys(flags, False)}
    (directory / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": declared, **more}))
    (directory / "added_tokens.json").write_text(json.dumps(ids))


def train_sentencepiece(sentencepiece, add_dummy_prefix):
    """Train a model with InternLM2's settings: byte fallback, and spaces are kept."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=add_dummy_prefix,
        remove_extra_whitespaces=False,
        character_coverage=0.99,
        minloglevel=2,
    )
    return model.getvalue()


def make_sentencepiece(directory, add_dummy_prefix=False):
    """Write a tokenizer like InternLM2's.

    tokenizer.model ends with unnamed pieces, two of which are chat tokens now; the tokens of images come after the
    model's pieces. The class that tokenizer_config.json names exists only as remote code.

    Returns:
        ids: of the special tokens
        oracle: function from a text to its ids, as the remote code computes them
    """
    sentencepiece = pytest.importorskip(
        "sentencepiece", reason="sentencepiece is not installed (pip install sentencepiece protobuf)"
    )
    pytest.importorskip("google.protobuf", reason="protobuf is not installed")
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(train_sentencepiece(sentencepiece, add_dummy_prefix))
    for number in range(4):
        proto.pieces.add(piece=f"[UNUSED_TOKEN_{number}]", score=0, type=proto.SentencePiece.USER_DEFINED)
    (directory / "tokenizer.model").write_bytes(proto.SerializeToString())
    (directory / "tokenization_internlm2.py").write_text("raise SystemExit('remote code was run')")

    ids = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for number, token in enumerate(SPECIALS):
        ids[token] = len(proto.pieces) - 2 + number
    write_tokenizer_config(
        directory,
        ids,
        tokenizer_class="InternLM2Tokenizer",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        auto_map={"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
    )

    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    def oracle(text):
        any_special = "|".join(map(re.escape, ids))
        encoded = []
        for part in re.split(f"({any_special})", text):
            if part in ids:
                encoded.append(ids[part])
            elif part:
                encoded += processor.encode(part)
        return encoded

    return ids, oracle


def make_qwen(directory):
    """Write a tokenizer like Qwen2's: vocab.json and merges.txt, with the special tokens after them.

    Returns:
        as make_sentencepiece
    """
    whole = tokenizers.Tokenizer(tokenizers.models.BPE())
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    words = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    letters = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([words, letters])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    whole.train_from_iterator(CORPUS, trainer)
    whole.model.save(str(directory))

    first = whole.get_vocab_size()
    ids = {token: first + number for number, token in enumerate(["<|endoftext|>", *SPECIALS])}
    whole.add_special_tokens(list(ids))
    write_tokenizer_config(
        directory, ids, tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )

    def oracle(text):
        return whole.encode(text).ids

    return ids, oracle


def convert_with_tokenizer(kind, make, tmp_path, monkeypatch):
    """Convert a fixture with a tokenizer of its own, whose ids take the place of the published ones -> its oracle."""
    original = copy_fixture(kind, tmp_path)
    ids, oracle = make(original)
    text_class = {"internlm2": "InternLM2ForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]
    published = {token: ids[token] for token in ("<|im_end|>", "<IMG_CONTEXT>")}
    monkeypatch.setitem(convert.TEXT, text_class, convert.TEXT[text_class]._replace(ids=published))
    convert.convert(original, tmp_path / "model")
    return oracle


@pytest.mark.parametrize("kind, make", [("internlm2", make_sentencepiece), ("qwen2", make_qwen)], ids=KINDS)
def test_ids_are_the_originals_and_parts_tokenized_apart_equal_the_whole(kind, make, tmp_path, monkeypatch):
    oracle = convert_with_tokenizer(kind, make, tmp_path, monkeypatch)
    tokenizer = vlm.load_tokenizer(tmp_path / "model")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "model")
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == config.image_token_id
    assert "auto_map" not in (tmp_path / "model" / "tokenizer_config.json").read_text()  # it would name remote code

    start = "<s>" if kind == "internlm2" else ""
    frames = "".join(f"Frame{n}: <img>{'<IMG_CONTEXT>' * 4}</img>\n" for n in (1, 2))
    prefix_ids = vlm.encode_prefix(tokenizer, config, 2)
    for question, answer in itertools.product(QUESTIONS, QUESTIONS):
        whole = (
            f"{start}<|im_start|>system\n{SYSTEM}<|im_end|>\n"
            f"<|im_start|>user\n{frames}{question}<|im_end|>\n"
            f"<|im_start|>assistant\n{answer}<|im_end|>"
        )
        prompt_ids, answer_ids = vlm.encode_branch(tokenizer, question, answer)
        ids = prefix_ids + prompt_ids + answer_ids
        assert ids == tokenizer.encode(whole, add_special_tokens=False) == oracle(whole), (question, answer)
        assert tokenizer.decode(answer_ids, skip_special_tokens=True) == answer


def test_a_system_message_of_ones_own_replaces_the_originals(tmp_path, monkeypatch):
    convert_with_tokenizer("qwen2", make_qwen, tmp_path, monkeypatch)
    tokenizer = vlm.load_tokenizer(tmp_path / "model")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_other_ids_than_the_published_ones_are_refused(tmp_path):
    original = copy_fixture("qwen2", tmp_path)
    ids, _ = make_qwen(original)
    check_refused(original, rf"<\|im_end\|> becomes {ids['<|im_end|>']}, in the original it is 151645")


def test_declared_ids_that_do_not_come_out_are_refused(tmp_path, monkeypatch):
    def make_with_wrong_id(directory):
        ids, oracle = make_qwen(directory)
        write_tokenizer_config(directory, ids | {"<img>": 7}, tokenizer_class="Qwen2Tokenizer")
        return ids, oracle

    with pytest.raises(common.InputError, match=r"<\|endoftext\|> becomes .*, in the original it is"):
        convert_with_tokenizer("qwen2", make_with_wrong_id, tmp_path, monkeypatch)


def test_a_tokenizer_that_adds_a_space_before_every_text_is_refused(tmp_path, monkeypatch):
    """Then 'why' after a video would be other tokens than 'why' alone. InternLM2's model has no such flag."""

    def make_with_prefix(directory):
        return make_sentencepiece(directory, add_dummy_prefix=True)

    with pytest.raises(common.InputError, match="add_dummy_prefix"):
        convert_with_tokenizer("internlm2", make_with_prefix, tmp_path, monkeypatch)


def test_without_sentencepiece_the_message_says_what_to_install(tmp_path, monkeypatch):
    original = copy_fixture("internlm2", tmp_path)
    (original / "tokenizer.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    check_refused(original, "pip install sentencepiece protobuf")


def test_an_incomplete_tokenizer_model_is_refused(tmp_path):
    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    original = copy_fixture("internlm2", tmp_path)
    (original / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1")
    check_refused(original, "tokenizer.model: not a complete sentencepiece model")


def test_without_tokenizer_files_there_is_a_warning(tmp_path, capsys):
    convert.convert(fixture("qwen2"), tmp_path / "model")
    printed = capsys.readouterr().out
    assert "warning" in printed
    assert "no tokenizer files" in printed
    assert "151667" in printed


@pytest.mark.parametrize("kind, end", [("internlm2", 92542), ("qwen2", 151645)])
def test_other_programs_end_an_answer_where_the_chat_ends_it(kind, end, tmp_path):
    """The original config.json of InternLM2 ends it with </s>, 2, which no answer has."""
    original = copy_fixture(kind, tmp_path)
    edit_config(original, "llm_config", eos_token_id=2)
    convert.convert(original, tmp_path / "model")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert loaded.generation_config.eos_token_id == end


# ------------------------------------------------------------------------------
# A converted model runs


@pytest.fixture
def letters():
    """A tokenizer of single characters, for the fixtures' 200 ids, with <IMG_CONTEXT> where they have it."""
    specials = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>", "<img>", "</img>"]
    tokens = [*specials, "\n", *map(chr, range(32, 127))]
    ids = {token: id for id, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(ids, [], unk_token="<unk>", fuse_unk=True))
    backend.add_special_tokens(specials)
    tokenizer = transformers.TokenizersBackend(tokenizer_object=backend, unk_token="<unk>")
    tokenizer.chat_template = convert.CHAT_TEMPLATE
    return tokenizer


@pytest.fixture
def roomy(converted, tmp_path):
    """A converted model that takes prompts of more than 64 tokens."""
    shutil.copytree(converted[0], tmp_path / "model")
    edit_config(tmp_path / "model", "text_config", max_position_embeddings=512)
    return vlm.load_model(tmp_path / "model", ["cpu"])


@torch.no_grad()
def test_decoding_gives_the_likeliest_tokens_as_without_a_cache(roomy, letters, frames):
    video = vlm.Video(roomy, letters, frames[:2])
    prompts = ["why?", "which way does it move?"]
    [answers] = vlm.decode(roomy, letters, [video], [prompts], max_new_tokens=6)
    for prompt, (answer, _) in zip(prompts, answers, strict=True):
        prompt_ids, _ = vlm.encode_branch(letters, prompt)
        ids = torch.cat([video.ids, torch.tensor([prompt_ids])], 1)
        for _ in range(6):
            logits = roomy(ids, **video.inputs).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        assert answer == letters.decode(ids[0, -6:], skip_special_tokens=True).strip()


def test_one_step_of_dpo_lowers_the_loss_from_ln_2(roomy, letters, frames):
    video = vlm.Video(roomy, letters, frames[:2])
    pairs = [
        {"prompt": "why?", "chosen": "it was hit.", "rejected": "it moves by itself."},
        {"prompt": "where?", "chosen": "left.", "rejected": "right."},
    ]
    optimizer = torch.optim.AdamW(dpo.freeze_weights(roomy), 1e-3)

    sums, _ = dpo.pair_logps(roomy, letters, video, pairs)
    reference = sums.detach()
    losses, *_ = dpo.dpo_loss(*sums, *reference, beta=0.1)
    assert losses.mean().item() == pytest.approx(math.log(2))
    losses.mean().backward()
    optimizer.step()

    sums, _ = dpo.pair_logps(roomy, letters, video, pairs)
    losses_after, *_ = dpo.dpo_loss(*sums, *reference, beta=0.1)
    assert losses_after.mean() < losses.mean()
