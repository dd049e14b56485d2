"""Models are loaded by hand: what is loaded is what from_pretrained loads, and what is not whole is refused."""

import argparse
import json
import os
import shutil
import stat

import pytest
import safetensors.torch
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, InternVLConfig, InternVLForConditionalGeneration

import common
import test_dpo
import vlm
from conftest import MODEL
from vlm import limits

pairs = test_dpo.pairs  # fixtures
train = test_dpo.train

# ------------------------------------------------------------------------------
# Where each tensor goes


@pytest.mark.parametrize(
    "n_layers, n_devices, expected",
    [
        (5, 1, [0, 0, 0, 0, 0]),
        (5, 2, [0, 0, 0, 1, 1]),
        (4, 4, [0, 1, 2, 3]),
        (6, 4, [0, 0, 1, 2, 2, 3]),
    ],
)
def test_split_layers_by_hand(n_layers, n_devices, expected):
    assert vlm.split_layers(n_layers, n_devices) == expected


def test_a_first_device_that_also_holds_the_vision_tower_may_get_less():
    assert vlm.split_layers(6, 2, first_weight=0.5) == [0, 0, 1, 1, 1, 1]  # half as much as the other
    assert vlm.split_layers(6, 3, first_weight=0.0) == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    "name, device",
    [
        ("model.vision_tower.encoder.layer.0.attention.q_proj.weight", "first"),
        ("model.multi_modal_projector.linear_1.weight", "first"),
        ("model.language_model.embed_tokens.weight", "first"),
        ("model.language_model.rotary_emb.inv_freq", "first"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "first"),
        ("model.language_model.layers.3.mlp.up_proj.weight", "last"),
        ("model.language_model.norm.weight", "last"),
        ("lm_head.weight", "last"),
    ],
)
def test_every_module_has_one_place(model, name, device):
    place = vlm.plan_placement(model.config, ["first", "last"])
    assert place(name) == device


# ------------------------------------------------------------------------------
# What is loaded is what from_pretrained loads


def test_loaded_by_hand_equals_from_pretrained(model, tokenizer, frames):
    theirs = AutoModelForImageTextToText.from_pretrained(MODEL).eval()
    video = vlm.Video(model, tokenizer, frames)
    pixels = vlm.pixel_values(frames, tuple(model.config.vision_config.image_size))
    with torch.no_grad():
        mine = model(video.ids, **video.inputs).logits
        expected = theirs(video.ids, pixel_values=pixels).logits
    torch.testing.assert_close(mine, expected, atol=0, rtol=0)


def test_saved_and_loaded_again_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = vlm.load_model(tmp_path, ["cpu"])
    for (name, mine), (_, theirs) in zip(model.state_dict().items(), again.state_dict().items()):
        assert torch.equal(mine, theirs), name
    assert again.config.num_frames == model.config.num_frames


# The text model of InternVL 2.5 is qwen2 or (InternLM2's) llama, that of 3 is qwen2, that of 3.5 is qwen3
@pytest.fixture(params=["qwen2", "qwen2, tied", "qwen3", "llama"])
def checkpoint(request, tmp_path):
    """A random model as transformers writes it, in shards."""
    kind, _, tied = request.param.partition(", ")
    base = AutoConfig.from_pretrained(MODEL)
    text_config = {
        "model_type": kind,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": base.text_config.vocab_size,
        "tie_word_embeddings": bool(tied),
        "eos_token_id": 2,
        "pad_token_id": 2,
        "bos_token_id": None,
    }
    config = InternVLConfig(
        vision_config=base.vision_config.to_dict(),
        text_config=text_config,
        image_token_id=base.image_token_id,
        image_seq_length=base.image_seq_length,
        tie_word_embeddings=bool(tied),
    )
    torch.manual_seed(0)
    directory = tmp_path / "model"
    InternVLForConditionalGeneration(config).save_pretrained(directory, max_shard_size="300KB")
    return directory


def both_logits(directory):
    """Give the logits of a checkpoint as load_model loads it, and as from_pretrained does."""
    ids = torch.randint(10, 200, (1, 24), generator=torch.Generator().manual_seed(1))
    mine = vlm.load_model(directory, ["cpu"])
    theirs = AutoModelForImageTextToText.from_pretrained(directory).eval()
    with torch.no_grad():
        return mine(ids).logits, theirs(ids).logits


