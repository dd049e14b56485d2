"""LoRA adapters in PEFT's format, merged: the same model in float32, and in bfloat16 a loss of most of a small update."""

import json
import re
import shutil

import pytest
import safetensors.torch
import torch

import common
from conftest import MODEL
from tools import merge

LINEAR = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
RANK, ALPHA = 4, 8


@torch.no_grad()
def make_factors(model, share=None):
    """{path of a linear layer: (A (r, in), B (out, r))} of all of the language model's. share: |alpha / r * B A| / |W| (default: as it comes)."""
    generator, factors = torch.Generator().manual_seed(0), {}
    for path, layer in model.named_modules():
        if re.fullmatch(LINEAR, path):
            a, b = (
                torch.randn(RANK, layer.in_features, generator=generator),
                0.01 * torch.randn(layer.out_features, RANK, generator=generator),
            )
            norm = (ALPHA / RANK * b @ a).norm()
            factors[path] = (a, b * (share * layer.weight.norm() / norm if share else 1))
    return factors


def write_adapter(directory, factors, base=MODEL, **config):
    """An adapter as PEFT 0.21 writes it, down to the names."""
    directory.mkdir()
    tensors = {
        f"base_model.model.{path}.lora_{letter}.weight": factor.contiguous()
        for path, pair in factors.items()
        for letter, factor in zip("AB", pair)
    }
    safetensors.torch.save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
    (directory / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "base_model_name_or_path": str(base),
                "r": RANK,
                "lora_alpha": ALPHA,
                "lora_dropout": 0.0,
                "bias": "none",
                "target_modules": LINEAR,
                "use_dora": False,
                "use_rslora": False,
                "rank_pattern": {},
                "fan_in_fan_out": False,
                "eva_config": None,
            }
            | config
        )
    )
    return directory


@torch.no_grad()
def unmerged_logits(model, factors, ids):
    """The adapter's forward pass, written out: beside every linear layer runs y += alpha / r * B (A x)."""

    def beside(path):
        a, b = factors[path]
        return lambda layer, args, y: y + ALPHA / RANK * ((args[0] @ a.T) @ b.T)

    hooks = [model.get_submodule(path).register_forward_hook(beside(path)) for path in factors]
    logits = model(ids).logits
    for hook in hooks:
        hook.remove()
    return logits


@pytest.fixture
def ids():
    return torch.randint(10, 200, (1, 24), generator=torch.Generator().manual_seed(1))


def test_unmerged_equals_merged_in_float32(model, ids, tmp_path, capsys):
    factors = make_factors(model)
    merge.merge(write_adapter(tmp_path / "adapter", factors), tmp_path / "merged")
    assert "28 weights merged, in float32" in (printed := capsys.readouterr().out) and "rounding lost 0%" in printed
    merged = common.load_model(tmp_path / "merged", ["cpu"])
    with torch.no_grad():
        logits, before = merged(ids).logits, model(ids).logits
    torch.testing.assert_close(logits, unmerged_logits(model, factors, ids), rtol=1e-5, atol=5e-5)
    assert (logits - before).abs().max() > 0.1  # the adapter does something
    assert common.load_tokenizer(tmp_path / "merged").get_vocab() == common.load_tokenizer(MODEL).get_vocab()
    untouched = [name for name in model.state_dict() if name.removesuffix(".weight") not in factors]
    assert all(torch.equal(merged.state_dict()[name], model.state_dict()[name]) for name in untouched)


@pytest.mark.parametrize("share, least, most", [(1e-3, 0.7, 0.9), (1e-2, 0.1, 0.25), (1e-1, 0.0, 0.03)])
def test_bfloat16_loses_most_of_a_small_update(model, share, least, most, tmp_path, capsys):
    """bfloat16 steps are 2^-8 to 2^-7 of a weight. A delta of 1e-3 of the weights is less than half a step for nearly all of them, and is
    rounded away: the merged model is hardly the trained one. Hence no merging by default. (At 1e-2 a sixth is lost, at 1e-1 little.)"""
    base = tmp_path / "base"
    shutil.copytree(MODEL, base)
    rounded = {
        key: tensor.bfloat16() for key, tensor in safetensors.torch.load_file(MODEL / "model.safetensors").items()
    }
    safetensors.torch.save_file(rounded, base / "model.safetensors", {"format": "pt"})
    factors = make_factors(model, share)
    lost = merge.merge(write_adapter(tmp_path / "adapter", factors, base), tmp_path / "merged")
    assert least < lost < most
    assert f"{share:.1e} of their norm, and rounding lost {lost:.0%} of it" in capsys.readouterr().out
    merged, gaps, deltas = safetensors.torch.load_file(tmp_path / "merged" / "model.safetensors"), [], []
    for path, (a, b) in factors.items():  # the same share, from the files
        key = path.removeprefix("model.").replace("language_model", "language_model.model") + ".weight"
        assert merged[key].dtype == torch.bfloat16
        deltas.append((ALPHA / RANK * b @ a).flatten())
        gaps.append((merged[key].float() - rounded[key].float()).flatten() - deltas[-1])
    assert torch.cat(gaps).norm() / torch.cat(deltas).norm() == pytest.approx(lost, rel=1e-3)


