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
import generate
import test_dpo
import vlm
from conftest import MODEL
from test_merge import make_factors, write_adapter
from tools import merge

pairs = test_dpo.pairs  # fixtures
train = test_dpo.train

SMALL = ("--tune", "lora", "--lora-rank", "4")
LEARN = (*SMALL, "--lr", "1e-2", "--epochs", "10", "--videos-per-step", "2", "--warmup", "0")


@pytest.fixture
def ids():
    return torch.randint(10, 200, (1, 24), generator=torch.Generator().manual_seed(1))


def logits(path, ids):
    with torch.no_grad():
        return vlm.load_model(path, ["cpu"])(ids).logits


def test_by_hand():
    """W = 0, A = (1 2), B = (1 0 -1)^T, alpha / r = 2.

    For x = (3, 1) A x = 5, B A x = (5, 0, -5), and y is twice that. Before B has learned, y = W x.
    """
    linear = torch.nn.Linear(2, 3, bias=False)
    torch.nn.init.zeros_(linear.weight)
    vlm.add_lora(torch.nn.ModuleList([linear]), rank=1, alpha=2)
    x = torch.tensor([3.0, 1.0])
    assert linear(x).tolist() == [0.0, 0.0, 0.0]
    linear.lora_A.weight.data = torch.tensor([[1.0, 2.0]])
    linear.lora_B.weight.data = torch.tensor([[1.0], [0.0], [-1.0]])
    assert linear(x).tolist() == [10.0, 0.0, -10.0]


# ------------------------------------------------------------------------------
# Training