def test_text_models_heads_and_shards_as_transformers_writes_them(checkpoint):
    assert len(list(checkpoint.glob("*.safetensors"))) > 1
    mine, theirs = both_logits(checkpoint)
    torch.testing.assert_close(mine, theirs, atol=0, rtol=0)


def rename(name):
    """Give a tensor of an older file the name that it has in transformers' newer model."""
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    if name.startswith("language_model.model"):
        return name.replace("language_model.model", "model.language_model", 1)
    if name.startswith(("vision_tower", "multi_modal_projector")):
        return f"model.{name}"
    return name


def test_old_and_new_names_of_tensors(checkpoint):
    """On disk InternVL's language model was `language_model.model.layers...`.

    Then transformers named it `model.language_model.layers...`. Both are read.
    """
    _, before = both_logits(checkpoint)
    renamed = {}
    for file in checkpoint.glob("*.safetensors"):
        for name, tensor in safetensors.torch.load_file(file).items():
            renamed[rename(name)] = tensor
        file.unlink()
    assert "model.language_model.layers.0.mlp.up_proj.weight" in renamed
    (checkpoint / "model.safetensors.index.json").unlink()
    safetensors.torch.save_file(renamed, checkpoint / "model.safetensors", {"format": "pt"})
    for logits in both_logits(checkpoint):
        torch.testing.assert_close(logits, before, atol=0, rtol=0)


def save_as_one_file(directory, tensors):
    safetensors.torch.save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def test_files_that_the_index_does_not_name_are_not_read(checkpoint):
    """Such as shards of an older save, which had another number of them."""
    before, _ = both_logits(checkpoint)
    old = {"language_model.lm_head.weight": torch.zeros(219, 64), "of_an_older_model": torch.zeros(1)}
    safetensors.torch.save_file(old, checkpoint / "model-00001-of-00099.safetensors")
    for logits in both_logits(checkpoint):
        torch.testing.assert_close(logits, before, atol=0, rtol=0)


@pytest.mark.parametrize("checkpoint", ["qwen2"], indirect=True)
def test_model_safetensors_wins_over_an_index_as_in_transformers(checkpoint):
    before, _ = both_logits(checkpoint)
    tensors = {}
    for file in checkpoint.glob("*.safetensors"):
        tensors |= safetensors.torch.load_file(file)
    tensors["language_model.model.norm.weight"] = 2 * tensors["language_model.model.norm.weight"]
    save_as_one_file(checkpoint, tensors)
    mine, theirs = both_logits(checkpoint)
    torch.testing.assert_close(mine, theirs, atol=0, rtol=0)
    assert (mine - before).abs().max() > 0.1


# ------------------------------------------------------------------------------
# Tied heads, by transformers' own rule

HEAD = "lm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"


def copy_the_head(tensors):
    tensors[HEAD] = tensors[EMBEDDING].clone()


def have_another_head(tensors):
    tensors[HEAD] = tensors[EMBEDDING].flip(0).clone()


def have_the_head_alone(tensors):
    tensors[HEAD] = tensors.pop(EMBEDDING)


def have_the_embedding_alone(tensors):
    tensors.pop(HEAD)


@pytest.mark.parametrize(
    "whole, text, edit, tied",
    [
        (True, True, copy_the_head, True),
        (True, True, have_another_head, False),  # the config is wrong, and the file is right
        (True, True, have_the_head_alone, True),
        (True, False, have_the_embedding_alone, True),  # text_config has no say in it
        (False, True, have_another_head, False),
    ],
)
def test_heads_are_tied_where_transformers_ties_them(model, tmp_path, whole, text, edit, tied):
    model.save_pretrained(tmp_path)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    edit(tensors)
    save_as_one_file(tmp_path, tensors)
    config = json.loads((tmp_path / "config.json").read_text())
    config["tie_word_embeddings"] = whole
    config["text_config"]["tie_word_embeddings"] = text
    common.write_json(tmp_path / "config.json", config)

    for loaded in (vlm.load_model(tmp_path, ["cpu"]), AutoModelForImageTextToText.from_pretrained(tmp_path)):
        assert (loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight) == tied
    mine, theirs = both_logits(tmp_path)
    torch.testing.assert_close(mine, theirs, atol=0, rtol=0)