def test_shards_stay_shards(model, tmp_path):
    shutil.copytree(MODEL, tmp_path / "base")
    tensors = safetensors.torch.load_file(tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "model.safetensors").unlink()
    names = {key: f"model-0000{1 + ('layers' in key)}-of-00002.safetensors" for key in tensors}
    for name in {*names.values()}:
        safetensors.torch.save_file(
            {key: tensor for key, tensor in tensors.items() if names[key] == name}, tmp_path / "base" / name
        )
    (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    factors = make_factors(model)
    merge.merge(write_adapter(tmp_path / "one", factors), tmp_path / "from-one")
    merge.merge(write_adapter(tmp_path / "two", factors, tmp_path / "base"), tmp_path / "from-two")
    whole = safetensors.torch.load_file(tmp_path / "from-one" / "model.safetensors")
    shards = {file.name: safetensors.torch.load_file(file) for file in (tmp_path / "from-two").glob("*.safetensors")}
    assert {key: name for name, shard in shards.items() for key in shard} == names
    assert all(torch.equal(tensor, whole[key]) for shard in shards.values() for key, tensor in shard.items())
    assert (tmp_path / "from-two" / "model.safetensors.index.json").exists()


FIRST = "model.language_model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    "edit, config, complaint",
    [
        (lambda factors: None, {"use_dora": True}, "use_dora is more than plain LoRA"),
        (lambda factors: None, {"use_rslora": True}, "use_rslora is more than plain LoRA"),
        (lambda factors: None, {"alpha_pattern": {"up_proj": 1}}, "alpha_pattern is more than plain LoRA"),
        (lambda factors: None, {"peft_type": "IA3"}, "peft_type is more than plain LoRA"),
        (lambda factors: None, {"base_model_name_or_path": "/nowhere"}, "base /nowhere is neither a directory nor"),
        (lambda factors: factors.update({FIRST: factors[FIRST][:1]}), {}, f"of {FIRST}.weight one factor is missing"),
        (
            lambda factors: factors.update({FIRST: (factors[FIRST][0][:2], factors[FIRST][1])}),
            {},
            "its rank is not r = 4",
        ),
        (
            lambda factors: factors.update({FIRST: (factors[FIRST][0], factors[FIRST][1][:, :2])}),
            {},
            "its rank is not r = 4",
        ),
        (
            lambda factors: factors.update({FIRST: (factors[FIRST][0][:, :-1], factors[FIRST][1])}),
            {},
            r"weight is \(320, 127\), the base's \(320, 128\)",
        ),
        (
            lambda factors: factors.update({"model.stranger": factors.pop(FIRST)}),
            {},
            "its model.stranger.weight is .* the base's is not there",
        ),
    ],
)
def test_other_adapters_are_refused_and_nothing_is_written(model, edit, config, complaint, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    factors = make_factors(model)
    edit(factors)
    write_adapter(tmp_path / "adapter", factors, **config)
    with pytest.raises(common.InputError, match=complaint):
        merge.merge(tmp_path / "adapter", tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_adapters_that_are_not_whole_or_not_there_are_refused(model, tmp_path):
    with pytest.raises(common.InputError, match="no adapter"):
        merge.merge(MODEL, tmp_path / "merged")
    path = write_adapter(tmp_path / "adapter", make_factors(model)) / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors | {f"base_model.model.{FIRST}.lora_magnitude_vector": torch.zeros(320)}, path)
    with pytest.raises(common.InputError, match="lora_magnitude_vector is no factor of plain LoRA"):
        merge.merge(tmp_path / "adapter", tmp_path / "merged")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(common.InputError, match="adapter_model.safetensors: .* is cut off"):
        merge.merge(tmp_path / "adapter", tmp_path / "merged")


def test_a_base_of_the_original_format_is_to_be_converted_first(model, tmp_path):
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "config.json").write_text('{"model_type": "internvl_chat"}')
    write_adapter(tmp_path / "adapter", make_factors(model), tmp_path / "original")
    with pytest.raises(common.InputError, match="internvl_chat, not internvl .tools.convert makes it one."):
        merge.merge(tmp_path / "adapter", tmp_path / "merged")


def test_peft_reads_these_adapters_the_same_way(model, ids, tmp_path):
    """Optional: where PEFT is installed, its forward pass is the one written out above, and its own merging is ours."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed; nothing here needs it")
    factors = make_factors(model)
    write_adapter(tmp_path / "adapter", factors)
    theirs = peft.PeftModel.from_pretrained(common.load_model(MODEL, ["cpu"]), str(tmp_path / "adapter")).eval()
    merge.merge(tmp_path / "adapter", tmp_path / "merged")
    with torch.no_grad():
        ours = common.load_model(tmp_path / "merged", ["cpu"])(ids).logits
        torch.testing.assert_close(
            theirs(input_ids=ids).logits, unmerged_logits(model, factors, ids), rtol=1e-5, atol=5e-5
        )
        torch.testing.assert_close(theirs.merge_and_unload()(ids).logits, ours, rtol=1e-5, atol=5e-5)
