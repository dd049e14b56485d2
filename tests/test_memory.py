"""tools.memory counts without numbers; here its counts are compared with what a real forward pass on real tensors keeps."""

import argparse
import copy
from pathlib import Path

import pytest
import torch
import transformers

import common
import dpo
from conftest import MODEL
from tools import memory

INTERNVL_8B = Path(__file__).parent / "fixtures" / "internvl2_5-8b"
ARGS = argparse.Namespace(
    dtype="bfloat16",
    frames=32,
    pairs=6,
    question_tokens=40,
    answer_tokens=100,
    videos_per_step=8,
    activation_checkpointing=False,
    tune="full",
    lora_rank=16,
)


def test_internvl2_5_8b_by_hand():
    """Published as 8.08 billion parameters: language model 7.74, vision tower 0.30, projector 0.03."""
    [row] = memory.plan(transformers.InternVLConfig.from_pretrained(INTERNVL_8B), ["cuda:0"], ARGS)
    language = 2 * 92553 * 4096 + 4096 + 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336 + 2 * 4096)
    assert row["gradients"] == 2 * language and row["AdamW"] == 16 * language
    assert row["weights"] == pytest.approx(2 * 8.08e9, rel=2e-3)
    assert row["cache"] == 32 * 2 * 8 * 128 * 2 * 32 * (
        256 + 8
    )  # layers, keys and values, heads, their size, bytes, tokens


def test_lora_by_hand():
    """Of 32 layers q, k, v, o, gate, up and down, each with factors of (in + out) x 16 numbers in float32; AdamW has two moments of each."""
    [row] = memory.plan(
        transformers.InternVLConfig.from_pretrained(INTERNVL_8B),
        ["cuda:0"],
        argparse.Namespace(**vars(ARGS) | {"tune": "lora"}),
    )
    numbers = 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert (
        row["gradients"] == 4 * numbers
        and row["AdamW"] == 8 * numbers
        and row["weights"] == pytest.approx(2 * 8.08e9 + 4 * numbers, rel=2e-3)
    )


def test_four_devices_share_what_one_has():
    config = transformers.InternVLConfig.from_pretrained(INTERNVL_8B)
    [one], four = memory.plan(config, ["cuda:0"], ARGS), memory.plan(config, [f"cuda:{n}" for n in range(4)], ARGS)
    for key in ("layers", "weights", "gradients", "AdamW", "cache"):
        assert sum(row[key] for row in four) == one[key]
    tokens, branches = 32 * (256 + 8) + 2 * 6 * (40 + 100), 2 * 6 * (40 + 100)
    copies = 3 * (
        branches * tokens * 2 + 2 * tokens * 128 * 2
    )  # what each device but the first has once: mask, cosines and sines
    assert sum(row["activations"] for row in four) == ARGS.videos_per_step * (
        one["activations"] + copies
    )  # all forward passes of a step come first


@pytest.mark.parametrize("tune, rank", [("full", 0), ("lora", 16)])
def test_what_is_counted_on_meta_is_what_a_real_pass_keeps(model, tokenizer, frames, tune, rank):
    """The tiny model's own forward pass over [video | branches]: all that autograd keeps of it, the weights aside."""
    video = common.Video(model, tokenizer, frames)
    branches = [
        common.encode_branch(
            tokenizer, common.ANSWER_PROMPT.format(question="how many shapes are there?"), "there are two shapes."
        )
        for _ in range(6)
    ]
    n_tokens, n_answers = (
        video.ids.shape[1] + sum(map(len, sum(branches, ()))),
        sum(len(answer) for _, answer in branches),
    )
    model = copy.deepcopy(model)
    if tune == "lora":
        common.add_lora(model.model.language_model.layers, 16, 32)
    dpo.freeze_all_but_language(model, tune=tune)
    with memory.count_kept(model) as kept:
        common.branch_logps(model, video, branches)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    n_layers = model.config.text_config.num_hidden_layers
    one, two = (memory.kept_bytes(model.config, n, n_tokens, n_answers, torch.float32, rank) for n in (1, 2))
    assert (n_layers * (two - one) + 2 * one - two) == pytest.approx(real, rel=0.1)


def test_the_readme_has_what_the_tool_prints():
    readme, config = (
        (INTERNVL_8B.parent.parent.parent / "README.md").read_text(),
        transformers.InternVLConfig.from_pretrained(INTERNVL_8B),
    )
    ours = argparse.Namespace(**vars(ARGS) | {"activation_checkpointing": True})
    for n, gpus in ((1, "1 x 24 GB"), (2, "2 x 80 GB"), (4, "4 x 80 GB"), (8, "8 x 40 GB")):
        [line] = [line for line in readme.splitlines() if line.startswith(f"| {gpus} |")]
        cells = [cell.split(",")[0] for cell in line.split(" | ")]
        for tune, cell in (("full", cells[2]), ("lora", cells[3])):
            rows = memory.plan(
                config, [f"cuda:{number}" for number in range(n)], argparse.Namespace(**vars(ours) | {"tune": tune})
            )
            assert (
                cell.strip(" |").removeprefix("does not fit: ") == f"{max(row['training'] for row in rows) / 2**30:.1f}"
            )
            assert tune == "lora" or cells[1] == f"{max(row['weights'] + row['cache'] for row in rows) / 2**30:.1f}"


def test_it_prints_a_table(capsys, monkeypatch):
    monkeypatch.setattr(
        "sys.argv",
        [
            "memory.py",
            str(MODEL),
            "--devices",
            "2",
            "--dtype",
            "float32",
            "--frames",
            "8",
            "--activation-checkpointing",
        ],
    )
    memory.main()
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:]] == [
        ["device", "0"],
        ["device", "1"],
        ["in", "all"],
    ]


def test_of_an_adapter_the_base_is_counted_and_another_class_is_not(capsys, monkeypatch, tmp_path):
    common.write_json(
        tmp_path / "adapter_config.json",
        {"peft_type": "LORA", "base_model_name_or_path": str(MODEL), "r": 4, "lora_alpha": 8},
    )
    printed = []
    for model in (MODEL, tmp_path):
        monkeypatch.setattr("sys.argv", ["memory.py", str(model), "--tune", "lora"])
        memory.main()
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    common.write_json(tmp_path / "config.json", {"model_type": "llava"})
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(common.InputError, match="unknown class llava, not internvl"):
        memory.main()