def test_without_a_head_and_untied_there_are_no_weights(copied):
    """Where text_config alone ties them, transformers would make up a head at random."""
    edit_weights(copied, remove_head)
    edit_config(copied, "text_config", tie_word_embeddings=True)
    with pytest.raises(common.InputError, match="no weights for lm_head.weight"):
        vlm.load_model(copied, ["cpu"])


# ------------------------------------------------------------------------------
# What is written works elsewhere


def mode(file):
    return stat.S_IMODE(file.stat().st_mode)


def test_a_trained_model_has_all_that_its_base_has(train, copied):
    """Other programs end an answer by generation_config.json: with one that is made anew they would never stop."""
    common.write_json(
        copied / "generation_config.json", {"eos_token_id": [2, 7], "temperature": 0.5, "do_sample": True}
    )
    (copied / "LICENSE").write_text("do what you like")
    (copied / "processor_config.json").write_text('{"image_seq_length": 16}')
    (copied / "adapter_model.bin").write_bytes(b"weights of something else")
    before = os.umask(0o027)
    try:
        output, _ = train("trained", model=copied)
    finally:
        os.umask(before)

    own = {"config.json", "README.md", "model.safetensors"}
    for file in copied.iterdir():
        if file.name not in own | {"adapter_model.bin"}:
            assert (output / file.name).read_bytes() == file.read_bytes(), file.name
    assert not (output / "adapter_model.bin").exists()
    trained = AutoModelForImageTextToText.from_pretrained(output)
    assert trained.generation_config.eos_token_id == [2, 7]
    # A class on a shared disk reads them: the umask decides, for weights as for all else
    assert {mode(file) for file in output.iterdir() if file.is_file() and file.name[0] != "."} == {0o640}


def test_for_a_base_without_generation_config_the_chat_ends_an_answer(train, copied, tokenizer):
    """config.json may name another token, as that of InternVL2.5-8B does."""
    (copied / "generation_config.json").unlink()
    edit_config(copied, "text_config", eos_token_id=7)
    output, _ = train("trained", model=copied)
    trained = AutoModelForImageTextToText.from_pretrained(output)
    assert trained.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_weights_that_are_not_finite_are_not_saved(train, pairs):
    """At this rate float16 weights overflow in the first update, which is also the last."""
    with pytest.raises(common.InputError, match="of .* trained tensors .*infinite or NaN.* no model was saved.*--lr"):
        train("trained", "--dtype", "float16", "--lr", "1e5", "--warmup", "0")
    assert not list((pairs.parent / "trained").glob("**/*.safetensors"))


# ------------------------------------------------------------------------------
# What is refused


@pytest.fixture
def copied(tmp_path):
    """A copy of the tiny model, to be damaged."""
    shutil.copytree(MODEL, tmp_path / "model")
    return tmp_path / "model"


def edit_config(directory, part, **values):
    """Set values in a part of config.json, such as text_config."""
    config = json.loads((directory / "config.json").read_text())
    config[part].update(values)
    (directory / "config.json").write_text(json.dumps(config))


def edit_weights(directory, edit):
    """Change the tensors in a model's file: edit gets them as a dict, with the names that they have in the model."""
    path = directory / "model.safetensors"
    tensors = {}
    for name, tensor in safetensors.torch.load_file(path).items():
        tensors[name.replace("language_model.lm_head", "lm_head")] = tensor
    edit(tensors)
    safetensors.torch.save_file(tensors, path)


def remove_head(tensors):
    tensors.pop("lm_head.weight")


def add_stranger(tensors):
    tensors["stranger"] = torch.zeros(1)


def misshape_head(tensors):
    tensors["lm_head.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    "edit, complaint",
    [
        (remove_head, "no weights for lm_head.weight"),
        (add_stranger, "stranger"),
        (misshape_head, "lm_head.weight"),
    ],
)
def test_weights_that_are_missing_unknown_or_misshapen_are_refused(copied, edit, complaint):
    edit_weights(copied, edit)
    with pytest.raises(common.InputError, match=complaint):
        vlm.load_model(copied, ["cpu"])


