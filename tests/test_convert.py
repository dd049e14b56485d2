"""InternVL2.5's original checkpoints, converted: its authors' logits and their tokenizer's ids come out; what is not whole is refused.

tests/fixtures/ holds two checkpoints of the original format, tiny and random, with logits that OpenGVLab's own classes computed.
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
from tools import convert

KINDS = ("internlm2", "qwen2")
CONTEXT = 5  # the id of <IMG_CONTEXT> in the fixtures


def fixture(kind):
    return Path(__file__).parent / "fixtures" / f"internvl2_5-tiny-{kind}-vit300m"


def edit_config(directory, part=None, **values):
    """Sets values in config.json, or in a part of it such as llm_config."""
    config = json.loads((directory / "config.json").read_text())
    (config[part] if part else config).update(values)
    (directory / "config.json").write_text(json.dumps(config))


def edit_tensors(directory, edit, name="model.safetensors"):
    tensors = safetensors.torch.load_file(directory / name)
    edit(tensors)
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, directory / name)


@pytest.fixture(scope="module", params=KINDS)
def converted(request, tmp_path_factory):
    """(directory in transformers' layout, oracle: ids, pixels and logits) of each fixture."""
    directory = tmp_path_factory.mktemp(request.param) / "model"
    convert.convert(fixture(request.param), directory)
    edit_config(directory, image_token_id=CONTEXT)  # the fixtures have no tokenizer that would say so
    return directory, np.load(fixture(request.param) / "expected.npz")


@torch.no_grad()
def logits_of(model, oracle, n):
    ids, pixels = (torch.from_numpy(oracle[f"{key}_{n}"]) for key in ("ids", "pixel_values"))
    return model(ids, pixel_values=pixels).logits


def test_the_logits_are_the_original_authors(converted):
    directory, oracle = converted
    model = common.load_model(directory, ["cpu"])
    for n in (
        20,
        120,
        20,
    ):  # 120 tokens are beyond max_position_embeddings: InternLM2 changes its rotary frequencies there, and back
        np.testing.assert_allclose(logits_of(model, oracle, n), oracle[f"logits_{n}"], rtol=0, atol=5e-5)


def test_converted_loaded_saved_and_loaded_by_transformers(converted, tmp_path):
    directory, oracle = converted
    model = common.load_model(directory, ["cpu"])
    model.save_pretrained(tmp_path)
    with (
        safetensors.safe_open(directory / "model.safetensors", "pt") as ours,
        safetensors.safe_open(tmp_path / "model.safetensors", "pt") as theirs,
    ):
        assert sorted(ours.keys()) == sorted(theirs.keys())
    for path in (directory, tmp_path):
        again = AutoModelForImageTextToText.from_pretrained(path).eval()
        assert torch.equal(logits_of(again, oracle, 20), logits_of(model, oracle, 20))


def test_joint_rows_are_split_by_hand():
    """InternLM2, 2 kv heads with 2 query heads each, head_dim 1: rows q q k v | q q k v. Vision: blocks q | k | v."""
    text = transformers.LlamaConfig(hidden_size=4, num_attention_heads=4, num_key_value_heads=2)
    rows = torch.arange(8.0)[:, None]
    parts = convert.convert_tensor("language_model.model.layers.0.attention.wqkv.weight", rows, text)
    assert {
        name.removeprefix("language_model.model.layers.0."): part[:, 0].tolist() for name, part in parts.items()
    } == {"self_attn.q_proj.weight": [0, 1, 4, 5], "self_attn.k_proj.weight": [2, 6], "self_attn.v_proj.weight": [3, 7]}
    parts = convert.convert_tensor("vision_model.encoder.layers.0.attn.qkv.bias", torch.arange(6.0), text)
    assert {name: part.tolist() for name, part in parts.items()} == {
        f"vision_tower.encoder.layer.0.attention.{letter}_proj.bias": values
        for letter, values in (("q", [0, 1]), ("k", [2, 3]), ("v", [4, 5]))
    }


# ---------------------------------------------------------------- the vision tower of the 26B, 38B and 78B
def like_vit_6b(directory):
    """Makes a fixture's vision tower like ViT-6B: RMS norms, no bias at q, k and v, and norms of q and k over all heads together."""

    def edit(tensors):
        for key in [key for key in tensors if re.search(r"(norm\d|qkv)\.bias$", key)]:
            del tensors[key]
        for layer, letter in itertools.product(range(2), "qk"):
            weight = torch.rand(32, generator=torch.Generator().manual_seed(2 * layer + "qk".index(letter))) + 0.5
            tensors[f"vision_model.encoder.layers.{layer}.attn.{letter}_norm.weight"] = weight

    edit_config(directory, "vision_config", norm_type="rms_norm", qkv_bias=False, qk_normalization=True)
    edit_tensors(directory, edit)


def original_vision(tensors, pixels, heads):
    """The original tower, written from its description: (F, 3, 28, 28) -> (F, 17, 32). Norms with a bias are layer norms."""

    def norm(x, name):
        weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
        return (
            weight * x * (x * x).mean(-1, keepdim=True).add(1e-6).rsqrt()
            if bias is None
            else F.layer_norm(x, weight.shape, weight, bias, 1e-6)
        )

    def linear(x, name):
        return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    stem = "vision_model.embeddings."
    patches = (
        F.conv2d(pixels, tensors[f"{stem}patch_embedding.weight"], tensors[f"{stem}patch_embedding.bias"], stride=7)
        .flatten(2)
        .mT
    )
    x = (
        torch.cat([tensors[f"{stem}class_embedding"].expand(len(pixels), -1, -1), patches], 1)
        + tensors[f"{stem}position_embedding"]
    )
    for stem in ("vision_model.encoder.layers.0.", "vision_model.encoder.layers.1."):
        q, k, v = linear(norm(x, f"{stem}norm1"), f"{stem}attn.qkv").chunk(3, -1)
        if f"{stem}attn.q_norm.weight" in tensors:
            q, k = norm(q, f"{stem}attn.q_norm"), norm(k, f"{stem}attn.k_norm")
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + tensors[f"{stem}ls1"] * linear(mixed.transpose(1, 2).flatten(2), f"{stem}attn.proj")
        x = x + tensors[f"{stem}ls2"] * linear(
            F.gelu(linear(norm(x, f"{stem}norm2"), f"{stem}mlp.fc1")), f"{stem}mlp.fc2"
        )
    return x


@pytest.mark.parametrize("change", [lambda directory: None, like_vit_6b], ids=["vit300m", "vit6b"])
def test_both_kinds_of_vision_towers(change, tmp_path):
    """There is no 6B fixture. But the function above agrees with the 300M one, whose logits are the authors', and so it can stand for both."""
    shutil.copytree(fixture("qwen2"), tmp_path / "original")
    change(tmp_path / "original")
    convert.convert(tmp_path / "original", tmp_path / "model")
    pixels = torch.from_numpy(np.load(fixture("qwen2") / "expected.npz")["pixel_values_20"])
    expected = original_vision(
        safetensors.torch.load_file(tmp_path / "original" / "model.safetensors"), pixels, heads=2
    )
    with torch.no_grad():
        actual = common.load_model(tmp_path / "model", ["cpu"]).model.vision_tower(pixels).last_hidden_state
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


# ---------------------------------------------------------------- shards, types, tied heads
def split_in_two(directory):
    """The same checkpoint in two shards with an index, the second one with the layers' weights."""
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    names = {key: f"model-0000{1 + ('layers' in key)}-of-00002.safetensors" for key in tensors}
    for name in {*names.values()}:
        safetensors.torch.save_file(
            {key: tensor for key, tensor in tensors.items() if names[key] == name}, directory / name
        )
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def test_shards_stay_shards_and_bfloat16_stays_bfloat16(tmp_path):
    shutil.copytree(fixture("internlm2"), tmp_path / "one")
    edit_tensors(
        tmp_path / "one", lambda tensors: tensors.update({key: tensor.bfloat16() for key, tensor in tensors.items()})
    )
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    split_in_two(tmp_path / "two")
    for name in ("one", "two"):
        convert.convert(tmp_path / name, tmp_path / f"{name}-native")
    index = json.loads((tmp_path / "two-native" / "model.safetensors.index.json").read_text())
    shards = [safetensors.torch.load_file(file) for file in sorted((tmp_path / "two-native").glob("*.safetensors"))]
    assert len(shards) == 2 and {key for shard in shards for key in shard} == {*index["weight_map"]}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for shard in shards for tensor in shard.values())
    whole = safetensors.torch.load_file(tmp_path / "one-native" / "model.safetensors")
    assert all(
        torch.equal(tensor, whole[key]) and tensor.dtype == torch.bfloat16
        for shard in shards
        for key, tensor in shard.items()
    )
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "two-native").dtype == torch.bfloat16