def test_it_learns_the_pairs_by_factors_alone(train, model, ids):
    adapter, metrics = train("adapter", *LEARN)
    first, last = metrics[0], metrics[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)  # B = 0: the base itself
    assert abs(first["rewards/margins"]) < 1e-4
    assert last["loss"] < 0.5
    assert last["rewards/accuracies"] == 1.0
    assert (logits(adapter, ids) - logits(MODEL, ids)).abs().max() > 0.1

    # The base's weights are as they were; what else there is are the factors of 28 linear layers
    trained = dict(vlm.load_model(adapter, ["cpu"]).named_parameters())
    shapes = []
    for name, weight in model.named_parameters():
        assert torch.equal(trained.pop(name), weight)
        if "language_model.layers" in name and weight.dim() == 2:
            shapes.append(weight.shape)
    assert len(shapes) == 4 * 7  # q, k, v, o, gate, up, down of four layers
    assert len(trained) == 2 * len(shapes)
    n_expected = sum(4 * (n_out + n_in) for n_out, n_in in shapes)
    assert sum(weight.numel() for weight in trained.values()) == n_expected

    names = {path.name for path in adapter.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json", "README.md"}
    assert "model.safetensors" not in names


def test_the_next_round_trains_the_adapter_further(train, ids):
    first, _ = train("first", *LEARN)
    second, metrics = train("second", "--tune", "lora", "--lr", "1e-3", model=first)
    # The reference is the model with the first round's adapter
    assert abs(metrics[0]["rewards/margins"]) < 1e-4
    assert (logits(second, ids) - logits(first, ids)).abs().max() > 0

    before, config = (json.loads((path / "adapter_config.json").read_text()) for path in (first, second))
    assert config == before
    assert config["r"] == 4
    assert config["base_model_name_or_path"] == str(MODEL)
    with pytest.raises(common.InputError, match="first is an adapter: train it further with --tune lora, or merge it"):
        train("third", model=first)


def test_alpha_is_twice_the_rank_unless_it_is_given_and_an_adapter_keeps_its_own(train):
    for more, expected in (((), 8), (("--lora-alpha", "32"), 32)):
        adapter, _ = train(f"adapter{expected}", *SMALL, *more)
        assert common.read_json(adapter / "adapter_config.json")["lora_alpha"] == expected
    with pytest.raises(common.InputError, match=r"--lora-alpha 16: .*adapter32 is an adapter with lora_alpha 32"):
        train("next", *SMALL, "--lora-alpha", "16", model=adapter)


def test_target_modules_names_what_is_trained(train):
    # As PEFT reads it: a regular expression that matches a module's whole name
    adapter, _ = train("adapter", *SMALL)
    [pattern] = common.read_keys(adapter / "adapter_config.json", "target_modules")
    modules = vlm.load_model(MODEL, ["cpu"]).named_modules()
    named = {name for name, _ in modules if re.fullmatch(pattern, name)}
    assert len(named) == 28
    assert all(".self_attn." in name or ".mlp." in name for name in named)


def test_beside_bfloat16_weights_the_factors_stay_in_float32(train):
    """At 5e-7 a bfloat16 factor would stand still (see test_dpo.py): they are read, trained and written in float32."""
    adapter, _ = train("adapter", "--tune", "lora", "--dtype", "bfloat16")
    written = safetensors.torch.load_file(adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    loaded = vlm.load_model(adapter, ["cpu"], torch.bfloat16)
    types_found = {(".lora_" in name, weight.dtype) for name, weight in loaded.named_parameters()}
    assert types_found == {(True, torch.float32), (False, torch.bfloat16)}


def test_a_stage_runs_on_an_adapter(train, video_file, monkeypatch, capsys):
    adapter, _ = train("adapter", *LEARN)
    capsys.readouterr()
    command = ["generate.py", "--model", adapter, "--input", video_file, "--devices", "cpu"]
    command += ["--ask", "how many shapes are there?"]
    monkeypatch.setattr("sys.argv", [str(word) for word in command])
    generate.main()
    said = capsys.readouterr().out.strip()
    assert said in {chosen for _, _, chosen, _ in test_dpo.PAIRS}  # what it was trained to say


# ------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize("alpha", [8, 3])  # 2 r, as dpo.py has it, and another
def test_unmerged_equals_merged_in_float32(model, ids, tmp_path, alpha):
    adapter = write_adapter(tmp_path / "adapter", make_factors(model), lora_alpha=alpha)
    merge.merge(adapter, tmp_path / "merged")
    unmerged = logits(adapter, ids)
    assert (unmerged - logits(MODEL, ids)).abs().max() > 0.1
    torch.testing.assert_close(logits(tmp_path / "merged", ids), unmerged, rtol=1e-5, atol=5e-5)


def test_peft_itself_loads_the_adapter(train, ids):
    """Optional: where PEFT is installed, the model that it makes of our adapter answers as ours does."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed; nothing here needs it")
    adapter, _ = train("adapter", *LEARN)
    theirs = peft.PeftModel.from_pretrained(vlm.load_model(MODEL, ["cpu"]), str(adapter)).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=ids).logits, logits(adapter, ids), rtol=1e-5, atol=5e-5)


def test_what_an_adapter_says_of_itself(model, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", make_factors(model))
    assert vlm.read_adapter(adapter) == vlm.Adapter(base=str(MODEL), rank=4, alpha=8)
    assert vlm.read_adapter(MODEL) == vlm.Adapter(base=MODEL, rank=0, alpha=0)  # a plain checkpoint


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
        ({"r": "16"}, "adapter_config.json: r is '16'; a whole number"),
        ({"r": True}, "adapter_config.json: r is True; a whole number"),
        ({"lora_alpha": None}, "adapter_config.json: lora_alpha is None; a number above 0"),
        ({"lora_alpha": float("nan")}, "adapter_config.json: lora_alpha is nan; a number above 0"),
        ({"base_model_name_or_path": ["m"]}, r"base_model_name_or_path is \['m'\]; write the directory"),
        ({"base_model_name_or_path": "../base"}, "a relative path is taken from where you are .*whole path"),
        ({"r": 8}, r"lora_A.weight has the shape \(4, 320\), but by the config it is \(8, 320\)"),
        (
            {"base_model_name_or_path": "nowhere/at-all"},
            "nowhere/at-all, which .*adapter names as its base: no such directory, and not found on the hub",
        ),
    ],
)
def test_other_adapters_are_refused_by_name(model, tmp_path, config, complaint, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    adapter = write_adapter(tmp_path / "adapter", make_factors(model), **config)
    with pytest.raises(common.InputError, match=complaint):
        vlm.load_model(adapter, ["cpu"])


def test_an_adapter_with_an_unknown_tensor_is_refused(model, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", make_factors(model))
    unknown = "model.language_model.layers.1.mlp.up_proj.lora_magnitude_vector"
    path = adapter / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors[f"base_model.model.{unknown}"] = torch.zeros(320)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(common.InputError, match=f"adapter_model.safetensors: .*{unknown}"):
        vlm.load_model(adapter, ["cpu"])


def test_an_adapter_with_a_missing_tensor_is_refused(model, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", make_factors(model))
    missing = "model.language_model.layers.1.mlp.up_proj.lora_A.weight"
    path = adapter / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors.pop(f"base_model.model.{missing}")
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(common.InputError, match=f"no weights for {missing}; .*tools.merge merges such"):
        vlm.load_model(adapter, ["cpu"])


def test_pickled_factors_are_refused_and_the_message_says_how_peft_writes_others(model, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", make_factors(model))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    for load in (vlm.check_model, vlm.load_model):
        with pytest.raises(common.InputError, match="adapter_model.bin: pickled .*safe_serialization=True"):
            load(adapter)


@pytest.mark.parametrize("kept, complaint", [("q_proj|v_proj", "no weights for .*k_proj"), ("vision", "has no tensor")])
def test_factors_of_other_modules_are_refused_in_one_line_that_says_what_helps(model, tmp_path, kept, complaint):
    """PEFT's own default is q_proj and v_proj alone."""
    factors = {path: pair for path, pair in make_factors(model).items() if re.search(kept, path)}
    if kept == "vision":
        a, b = torch.zeros(4, 96), torch.zeros(96, 4)
        factors = {"model.vision_tower.encoder.layer.0.attention.q_proj": (a, b)}
    adapter = write_adapter(tmp_path / "adapter", factors)
    with pytest.raises(common.InputError, match=f"{complaint}.*tools.merge merges such adapters") as refused:
        vlm.check_model(adapter)
    assert "\n" not in str(refused.value)


def test_an_adapter_as_peft_writes_it_has_no_tokenizer_and_the_bases_is_taken(model, tokenizer, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", make_factors(model))
    assert not list(adapter.glob("tokenizer*"))
    assert vlm.load_tokenizer(adapter).get_vocab() == tokenizer.get_vocab()


def test_an_adapter_with_a_tokenizer_of_its_own_keeps_it(model, tokenizer, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", make_factors(model))
    tokenizer.save_pretrained(adapter)
    template = adapter / "chat_template.jinja"
    template.write_text("of the adapter " + template.read_text())
    assert vlm.load_tokenizer(adapter).chat_template.startswith("of the adapter ")


# ------------------------------------------------------------------------------
# The base is an input, too


def test_the_base_cannot_be_the_output(train, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(MODEL, base)
    adapter, _ = train("adapter", *SMALL, model=base)
    with pytest.raises(common.InputError, match="base is also an input"):  # --overwrite would delete it
        train("base", "--tune", "lora", "--overwrite", model=adapter)
    assert vlm.load_model(base, ["cpu"])


def test_other_weights_of_the_base_are_another_model(model, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(MODEL, base)
    adapter = write_adapter(tmp_path / "adapter", make_factors(model), base=base)
    args = types.SimpleNamespace(model=str(adapter), input=[], output=tmp_path / "out")

    def fingerprint_of_model():
        return common.make_meta(args, [], {}, tmp_path, [])["content"]["model"]

    before = fingerprint_of_model()
    file = base / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({name: 0.9 * tensor for name, tensor in tensors.items()}, file)
    assert fingerprint_of_model() != before
