"""LoRA: low-rank factors beside frozen weights, as dpo.py trains and load_model reads them."""

import json
import math
import re
import shutil
import types

import pytest
import safetensors.torch
import torch

import common
from conftest import MODEL
from test_dpo import PAIRS, pairs, train  # noqa: F401  (two are fixtures)
from test_merge import make_factors, write_adapter
from tools import merge

LORA = (
    "--tune",
    "lora",
    "--lora-rank",
    "4",
    "--lr",
    "1e-2",
    "--epochs",
    "10",
    "--videos-per-step",
    "2",
    "--warmup",
    "0",
)


def test_by_hand():
    """W = 0, A = (1 2), B = (1 0 -1)^T, alpha / r = 2: for x = (3, 1) A x = 5, B A x = (5, 0, -5), and y is twice that. Before B has learned, y = W x."""
    linear = torch.nn.Linear(2, 3, bias=False)
    torch.nn.init.zeros_(linear.weight)
    common.add_lora(torch.nn.ModuleList([linear]), rank=1, alpha=2)
    assert linear(torch.tensor([3.0, 1.0])).tolist() == [0.0, 0.0, 0.0]
    linear.lora_A.weight.data, linear.lora_B.weight.data = (
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[1.0], [0.0], [-1.0]]),
    )
    assert linear(torch.tensor([3.0, 1.0])).tolist() == [10.0, 0.0, -10.0]


@pytest.fixture
def ids():
    return torch.randint(10, 200, (1, 24), generator=torch.Generator().manual_seed(1))


def logits(path, ids):
    with torch.no_grad():
        return common.load_model(path, ["cpu"])(ids).logits


def test_it_learns_the_pairs_by_factors_alone(train, model, ids):
    adapter, metrics = train("adapter", *LORA)
    assert (
        metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and abs(metrics[0]["rewards/margins"]) < 1e-4
    )  # B = 0: the base itself
    assert metrics[-1]["loss"] < 0.5 and metrics[-1]["rewards/accuracies"] == 1.0
    trained = dict(common.load_model(adapter, ["cpu"]).named_parameters())
    assert all(
        torch.equal(trained.pop(name), weight) for name, weight in model.named_parameters()
    )  # the base's weights are as they were
    linear = [
        weight.shape
        for name, weight in model.named_parameters()
        if "language_model.layers" in name and weight.dim() == 2
    ]
    assert sum(weight.numel() for weight in trained.values()) == sum(4 * (n_out + n_in) for n_out, n_in in linear)
    assert len(trained) == 2 * len(linear) == 2 * 4 * 7  # q, k, v, o, gate, up, down of four layers
    assert {path.name for path in adapter.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer_config.json",
        "README.md",
    }
    assert not (adapter / "model.safetensors").exists()
    assert (logits(adapter, ids) - logits(MODEL, ids)).abs().max() > 0.1


def test_the_next_round_goes_on_with_the_adapter(train, ids):
    first, _ = train("first", *LORA)
    second, metrics = train("second", "--tune", "lora", "--lr", "1e-3", model=first)
    assert abs(metrics[0]["rewards/margins"]) < 1e-4  # its reference is the model with the first round's adapter
    configs = [json.loads((path / "adapter_config.json").read_text()) for path in (first, second)]
    assert configs[0] == configs[1] and configs[1]["r"] == 4 and configs[1]["base_model_name_or_path"] == str(MODEL)
    named = {
        name
        for name, module in common.load_model(MODEL, ["cpu"]).named_modules()
        if re.fullmatch(configs[1]["target_modules"], name)
    }  # as PEFT does
    assert len(named) == 28 and all(".self_attn." in name or ".mlp." in name for name in named)
    assert (logits(second, ids) - logits(first, ids)).abs().max() > 0
    with pytest.raises(common.InputError, match="first is an adapter: go on with --tune lora, or merge it"):
        train("third", model=first)


@pytest.mark.parametrize("alpha", [8, 3])  # 2 r, as dpo.py has it, and another
def test_unmerged_equals_merged_in_float32(model, ids, tmp_path, alpha):
    adapter = write_adapter(tmp_path / "adapter", make_factors(model), lora_alpha=alpha)
    merge.merge(adapter, tmp_path / "merged")
    assert (logits(adapter, ids) - logits(MODEL, ids)).abs().max() > 0.1
    torch.testing.assert_close(logits(tmp_path / "merged", ids), logits(adapter, ids), rtol=1e-5, atol=5e-5)


