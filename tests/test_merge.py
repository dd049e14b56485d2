"""LoRA adapters in PEFT's format, merged: in float32 the same model, in bfloat16 most of a small update is lost."""

import json
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch

import common
import vlm
from conftest import MODEL
from tools import merge

LINEAR = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
RANK = 4
ALPHA = 8
WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@torch.no_grad()
def make_factors(model, share=None):
    """Make factors for all linear layers of the language model -> {path of a layer: (A (r, in), B (out, r))}.

    share: |alpha / r * B A| / |W|; None: as it comes
    """
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for path, layer in model.named_modules():
        if re.fullmatch(LINEAR, path):
            a = torch.randn(RANK, layer.in_features, generator=generator)
            b = 0.01 * torch.randn(layer.out_features, RANK, generator=generator)
            if share:
                delta = ALPHA / RANK * b @ a
                b *= share * layer.weight.norm() / delta.norm()
            factors[path] = (a, b)
    return factors


def write_adapter(directory, factors, base=MODEL, **config):
    """Write an adapter as PEFT 0.21 does, down to the names."""
    directory.mkdir()
    tensors = {}
    for path, pair in factors.items():
        for letter, factor in zip("AB", pair):  # a pair may lack B
            tensors[f"base_model.model.{path}.lora_{letter}.weight"] = factor.contiguous()
    safetensors.torch.save_file(tensors, directory / ADAPTER_WEIGHTS, {"format": "pt"})
    peft_config = {
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
    (directory / "adapter_config.json").write_text(json.dumps(peft_config | config))
    return directory


@torch.no_grad()
def unmerged_logits(model, factors, ids):
    """Run the adapter without merging, written out: every linear layer gets y += alpha / r * B (A x)."""

    def add_delta(path):
        a, b = factors[path]
        return lambda layer, inputs, y: y + ALPHA / RANK * ((inputs[0] @ a.T) @ b.T)

    hooks = [model.get_submodule(path).register_forward_hook(add_delta(path)) for path in factors]
    logits = model(ids).logits
    for hook in hooks:
        hook.remove()
    return logits


@pytest.fixture
def ids():
    return torch.randint(10, 200, (1, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_in_float32_the_merged_model_is_the_unmerged_one(model, ids, tmp_path, capsys):
    factors = make_factors(model)
    merge.merge(write_adapter(tmp_path / "adapter", factors), tmp_path / "merged")
    printed = capsys.readouterr().out
    assert "28 weights merged, in float32" in printed
    assert "rounding lost 0%" in printed

    merged = vlm.load_model(tmp_path / "merged", ["cpu"])
    logits = merged(ids).logits
    torch.testing.assert_close(logits, unmerged_logits(model, factors, ids), rtol=1e-5, atol=5e-5)
    assert (logits - model(ids).logits).abs().max() > 0.1  # the adapter does something

    for name, weight in model.state_dict().items():
        if name.removesuffix(".weight") not in factors:
            assert torch.equal(merged.state_dict()[name], weight), name
    assert vlm.load_tokenizer(tmp_path / "merged").get_vocab() == vlm.load_tokenizer(MODEL).get_vocab()


@pytest.mark.parametrize("share, least, most", [(1e-3, 0.7, 0.9), (1e-2, 0.1, 0.25), (1e-1, 0.0, 0.03)])
def test_bfloat16_loses_most_of_a_small_update(model, share, least, most, tmp_path, capsys):
    """bfloat16 steps are 2^-8 to 2^-7 of a weight. A delta of 1e-3 of the weights is less than half a step for nearly
    all of them, and is rounded away: the merged model is hardly the trained one. Hence no merging by default. (At 1e-2
    a sixth is lost, at 1e-1 little.)"""
    base = Path(shutil.copytree(MODEL, tmp_path / "base"))
    rounded = {key: tensor.bfloat16() for key, tensor in safetensors.torch.load_file(MODEL / WEIGHTS).items()}
    safetensors.torch.save_file(rounded, base / WEIGHTS, {"format": "pt"})
    factors = make_factors(model, share)
    lost = merge.merge(write_adapter(tmp_path / "adapter", factors, base), tmp_path / "merged")
    assert least < lost < most
    assert f"{share:.1e} of their norm, and rounding lost {lost:.0%} of it" in capsys.readouterr().out

    # The same share, computed from the files
    merged = safetensors.torch.load_file(tmp_path / "merged" / WEIGHTS)
    gaps = []
    deltas = []
    for path, (a, b) in factors.items():
        name = path.removeprefix("model.").replace("language_model", "language_model.model")
        key = f"{name}.weight"
        assert merged[key].dtype == torch.bfloat16
        delta = ALPHA / RANK * b @ a
        change = merged[key].float() - rounded[key].float()
        deltas.append(delta.flatten())
        gaps.append((change - delta).flatten())
    assert torch.cat(gaps).norm() / torch.cat(deltas).norm() == pytest.approx(lost, rel=1e-3)


def split_in_two(directory):
    """Write the same checkpoint as two shards with an index -> {tensor: name of its file}."""
    tensors = safetensors.torch.load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    names = {}
    for key in tensors:
        number = 2 if "layers" in key else 1
        names[key] = f"model-0000{number}-of-00002.safetensors"
    for name in set(names.values()):
        shard = {key: tensor for key, tensor in tensors.items() if names[key] == name}
        safetensors.torch.save_file(shard, directory / name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return names


def test_shards_stay_shards(model, tmp_path):
    sharded = Path(shutil.copytree(MODEL, tmp_path / "base"))
    names = split_in_two(sharded)
    factors = make_factors(model)
    merge.merge(write_adapter(tmp_path / "one", factors), tmp_path / "from-one")
    merge.merge(write_adapter(tmp_path / "two", factors, sharded), tmp_path / "from-two")

    whole = safetensors.torch.load_file(tmp_path / "from-one" / WEIGHTS)
    files_of_tensors = {}
    for file in (tmp_path / "from-two").glob("*.safetensors"):
        for key, tensor in safetensors.torch.load_file(file).items():
            assert torch.equal(tensor, whole[key]), key
            files_of_tensors[key] = file.name
    assert files_of_tensors == names
    assert (tmp_path / "from-two" / "model.safetensors.index.json").exists()


def test_what_the_base_has_beside_its_weights_is_taken_over_for_everybody(model, tmp_path):
    base = Path(shutil.copytree(MODEL, tmp_path / "base"))
    (base / "LICENSE").write_text("do what you like")
    (base / "model-00001-of-00099.safetensors").write_bytes(b"of an older save")
    merge.merge(write_adapter(tmp_path / "adapter", make_factors(model), base), tmp_path / "merged")
    names = {file.name for file in base.iterdir()} - {"README.md", "model-00001-of-00099.safetensors"}
    assert {file.name for file in (tmp_path / "merged").iterdir()} == names
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "merged").iterdir()}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {0o666 & ~umask}


# ------------------------------------------------------------------------------
# What is refused


def check_refused(adapter, complaint):
    """Check that an adapter is refused with this complaint, and that nothing is written beside it."""
    before = sorted(adapter.parent.iterdir())
    with pytest.raises(common.InputError, match=complaint):
        merge.merge(adapter, adapter.parent / "merged")
    assert sorted(adapter.parent.iterdir()) == before


def test_a_merged_model_keeps_the_prompt_that_its_adapter_was_trained_behind(model, tmp_path):
    # Of the base, which lists another, it would be asked in other words than it was trained with
    adapter = write_adapter(tmp_path / "adapter", make_factors(model))
    common.write_json(adapter / "prompts.json", {"answer": "{question} Look closely."})
    merge.merge(adapter, tmp_path / "merged")
    assert common.read_json(tmp_path / "merged" / "prompts.json") == {"answer": "{question} Look closely."}


@pytest.mark.parametrize(
    "config, complaint",
    [
        ({"use_dora": True}, "use_dora is more than plain LoRA"),
        ({"use_rslora": True}, "use_rslora is more than plain LoRA"),
        ({"alpha_pattern": {"up_proj": 1}}, "alpha_pattern is more than plain LoRA"),
        ({"peft_type": "IA3"}, "peft_type is more than plain LoRA"),
        ({"base_model_name_or_path": "/nowhere"}, "/nowhere, which .*adapter names as its base: no such directory"),
    ],
)
def test_other_configs_are_refused_and_nothing_is_written(model, config, complaint, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    adapter = write_adapter(tmp_path / "adapter", make_factors(model), **config)
    check_refused(adapter, complaint)


FIRST = "model.language_model.layers.0.mlp.up_proj"  # its W is (320, 128)


def lose_b(factors):
    a, _ = factors[FIRST]
    factors[FIRST] = (a,)


def cut_rank_of_a(factors):
    a, b = factors[FIRST]
    factors[FIRST] = (a[:2], b)


def cut_rank_of_b(factors):
    a, b = factors[FIRST]
    factors[FIRST] = (a, b[:, :2])


def cut_inputs(factors):
    a, b = factors[FIRST]
    factors[FIRST] = (a[:, :-1], b)


def rename_to_a_stranger(factors):
    factors["model.stranger"] = factors.pop(FIRST)


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lose_b, f"one factor of {FIRST}.weight is missing"),
        (cut_rank_of_a, "its rank is not r = 4"),
        (cut_rank_of_b, "its rank is not r = 4"),
        (cut_inputs, r"weight is \(320, 127\), the base's \(320, 128\)"),
        (rename_to_a_stranger, "model.stranger.weight is not a weight of the base"),
    ],
)
def test_factors_that_do_not_fit_are_refused_and_nothing_is_written(model, damage, complaint, tmp_path):
    factors = make_factors(model)
    damage(factors)
    check_refused(write_adapter(tmp_path / "adapter", factors), complaint)


