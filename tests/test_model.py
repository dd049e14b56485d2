"""Models are loaded by hand: what is loaded is what from_pretrained loads, and what is not whole is refused."""

import shutil

import pytest
import safetensors.torch
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, InternVLConfig, InternVLForConditionalGeneration

import common
import vlm
from conftest import MODEL

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
    pixels = vlm.pixel_values(frames, model.config.vision_config.image_size[0])
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


# ------------------------------------------------------------------------------
# What is refused


@pytest.fixture
def copied(tmp_path):
    """A copy of the tiny model, to be damaged."""
    shutil.copytree(MODEL, tmp_path / "model")
    return tmp_path / "model"


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
    complaint = r"no weights for .*; only \*.safetensors files are read, and 0 of them were found"
    with pytest.raises(common.InputError, match=complaint):
        vlm.load_model(copied, ["cpu"])


def test_a_truncated_file_is_refused_by_name(copied):
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(common.InputError, match="model.safetensors: "):
        vlm.load_model(copied, ["cpu"])


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
