"""Models are loaded by hand: what is loaded is what from_pretrained loads, and what is not whole is refused."""

import re
import shutil

import pytest
import safetensors.torch
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, InternVLConfig, InternVLForConditionalGeneration

import common
from conftest import MODEL


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
    assert common.split_layers(n_layers, n_devices) == expected


def test_a_first_device_that_also_holds_the_vision_tower_may_get_less():
    assert common.split_layers(6, 2, first_weight=0.5) == [0, 0, 1, 1, 1, 1]  # half as much as the other
    assert common.split_layers(6, 3, first_weight=0.0) == [1, 1, 1, 2, 2, 2]


def test_every_module_has_one_place(model):
    place = common.plan_placement(model.config, ["first", "last"])
    for name, device in (
        ("model.vision_tower.encoder.layer.0.attention.q_proj.weight", "first"),
        ("model.multi_modal_projector.linear_1.weight", "first"),
        ("model.language_model.embed_tokens.weight", "first"),
        ("model.language_model.rotary_emb.inv_freq", "first"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "first"),
        ("model.language_model.layers.3.mlp.up_proj.weight", "last"),
        ("model.language_model.norm.weight", "last"),
        ("lm_head.weight", "last"),
    ):
        assert place(name) == device


def test_loaded_by_hand_equals_from_pretrained(model, tokenizer, frames):
    theirs = AutoModelForImageTextToText.from_pretrained(MODEL).eval()
    video = common.Video(model, tokenizer, frames)
    pixels = common.pixel_values(frames, model.config.vision_config.image_size[0])
    with torch.no_grad():
        torch.testing.assert_close(
            model(video.ids, **video.inputs).logits, theirs(video.ids, pixel_values=pixels).logits, atol=0, rtol=0
        )


def test_saved_and_loaded_again_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = common.load_model(tmp_path, ["cpu"])
    for (name, mine), (_, theirs) in zip(model.state_dict().items(), again.state_dict().items()):
        assert torch.equal(mine, theirs), name
    assert again.config.num_frames == model.config.num_frames


@pytest.fixture(
    params=[("qwen2", False), ("qwen2", True), ("qwen3", False), ("llama", False)],
    ids=lambda kind: f"{kind[0]}{', tied' * kind[1]}",
)
def checkpoint(request, tmp_path):
    """A random model as transformers writes it, in shards; InternVL 2.5 has qwen2 or (InternLM2's) llama as its text model, 3 qwen2, 3.5 qwen3."""
    kind, tied = request.param
    base = AutoConfig.from_pretrained(MODEL)
    text = dict(
        model_type=kind,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=base.text_config.vocab_size,
        tie_word_embeddings=tied,
        eos_token_id=2,
        pad_token_id=2,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    config = InternVLConfig(
        vision_config=base.vision_config.to_dict(),
        text_config=text,
        image_token_id=base.image_token_id,
        image_seq_length=base.image_seq_length,
        tie_word_embeddings=tied,
    )
    InternVLForConditionalGeneration(config).save_pretrained(tmp_path / "model", max_shard_size="300KB")
    return tmp_path / "model"


def both_logits(directory):
    ids = torch.randint(10, 200, (1, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return [
            model(ids).logits
            for model in (
                common.load_model(directory, ["cpu"]),
                AutoModelForImageTextToText.from_pretrained(directory).eval(),
            )
        ]


def test_text_models_heads_and_shards_as_transformers_writes_them(checkpoint):
    assert len(list(checkpoint.glob("*.safetensors"))) > 1
    torch.testing.assert_close(*both_logits(checkpoint), atol=0, rtol=0)


def test_old_and_new_names_of_tensors(checkpoint):
    """On disk InternVL's language model was `language_model.model.layers...` before transformers named it `model.language_model.layers...`."""
    _, before = both_logits(checkpoint)
    renamed = {}
    for file in checkpoint.glob("*.safetensors"):
        renamed |= {
            re.sub(
                r"^language_model\.lm_head|^(language_model)\.model|^(vision_tower|multi_modal_projector)",
                lambda match: f"model.{match[1] or match[2]}" if match[1] or match[2] else "lm_head",
                name,
            ): tensor
            for name, tensor in safetensors.torch.load_file(file).items()
        }
        file.unlink()
    assert "model.language_model.layers.0.mlp.up_proj.weight" in renamed
    (checkpoint / "model.safetensors.index.json").unlink()
    safetensors.torch.save_file(renamed, checkpoint / "model.safetensors", {"format": "pt"})
    for logits in both_logits(checkpoint):
        torch.testing.assert_close(logits, before, atol=0, rtol=0)


@pytest.mark.parametrize(
    "spoil, complaint",
    [
        (lambda tensors: tensors.pop("lm_head.weight"), "no weights for lm_head.weight"),
        (lambda tensors: tensors.update(stranger=torch.zeros(1)), "stranger"),
        (lambda tensors: tensors.update({"lm_head.weight": torch.zeros(3, 3)}), "lm_head.weight"),
    ],
)
def test_weights_that_are_missing_unknown_or_misshapen_are_refused(tmp_path, spoil, complaint):
    shutil.copytree(MODEL, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = {
        name.replace("language_model.lm_head", "lm_head"): tensor
        for name, tensor in safetensors.torch.load_file(path).items()
    }
    spoil(tensors)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(common.InputError, match=complaint):
        common.load_model(tmp_path / "model", ["cpu"])


@pytest.mark.parametrize("dtype, name", [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_quantized_weights_are_refused_by_name_and_not_cast(tmp_path, dtype, name):
    shutil.copytree(MODEL, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    key = next(key for key in tensors if key.endswith("layers.0.mlp.up_proj.weight"))
    safetensors.torch.save_file(tensors | {key: tensors[key].to(dtype)}, path)
    with pytest.raises(
        common.InputError,
        match=rf"model.safetensors: .*layers.0.mlp.up_proj.weight has the type {name}; .*not quantized",
    ):
        common.load_model(tmp_path / "model", ["cpu"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_said_so():
    with pytest.raises(common.InputError, match="CUDA|accelerator"):
        common.load_model(MODEL, ["cuda:0"])


def test_pickled_weights_are_not_read(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(common.InputError, match="no weights for .*; \\*.safetensors files, which alone are read: 0"):
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


def test_out_of_memory_while_loading_does_not_blame_the_file(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(safetensors, "safe_open", full)
    with pytest.raises(torch.OutOfMemoryError):
        common.load_model(MODEL, ["cpu"])


def test_out_of_memory_ends_in_what_was_asked_and_what_helps(monkeypatch):
    def main():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.20 GiB free.")

    with pytest.raises(
        SystemExit, match="Tried to allocate 2.00 GiB. GPU 0 has 1.20 GiB free.\nWhat helps: more --devices"
    ):
        common.run(main)