def test_what_is_not_an_adapter_is_refused(tmp_path):
    with pytest.raises(common.InputError, match="not an adapter"):
        merge.merge(MODEL, tmp_path / "merged")


def test_tensors_of_another_method_are_refused(model, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", make_factors(model))
    tensors = safetensors.torch.load_file(adapter / ADAPTER_WEIGHTS)
    tensors[f"base_model.model.{FIRST}.lora_magnitude_vector"] = torch.zeros(320)  # DoRA's
    safetensors.torch.save_file(tensors, adapter / ADAPTER_WEIGHTS)
    check_refused(adapter, "lora_magnitude_vector is not a factor of plain LoRA")


def test_an_incomplete_adapter_is_refused(model, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", make_factors(model))
    path = adapter / ADAPTER_WEIGHTS
    path.write_bytes(path.read_bytes()[:-4])
    check_refused(adapter, "adapter_model.safetensors: .* is cut off")


def test_a_base_of_the_original_format_must_be_converted_first(model, tmp_path):
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "config.json").write_text('{"model_type": "internvl_chat"}')
    adapter = write_adapter(tmp_path / "adapter", make_factors(model), tmp_path / "original")
    check_refused(adapter, "internvl_chat, not internvl, .*; convert it: python -m tools.convert")


# ------------------------------------------------------------------------------
# PEFT itself


@torch.no_grad()
def test_peft_reads_these_adapters_the_same_way(model, ids, tmp_path):
    """Optional: where PEFT is installed, its forward pass is the one written out above, and its own merging is ours."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed; nothing here needs it")
    factors = make_factors(model)
    write_adapter(tmp_path / "adapter", factors)
    theirs = peft.PeftModel.from_pretrained(vlm.load_model(MODEL, ["cpu"]), str(tmp_path / "adapter")).eval()
    logits = theirs(input_ids=ids).logits
    torch.testing.assert_close(logits, unmerged_logits(model, factors, ids), rtol=1e-5, atol=5e-5)

    merge.merge(tmp_path / "adapter", tmp_path / "merged")
    ours = vlm.load_model(tmp_path / "merged", ["cpu"])
    torch.testing.assert_close(theirs.merge_and_unload()(ids).logits, ours(ids).logits, rtol=1e-5, atol=5e-5)
