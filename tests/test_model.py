"""Models are loaded by hand: what is loaded is what from_pretrained loads, and what is not whole is refused."""
import shutil

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForImageTextToText

import common
from conftest import MODEL

@pytest.mark.parametrize("n_layers, n_devices, expected", [
    (5, 1, [0, 0, 0, 0, 0]),
    (5, 2, [0, 0, 0, 1, 1]),
    (4, 4, [0, 1, 2, 3]),
    (6, 4, [0, 0, 1, 2, 2, 3]),
])
def test_split_layers_by_hand(n_layers, n_devices, expected):
    assert common.split_layers(n_layers, n_devices) == expected

def test_every_module_has_one_place(model):
    place = common.plan_placement(model.config, ["first", "last"])
    for name, device in (("model.vision_tower.encoder.layer.0.attention.q_proj.weight", "first"), ("model.multi_modal_projector.linear_1.weight", "first"),
                         ("model.language_model.embed_tokens.weight", "first"), ("model.language_model.rotary_emb.inv_freq", "first"),
                         ("model.language_model.layers.0.mlp.up_proj.weight", "first"), ("model.language_model.layers.3.mlp.up_proj.weight", "last"),
                         ("model.language_model.norm.weight", "last"), ("lm_head.weight", "last")):
        assert place(name) == device

def test_loaded_by_hand_equals_from_pretrained(model, tokenizer, frames):
    theirs = AutoModelForImageTextToText.from_pretrained(MODEL).eval()
    video = common.watch(model, tokenizer, frames)
    pixels = common.pixel_values(frames, model.config.vision_config.image_size[0])
    with torch.no_grad():
        torch.testing.assert_close(model(video.ids, **video.inputs).logits, theirs(video.ids, pixel_values=pixels).logits, atol=0, rtol=0)

def test_saved_and_loaded_again_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = common.load_model(tmp_path, ["cpu"])
    for (name, mine), (_, theirs) in zip(model.state_dict().items(), again.state_dict().items()):
        assert torch.equal(mine, theirs), name
    assert again.config.num_frames == model.config.num_frames

@pytest.mark.parametrize("spoil, complaint", [
    (lambda tensors: tensors.pop("lm_head.weight"), "no weights for lm_head.weight"),
    (lambda tensors: tensors.update(stranger=torch.zeros(1)), "stranger"),
    (lambda tensors: tensors.update({"lm_head.weight": torch.zeros(3, 3)}), "lm_head.weight"),
])
def test_weights_that_are_missing_unknown_or_misshapen_are_refused(tmp_path, spoil, complaint):
    shutil.copytree(MODEL, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = {name.replace("language_model.lm_head", "lm_head"): tensor for name, tensor in safetensors.torch.load_file(path).items()}
    spoil(tensors)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(common.InputError, match=complaint):
        common.load_model(tmp_path / "model", ["cpu"])

def test_neither_a_directory_nor_on_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(common.InputError, match="neither a directory nor"):
        common.load_model("nobody/nothing")

def test_another_class_and_a_truncated_file_are_refused_by_name(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(common.InputError, match="model.safetensors: "):
        common.load_model(tmp_path / "model", ["cpu"])
    for kind, hint in (("internvl_chat", "python -m tools.convert"), ("llava", "")):
        (tmp_path / "model" / "config.json").write_text('{"model_type": "%s"}' % kind)
        with pytest.raises(common.InputError, match=f"unknown class {kind}, not internvl.*{hint}"):
            common.load_model(tmp_path / "model", ["cpu"])