def test_a_tied_head(tmp_path):
    """Where llm_config ties the head to the embedding, and no file holds one, it is tied here too; else it would be missing."""
    shutil.copytree(fixture("qwen2"), tmp_path / "original")
    edit_tensors(tmp_path / "original", lambda tensors: tensors.pop("language_model.lm_head.weight"))
    with pytest.raises(common.InputError, match="no weights for lm_head.weight"):
        convert.convert(tmp_path / "original", tmp_path / "model")
    edit_config(tmp_path / "original", "llm_config", tie_word_embeddings=True)
    convert.convert(tmp_path / "original", tmp_path / "model")
    for model in (
        common.load_model(tmp_path / "model", ["cpu"]),
        AutoModelForImageTextToText.from_pretrained(tmp_path / "model"),
    ):
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


# ---------------------------------------------------------------- what is refused
def cut_off(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_shard(directory):
    split_in_two(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()


def lose_a_tensor_of_a_shard(directory):
    split_in_two(directory)
    edit_tensors(directory, lambda tensors: tensors.pop("mlp1.0.bias"), "model-00001-of-00002.safetensors")


def double_a_tensor(directory):
    split_in_two(directory)
    norm = {"language_model.model.norm.weight": torch.zeros(64)}
    edit_tensors(directory, lambda tensors: tensors.update(norm), "model-00002-of-00002.safetensors")


QKV = "vision_model.encoder.layers.1.attn.qkv.weight"
WQKV = "language_model.model.layers.2.attention.wqkv.weight"


@pytest.mark.parametrize(
    "spoil, complaint",
    [
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "pytorch_model.bin: pickled weights"),
        (lambda d: (d / "model.safetensors").unlink(), "no .*safetensors file"),
        (
            lambda d: edit_config(d, "llm_config", quantization_config={"quant_method": "awq"}),
            "quantized weights .awq.",
        ),
        (
            lambda d: edit_tensors(d, lambda t: t.update({WQKV: torch.zeros(96, 64, dtype=torch.int8)})),
            f"model.safetensors: {WQKV} is quantized .I8.",
        ),
        (lambda d: edit_config(d, ps_version="v1"), "ps_version v1"),
        (lambda d: edit_config(d, template="phi3-chat"), "template phi3-chat"),
        (lambda d: edit_config(d, model_type="qwen2_vl"), "unknown class qwen2_vl"),
        (lambda d: edit_config(d, model_type="internvl"), "load_model reads it as it is"),
        (lambda d: edit_config(d, "llm_config", architectures=["Phi3ForCausalLM"]), "unknown class Phi3ForCausalLM"),
        (
            lambda d: edit_config(d, "vision_config", architectures=["SiglipVisionModel"]),
            "unknown class SiglipVisionModel",
        ),
        (
            lambda d: edit_config(d, vision_config={"architectures": ["InternVisionModel"]}),
            "vision_config has no key 'hidden_size'",
        ),
        (lambda d: (d / "config.json").write_text("{"), "config.json: JSONDecodeError"),
        (
            lambda d: edit_tensors(d, lambda t: t.pop(QKV)),
            "model.safetensors: there are no weights for .*layer.1.attention.q_proj.weight",
        ),
        (lambda d: edit_tensors(d, lambda t: t.update(stranger=torch.zeros(1))), "model.safetensors: stranger"),
        (
            lambda d: edit_tensors(d, lambda t: t.update({QKV: t[QKV][:, :-1]})),
            rf"model.safetensors: {QKV} has the shape \(96, 31\)",
        ),
        (
            lambda d: edit_tensors(d, lambda t: t.update({WQKV: t[WQKV][:-1]})),
            rf"model.safetensors: {WQKV} has the shape \(95, 64\)",
        ),
        (
            lambda d: edit_tensors(d, lambda t: t.update({WQKV: t[WQKV][:-16]})),
            rf"model.safetensors: {WQKV} has the shape \(80, 64\)",
        ),
        (cut_off, "model.safetensors: .* is cut off"),
        (
            lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
            "no whole safetensors file",
        ),
        (lose_a_shard, "model-00002-of-00002.safetensors is missing"),
        (lose_a_tensor_of_a_shard, "model-00001-of-00002.safetensors: mlp1.0.bias is missing"),
        (double_a_tensor, "model-00002-of-00002.safetensors: language_model.model.norm.weight .* stands twice"),
    ],
)
def test_what_is_not_whole_or_not_known_is_refused_and_nothing_is_written(spoil, complaint, tmp_path):
    shutil.copytree(fixture("internlm2"), tmp_path / "original")
    spoil(tmp_path / "original")
    with pytest.raises(common.InputError, match=complaint):
        convert.convert(tmp_path / "original", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full_disk)
        with pytest.raises(OSError, match="No space"):
            convert.convert(fixture("qwen2"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    convert.convert(fixture("qwen2"), tmp_path / "model")
    with pytest.raises(common.InputError, match="is there already"):
        convert.convert(fixture("qwen2"), tmp_path / "model")


# ---------------------------------------------------------------- tokenizers
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


def write_tokenizer_config(directory, ids, **more):
    """As the original's: a class that only remote code has, and ids of all special tokens."""
    declared = {
        str(id): {
            "content": token,
            "special": True,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "single_word": False,
        }
        for token, id in ids.items()
    }
    (directory / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": declared, **more}))
    (directory / "added_tokens.json").write_text(json.dumps(ids))


def sentencepiece_model(directory, add_dummy_prefix=False):
    """An InternLM2-style tokenizer.model: byte fallback, spaces kept, and unnamed pieces at the end, two of which are chat tokens now.
    Those of images lie behind the model's pieces. Returns (ids of the special tokens, oracle: text -> ids, as the remote code computes them)."""
    sentencepiece = pytest.importorskip(
        "sentencepiece", reason="sentencepiece is not installed (pip install sentencepiece protobuf)"
    )
    pytest.importorskip("google.protobuf", reason="protobuf is not installed")
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
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    for number in range(4):
        proto.pieces.add(piece=f"[UNUSED_TOKEN_{number}]", score=0, type=proto.SentencePiece.USER_DEFINED)
    (directory / "tokenizer.model").write_bytes(proto.SerializeToString())
    (directory / "tokenization_internlm2.py").write_text("raise SystemExit('remote code was run')")
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2} | {
        token: len(proto.pieces) - 2 + number for number, token in enumerate(SPECIALS)
    }
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
        parts = re.split("(" + "|".join(map(re.escape, ids)) + ")", text)
        return [id for part in parts if part for id in ([ids[part]] if part in ids else processor.encode(part))]

    return ids, oracle


def qwen_bpe(directory):
    """A Qwen-style vocab.json and merges.txt, special tokens behind them. Returns as sentencepiece_model does."""
    whole = tokenizers.Tokenizer(tokenizers.models.BPE())
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    whole.train_from_iterator(
        CORPUS,
        tokenizers.trainers.BpeTrainer(
            vocab_size=330, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    whole.model.save(str(directory))
    first = whole.get_vocab_size()
    ids = {token: first + number for number, token in enumerate(["<|endoftext|>", *SPECIALS])}
    whole.add_special_tokens([*ids])
    write_tokenizer_config(
        directory, ids, tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    return ids, lambda text: whole.encode(text).ids


def convert_with_tokenizer(kind, make, tmp_path, monkeypatch):
    """A fixture with a tokenizer, converted; the published ids are replaced by this tokenizer's."""
    shutil.copytree(fixture(kind), tmp_path / "original")
    ids, oracle = make(tmp_path / "original")
    text_class = {"internlm2": "InternLM2ForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]
    published = {token: ids[token] for token in ("<|im_end|>", "<IMG_CONTEXT>")}
    monkeypatch.setitem(convert.TEXT, text_class, (*convert.TEXT[text_class][:2], published))
    convert.convert(tmp_path / "original", tmp_path / "model")
    return oracle


@pytest.mark.parametrize("kind, make", [("internlm2", sentencepiece_model), ("qwen2", qwen_bpe)], ids=KINDS)
def test_ids_are_the_originals_and_parts_tokenized_apart_equal_the_whole(kind, make, tmp_path, monkeypatch):
    oracle = convert_with_tokenizer(kind, make, tmp_path, monkeypatch)
    tokenizer, config = (
        common.load_tokenizer(tmp_path / "model"),
        transformers.AutoConfig.from_pretrained(tmp_path / "model"),
    )
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == config.image_token_id
    assert "auto_map" not in (tmp_path / "model" / "tokenizer_config.json").read_text()  # it would name remote code
    frames = "".join(f"Frame{n}: <img>{'<IMG_CONTEXT>' * 4}</img>\n" for n in (1, 2))
    for question, answer in itertools.product(QUESTIONS, QUESTIONS):
        whole = (
            f"{'<s>' * (kind == 'internlm2')}<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
            f"多模态大语言模型。<|im_end|>\n<|im_start|>user\n{frames}{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"
        )
        prompt_ids, answer_ids = common.encode_branch(tokenizer, question, answer)
        ids = common.encode_prefix(tokenizer, config, 2) + prompt_ids + answer_ids
        assert ids == tokenizer.encode(whole, add_special_tokens=False) == oracle(whole), (question, answer)
        assert tokenizer.decode(answer_ids, skip_special_tokens=True) == answer


def test_a_system_message_of_ones_own_takes_the_place_of_the_originals(tmp_path, monkeypatch):
    convert_with_tokenizer("qwen2", qwen_bpe, tmp_path, monkeypatch)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why?"}]
    text = common.load_tokenizer(tmp_path / "model").apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"


def test_other_ids_than_the_published_ones_are_refused(tmp_path):
    shutil.copytree(fixture("qwen2"), tmp_path / "original")
    ids, _ = qwen_bpe(tmp_path / "original")
    with pytest.raises(
        common.InputError, match=rf"<\|im_end\|> becomes {ids['<|im_end|>']}, in the original it is 151645"
    ):
        convert.convert(tmp_path / "original", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_ids_that_the_original_declares_and_that_do_not_come_out_are_refused(tmp_path, monkeypatch):
    def make(directory):
        ids, oracle = qwen_bpe(directory)
        write_tokenizer_config(directory, ids | {"<img>": 7}, tokenizer_class="Qwen2Tokenizer")
        return ids, oracle

    with pytest.raises(common.InputError, match=r"<\|endoftext\|> becomes .*, in the original it is"):
        convert_with_tokenizer("qwen2", make, tmp_path, monkeypatch)


def test_a_space_before_every_text_is_refused(tmp_path, monkeypatch):
    """Then 'why' behind a video would be other tokens than 'why' alone. InternLM2's model has no such flag."""
    with pytest.raises(common.InputError, match="add_dummy_prefix"):
        convert_with_tokenizer(
            "internlm2", lambda directory: sentencepiece_model(directory, add_dummy_prefix=True), tmp_path, monkeypatch
        )


def test_without_sentencepiece_the_message_says_what_to_install(tmp_path, monkeypatch):
    shutil.copytree(fixture("internlm2"), tmp_path / "original")
    (tmp_path / "original" / "tokenizer.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(common.InputError, match="pip install sentencepiece protobuf"):
        convert.convert(tmp_path / "original", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_tokenizer_model_that_is_not_whole(tmp_path):
    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    shutil.copytree(fixture("internlm2"), tmp_path / "original")
    (tmp_path / "original" / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(common.InputError, match="tokenizer.model: no whole sentencepiece model"):
        convert.convert(tmp_path / "original", tmp_path / "model")


def test_without_tokenizer_files_there_is_a_warning(tmp_path, capsys):
    convert.convert(fixture("qwen2"), tmp_path / "model")
    assert "warning" in (printed := capsys.readouterr().out) and "no tokenizer files" in printed and "151667" in printed


# ---------------------------------------------------------------- it runs
@pytest.fixture
def letters():
    """A tokenizer of single characters, small enough for the fixtures' 200 ids, with <IMG_CONTEXT> where they have it."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        "<|im_start|>",
        "<|im_end|>",
        "<IMG_CONTEXT>",
        "<img>",
        "</img>",
        *"\n",
        *map(chr, range(32, 127)),
    ]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({token: id for id, token in enumerate(tokens)}, [], unk_token="<unk>", fuse_unk=True)
    )
    backend.add_special_tokens(tokens[:8])
    tokenizer = transformers.TokenizersBackend(tokenizer_object=backend, unk_token="<unk>")
    tokenizer.chat_template = convert.CHAT_TEMPLATE
    return tokenizer


def test_greedy_decoding_and_one_step_of_dpo(converted, letters, frames, tmp_path):
    shutil.copytree(converted[0], tmp_path / "model")
    edit_config(tmp_path / "model", "text_config", max_position_embeddings=512)  # the prompt is longer than 64
    model = common.load_model(tmp_path / "model", ["cpu"])
    video = common.Video(model, letters, frames[:2])
    answers = common.decode(model, letters, video, ["why?", "which way does it move?"], max_new_tokens=6)
    for prompt, (answer, _) in zip(["why?", "which way does it move?"], answers):
        ids = torch.cat([video.ids, torch.tensor([common.encode_branch(letters, prompt)[0]])], 1)
        with torch.no_grad():
            for _ in range(6):  # the same without a cache and alone: the likeliest token, six times
                ids = torch.cat([ids, model(ids, **video.inputs).logits[:, -1:].argmax(-1)], 1)
        assert answer == letters.decode(ids[0, -6:], skip_special_tokens=True).strip()

    rows = [
        {"question": "why?", "chosen": "it was hit.", "rejected": "it moves by itself."},
        {"question": "where?", "chosen": "left.", "rejected": "right."},
    ]
    optimizer = torch.optim.AdamW(dpo.freeze_all_but_language(model), 1e-3)
    losses, reference = [], None
    for _ in range(2):
        sums, _ = dpo.pair_logps(model, letters, video, rows)
        reference = sums.detach() if reference is None else reference
        loss = dpo.dpo_loss(*sums, *reference, beta=0.1)[0].mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2)) and losses[1] < losses[0]