@pytest.mark.parametrize("dtype, name", [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_quantized_weights_are_refused_by_name_and_not_cast(copied, dtype, name):
    def quantize(tensors):
        key = next(key for key in tensors if key.endswith("layers.0.mlp.up_proj.weight"))
        tensors[key] = tensors[key].to(dtype)

    edit_weights(copied, quantize)
    complaint = rf"model.safetensors: .*layers.0.mlp.up_proj.weight has the type {name}; .*not quantized"
    with pytest.raises(common.InputError, match=complaint):
        vlm.load_model(copied, ["cpu"])


@pytest.mark.parametrize(
    "n_gpus, device, complaint",
    [
        (0, "cuda:0", "cuda:0 is not there; no GPU is visible to PyTorch"),
        (0, "cuda", "cuda is not there; no GPU is visible to PyTorch"),
        (2, "cuda:2", "cuda:2 is not there; cuda:0 to cuda:1 are visible to PyTorch"),
        (2, "gpu0", "'gpu0' is no device; expected cpu, or cuda:0, cuda:1, ..."),
    ],
)
def test_a_missing_device_is_refused(monkeypatch, n_gpus, device, complaint):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    with pytest.raises(common.InputError) as refusal:
        vlm.load_model(MODEL, ["cpu", device])
    assert str(refusal.value) == f"--devices: {complaint}"


def test_a_gpu_that_cannot_be_used_is_named_with_torchs_reason(monkeypatch):
    # What the CUDA build of PyTorch says on a machine without a driver; the CPU build says other things
    def refuse(*_, **__):
        raise RuntimeError("Found no NVIDIA driver on your system.")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(safetensors, "safe_open", refuse)
    with pytest.raises(common.InputError, match=r"Found no NVIDIA driver on your system\. \(device cuda:0\)"):
        vlm.load_model(MODEL, ["cuda:0"])


def test_pickled_weights_are_not_read(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(common.InputError, match=r"pytorch_model.bin: pickled weights .* are not read"):
        vlm.load_model(copied, ["cpu"])


def test_a_truncated_file_is_refused_by_name(copied):
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(common.InputError, match="model.safetensors: "):
        vlm.load_model(copied, ["cpu"])


def split_in_two(directory):
    """Write a model's file as two shards with an index -> the table of the index."""
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    table = {name: "layers.safetensors" if "layer" in name else "rest.safetensors" for name in tensors}
    for file in ("layers.safetensors", "rest.safetensors"):
        part = {name: tensor for name, tensor in tensors.items() if table[name] == file}
        safetensors.torch.save_file(part, directory / file, {"format": "pt"})
    common.write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": table})
    return table


def change_index(directory, value):
    """Give one tensor of a checkpoint in two shards another value in the index."""
    table = split_in_two(directory)
    table["language_model.lm_head.weight"] = value
    common.write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": table})


def lead_out(directory):
    change_index(directory, "../elsewhere.safetensors")


def lead_to_the_root(directory):
    change_index(directory, "/elsewhere.safetensors")


def name_no_file(directory):
    change_index(directory, 7)


def name_a_missing_shard(directory):
    change_index(directory, "third.safetensors")


def name_the_wrong_shard(directory):
    change_index(directory, "layers.safetensors")


def have_no_table(directory):
    split_in_two(directory)
    common.write_json(directory / "model.safetensors.index.json", {"weight_map": ["layers.safetensors"]})


def have_no_index(directory):
    split_in_two(directory)
    (directory / "model.safetensors.index.json").unlink()


def have_a_tensor_twice(directory):
    split_in_two(directory)
    path = directory / "layers.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["language_model.lm_head.weight"] = torch.zeros(219, 128)
    safetensors.torch.save_file(tensors, path)


def have_a_tensor_by_two_names(directory):
    path = directory / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["lm_head.weight"] = torch.zeros(219, 128)
    safetensors.torch.save_file(tensors, path)


def leave_a_git_lfs_pointer(directory):
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")


def be_another_size(directory):
    edit_config(directory, "text_config", hidden_size=256)


def have_a_config_of_another_type(directory):
    edit_config(directory, "text_config", hidden_size="large")


def have_sizes_that_do_not_fit(directory):
    edit_config(directory, "text_config", num_attention_heads=0)


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (have_sizes_that_do_not_fit, "config.json: (transformers cannot read it|no model can be made from it): "),
        (lead_out, r"index.json: weight_map has '../elsewhere.safetensors' for .*lm_head.weight, which leads out"),
        (lead_to_the_root, "index.json: weight_map has '/elsewhere.safetensors' .* leads out of the directory"),
        (name_no_file, "index.json: weight_map has 7 for .*lm_head.weight, which is not a"),
        (name_a_missing_shard, "third.safetensors is missing; model.safetensors.index.json lists it"),
        (name_the_wrong_shard, "layers.safetensors: language_model.lm_head.weight is missing"),
        (have_no_table, "index.json: weight_map is not a table"),
        (have_no_index, "neither model.safetensors nor model.safetensors.index.json"),
        (have_a_tensor_twice, "rest.safetensors: language_model.lm_head.weight is a duplicate, layers.safetensors has"),
        (have_a_tensor_by_two_names, r"lm_head.weight \(as lm_head.weight\) is a duplicate"),
        (leave_a_git_lfs_pointer, "model.safetensors: not a complete safetensors file"),
        (be_another_size, r"model.safetensors: .* has the shape .*128.*, but by the config it is .*256"),
        (have_a_config_of_another_type, "config.json: transformers cannot read it: .*hidden_size"),
    ],
)
def test_what_is_not_one_whole_checkpoint_is_refused_in_one_line_before_weights_are_read(
    copied, damage, complaint, monkeypatch
):
    def read(*_, **__):
        raise AssertionError("weights were read")

    damage(copied)
    monkeypatch.setattr(safetensors, "safe_open", read)
    for load in LOADERS:
        with pytest.raises(common.InputError, match=complaint) as refused:
            load(copied)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_found(copied, value):
    """A model with a NaN answers all the same, and scores 0."""

    def spoil(tensors):
        tensors["lm_head.weight"][7, 5] = value

    edit_weights(copied, spoil)
    with pytest.raises(common.InputError, match="model.safetensors: lm_head.weight has numbers that are infinite"):
        vlm.load_model(copied, ["cpu"])


def test_numbers_beyond_float16_are_found_where_they_are_cast(copied):
    def enlarge(tensors):
        tensors["lm_head.weight"][7, 5] = 7e4  # the largest number of float16 is 65504

    edit_weights(copied, enlarge)
    assert vlm.load_model(copied, ["cpu"], torch.bfloat16)
    with pytest.raises(common.InputError, match="lm_head.weight .* infinite or NaN in float16; .*another --dtype"):
        vlm.load_model(copied, ["cpu"], torch.float16)


# load_model would refuse these, too; check_model does so before a stage has written anything
LOADERS = [vlm.check_model, vlm.load_model]


@pytest.mark.parametrize("load", LOADERS)
def test_neither_a_directory_nor_on_the_hub(load, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(common.InputError, match="nobody/nothing: no such directory, and not found on the hub"):
        load("nobody/nothing")


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("kind, hint", [("internvl_chat", "python -m tools.convert"), ("llava", "")])
def test_another_class_is_refused_by_name(copied, load, kind, hint):
    common.write_json(copied / "config.json", {"model_type": kind})
    with pytest.raises(common.InputError, match=f"unknown class {kind}, not internvl.*{hint}"):
        load(copied)


# ------------------------------------------------------------------------------
# Language models that cannot be used behind a shared video


SLIDES = ["full_attention"] * 3 + ["sliding_attention"]


def of_kind(kind, **values):
    """Make the text_config of a small model of another kind."""
    sizes = {"hidden_size": 128, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    return {"model_type": kind, "num_hidden_layers": 2, "vocab_size": 219, "head_dim": 32} | sizes | values


@pytest.mark.parametrize(
    "text, complaint",
    [
        # Qwen2 has the window where use_sliding_window says so, from layer max_window_layers on
        ({"use_sliding_window": True, "sliding_window": 64, "layer_types": SLIDES}, "qwen2. has .* sliding_attention"),
        (of_kind("qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=1), "sliding_attention"),
        (of_kind("mistral", sliding_window=64), "mistral. has layers with sliding_attention"),
        (of_kind("gpt_oss"), "gpt_oss. has layers with sliding_attention"),
        (of_kind("gpt_oss", layer_types=["full_attention"] * 2), "gpt_oss. is a mixture of experts|sinks"),
        (of_kind("llama4_text"), "llama4_text. has layers with chunked_attention"),
        (of_kind("qwen3_moe", num_experts=4, moe_intermediate_size=32), "qwen3_moe. is a mixture of experts"),
    ],
)
def test_attention_that_is_not_full_and_experts_are_refused_in_one_line(copied, text, complaint):
    config = json.loads((copied / "config.json").read_text())
    config["text_config"] = text if "model_type" in text else config["text_config"] | text
    common.write_json(copied / "config.json", config)
    for load in LOADERS:
        with pytest.raises(common.InputError, match=complaint) as refused:
            load(copied)
        assert "\n" not in str(refused.value)


def test_a_window_that_is_not_used_is_no_window(copied):
    """Qwen2's configs have a sliding_window all the same."""
    edit_config(copied, "text_config", sliding_window=64, use_sliding_window=False)
    assert vlm.load_model(copied, ["cpu"])


def test_there_is_no_dropout_whatever_the_config_says(copied):
    """In train mode, which activation checkpointing needs, two passes are one function."""
    edit_config(copied, "text_config", attention_dropout=0.5)
    dropouts = {"attention_dropout": 0.5, "hidden_dropout_prob": 0.5, "projection_dropout": 0.5}
    edit_config(copied, "vision_config", **dropouts)
    model = vlm.load_model(copied, ["cpu"]).train()
    ids = torch.arange(10, 30)[None]
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        first, second = (model(ids).logits for _ in range(2))
        seen, seen_again = (model.model.vision_tower(pixels).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(seen, seen_again)


# ------------------------------------------------------------------------------
# Positions: the tiny model has 1,024 of them


def test_the_most_frames_by_hand(model, tokenizer):
    """A video of n frames is 2 + 20 n tokens. With 256 for prompt and answer, 38 make 1,018, and 39 make 1,038."""
    assert len(vlm.encode_prefix(tokenizer, model.config, 38)) == 2 + 20 * 38
    limits.check_frames(tokenizer, model.config, 38)
    for n_frames in (39, 10**9):  # and nothing endless is encoded
        with pytest.raises(common.InputError, match=f"{n_frames} frames .* 1024 positions .*; --frames 38 fits"):
            limits.check_frames(tokenizer, model.config, n_frames)


def test_too_many_frames_are_refused_before_weights_are_read(monkeypatch):
    monkeypatch.setattr(safetensors, "safe_open", None)
    args = argparse.Namespace(model=MODEL, frames=39, devices="cpu", dtype=None)
    with pytest.raises(common.InputError, match="--frames 38 fits"):
        vlm.load(args)


@pytest.mark.parametrize(
    "rope, expected",
    [
        ({"rope_type": "default"}, 1000),
        ({"rope_type": "dynamic", "factor": 2.0}, 1000),  # it changes beyond max_position_embeddings
        ({"rope_type": "longrope", "original_max_position_embeddings": 400}, 400),  # beyond the original's
    ],
)
def test_positions_end_where_rotary_frequencies_change(rope, expected):
    text = argparse.Namespace(max_position_embeddings=1000, rope_parameters=rope)
    assert limits.count_positions(argparse.Namespace(text_config=text)) == expected


def test_a_row_has_room_or_is_named(model, tokenizer, frames, monkeypatch):
    """8 frames are 162 tokens. A prompt that leaves 3 positions gets an answer of 3 tokens, which is not whole."""
    video = vlm.Video(model, tokenizer, frames)
    question = "how many shapes are there?"
    n_prompt = len(vlm.encode_branch(tokenizer, question).prompt)
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", 162 + n_prompt + 3)
    [[(answer, whole)]] = vlm.decode(model, tokenizer, [video], [[question]], 20)
    assert len(tokenizer.encode(answer, add_special_tokens=False)) == 3
    assert not whole

    too_long = " ".join([question] * 2)
    with pytest.raises(
        common.InputError, match=f"162 positions of the video .*'{question[:-1]} ?. how.* leave that row out"
    ):
        vlm.decode(model, tokenizer, [video], [[question, too_long]], 20)


# ------------------------------------------------------------------------------
# Too little memory


def test_out_of_memory_while_loading_does_not_blame_the_file(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(safetensors, "safe_open", full)
    with pytest.raises(torch.OutOfMemoryError):
        vlm.load_model(MODEL, ["cpu"])


def test_out_of_memory_ends_in_what_was_asked_and_what_helps():
    memory = "Tried to allocate 2.00 GiB. GPU 0 has 1.20 GiB free."

    def main():
        raise torch.OutOfMemoryError(f"CUDA out of memory. {memory}")

    with pytest.raises(SystemExit, match=f"{memory}. What helps: more --devices"):
        common.run(main)