def test_beside_bfloat16_weights_the_factors_stay_in_float32(train):
    """At 5e-7 a bfloat16 factor would stand still (test_dpo.py has the lesson); these are read, trained and written in float32."""
    adapter, _ = train("adapter", "--tune", "lora", "--dtype", "bfloat16")
    assert {tensor.dtype for tensor in safetensors.torch.load_file(adapter / "adapter_model.safetensors").values()} == {
        torch.float32
    }
    types = {
        ".lora_" in name: weight.dtype
        for name, weight in common.load_model(adapter, ["cpu"], torch.bfloat16).named_parameters()
    }
    assert types == {True: torch.float32, False: torch.bfloat16}


def test_a_stage_runs_on_an_adapter(train, video_file, monkeypatch, capsys):
    import generate

    adapter, _ = train("adapter", *LORA)
    capsys.readouterr()
    monkeypatch.setattr(
        "sys.argv",
        [
            "generate.py",
            "--model",
            str(adapter),
            "--ask",
            "how many shapes are there?",
            "--input",
            str(video_file),
            "--devices",
            "cpu",
        ],
    )
    generate.main()
    assert capsys.readouterr().out.strip() in {chosen for _, _, chosen, _ in PAIRS}  # what it was trained to say


@pytest.mark.parametrize(
    "config, complaint",
    [
        ({"use_rslora": True}, "use_rslora is more than plain LoRA"),
        ({"use_dora": True}, "use_dora is more than plain LoRA"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern is more than plain LoRA"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is more than plain LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is more than plain LoRA"),  # it changes the base's weights
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is more than plain LoRA"),
        ({"of_a_later_version": 1}, "of_a_later_version is more than plain LoRA"),
        ({"peft_type": "LOHA"}, "peft_type is more than plain LoRA"),
        ({"r": 8}, "size mismatch for .*lora_A.weight"),
        (
            {"base_model_name_or_path": "nowhere/at-all"},
            "nowhere/at-all, which .*adapter names as its base: neither a directory nor",
        ),
    ],
)
def test_other_adapters_are_refused_by_name(model, tmp_path, config, complaint, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    adapter = write_adapter(tmp_path / "adapter", make_factors(model), **config)
    with pytest.raises(common.InputError, match=complaint):
        common.load_model(adapter, ["cpu"])


def test_the_base_counts_as_what_is_read(train, tmp_path):
    shutil.copytree(MODEL, base := tmp_path / "base")
    adapter, _ = train("adapter", "--tune", "lora", "--lora-rank", "4", model=base)
    with pytest.raises(common.InputError, match="base is what is read, too"):  # --overwrite would delete it
        train("base", "--tune", "lora", "--overwrite", model=adapter)
    meta = lambda: common.make_meta(
        types.SimpleNamespace(model=str(adapter), input=[], output=tmp_path / "out"), [], tmp_path, []
    )["content"]["model"]
    before, file = meta(), base / "model.safetensors"
    safetensors.torch.save_file(
        {name: 0.9 * tensor for name, tensor in safetensors.torch.load_file(file).items()}, file
    )
    assert meta() != before


def test_an_adapter_that_lacks_a_tensor_or_has_another_is_refused(model, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", make_factors(model))
    path, name = adapter / "adapter_model.safetensors", "model.language_model.layers.1.mlp.up_proj"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors | {f"base_model.model.{name}.lora_magnitude_vector": torch.zeros(320)}, path)
    with pytest.raises(common.InputError, match=f"adapter_model.safetensors: .*{name}.lora_magnitude_vector"):
        common.load_model(adapter, ["cpu"])
    tensors.pop(f"base_model.model.{name}.lora_A.weight")
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(
        common.InputError, match=f"no weights for {name}.lora_A.weight; tools.merge merges such adapters"
    ):
        common.load_model(adapter, ["cpu"])


def test_peft_itself_loads_the_adapter(train, ids):
    """Optional: where PEFT is installed, the model that it makes of our adapter answers as ours does."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed; nothing here needs it")
    adapter, _ = train("adapter", *LORA)
    theirs = peft.PeftModel.from_pretrained(common.load_model(MODEL, ["cpu"]), str(adapter)).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=ids).logits, logits(adapter, ids), rtol=1e-5, atol=5e-5)
