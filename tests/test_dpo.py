"""The training stage as a whole, on four pairs about two videos."""

import argparse
import json
import math
import pathlib
import resource
import sys

import pytest
import torch
import transformers

import common
import dpo
from conftest import MODEL
from shapes import world

PAIRS = [
    ("a.mp4", "which way does the red square move?", "it moves up.", "it moves left."),
    ("a.mp4", "how many shapes are there?", "there are two shapes.", "there are three shapes."),
    ("a.mp4", "why does the blue triangle move?", "because the red square hits it.", "it moves by itself."),
    ("b.mp4", "how many shapes are there?", "there are three shapes.", "there are two shapes."),
]


@pytest.fixture
def pairs(tmp_path):
    for index, name in enumerate(("a.mp4", "b.mp4")):
        world.render(world.make_scene(0, "dev", index), tmp_path / name)
    rows = [
        {"id": f"{video}/{n}", "video": video, "question": question, "chosen": chosen, "rejected": rejected}
        for n, (video, question, chosen, rejected) in enumerate(PAIRS)
    ]
    rows.append({"id": "a.mp4/9", "video": "a.mp4", "dropped": "unchanged"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common.write_json(
        common.meta_path(path),
        {"root": str(tmp_path), "stage": "refine.py", "finished": {"account": "written by hand"}},
    )
    return path


@pytest.fixture
def train(pairs, monkeypatch):
    def train(name, *more, model=MODEL):
        output = pairs.parent / name
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "dpo.py",
                "--model",
                str(model),
                "--input",
                str(pairs),
                "--output",
                str(output),
                "--devices",
                "cpu",
                *more,
            ],
        )
        dpo.main()
        return output, [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]

    return train


def test_it_learns_the_pairs_and_leaves_the_vision_tower_alone(train, model):
    output, metrics = train("model", "--lr", "1e-3", "--epochs", "10", "--warmup", "0")
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # policy = reference
    assert abs(metrics[0]["rewards/margins"]) < 1e-4
    assert metrics[-1]["loss"] < 0.5 and metrics[-1]["rewards/accuracies"] == 1.0
    trained = common.load_model(output, ["cpu"])
    for (name, before), (_, after) in zip(model.named_parameters(), trained.named_parameters()):
        assert torch.equal(before, after) == ("language_model" not in name and "lm_head" not in name), name
    assert {path.name for path in MODEL.glob("*.json*")} - {"training.json"} <= {path.name for path in output.iterdir()}


def test_a_step_is_a_mean_over_pairs_not_over_videos(train, tokenizer, model, pairs):
    # three pairs about one video and one about the other, in one step: the metrics are the means of the four
    _, [first, *_] = train("model", "--limit", "2")
    lengths = [len(common.encode_branch(tokenizer, "", chosen)[1]) for _, _, chosen, _ in PAIRS]
    assert first["lengths/chosen"] == sum(lengths) / 4
    args = argparse.Namespace(loss="sigmoid", beta=0.1, label_smoothing=0.0, nll_weight=0.0, sft_on="chosen")
    sums = torch.tensor([[-1.0, -2.0, -3.0, -4.0], [-2.0, -2.0, -2.0, -2.0]])
    zero, ones = torch.zeros(2, 4), torch.ones(2, 4)
    whole, _ = dpo.step_loss(args, sums, ones, zero, n_pairs=4, n_tokens=4)
    parts = [
        dpo.step_loss(args, sums[:, part], ones[:, part], zero[:, part], n_pairs=4, n_tokens=4)[0]
        for part in (slice(0, 3), slice(3, 4))
    ]
    assert whole.item() == pytest.approx(sum(parts).item())


def test_step_loss_by_hand():
    # one pair: log-probs -6 and -8 over 3 and 4 tokens, reference -9 and -8
    sums, lengths, reference = (
        torch.tensor([[-6.0], [-8.0]]),
        torch.tensor([[3.0], [4.0]]),
        torch.tensor([[-9.0], [-8.0]]),
    )
    args = argparse.Namespace(loss="ipo", beta=0.5, label_smoothing=0.0, nll_weight=0.0, sft_on="chosen")
    loss = lambda **changes: dpo.step_loss(argparse.Namespace(**vars(args) | changes), sums, lengths, reference, 1, 3)[
        0
    ].item()
    assert loss() == pytest.approx((1.0 - 1.0) ** 2)  # per token: h = (-2 + 3) - (-2 + 2) = 1, 1 / (2 beta) = 1
    assert loss(loss="sft") == pytest.approx(2.0)  # 6 nats over 3 chosen tokens
    assert loss(loss="hinge", nll_weight=0.5) == pytest.approx(0.0 + 0.5 * 2.0)  # beta * h = 0.5 * 3 > 1


def test_bfloat16_trains_on_float32_masters(train):
    # at this rate a step is below bfloat16's resolution for most weights, but the masters add the steps up
    output, metrics = train("model", "--dtype", "bfloat16", "--lr", "1e-3", "--epochs", "10", "--warmup", "0")
    assert metrics[-1]["loss"] < metrics[0]["loss"] < 0.75
    assert all(
        weight.dtype == torch.bfloat16 for weight in common.load_model(output, ["cpu"], torch.bfloat16).parameters()
    )


def test_plain_bfloat16_stands_still_where_float32_masters_move():
    """A weight of 0.02 in bfloat16 has neighbours at a distance of 1.2e-4; AdamW's steps are about the learning rate, 5e-7. Each is rounded away, and
    200 of them are 200 times nothing; summed in float32 they are 1e-4, which shows after rounding in most weights."""
    start = 0.02 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    plain, weight = torch.nn.Parameter(start.bfloat16()), start.bfloat16()
    master = torch.nn.Parameter(weight.float())
    optimizers = [torch.optim.AdamW([parameter], 5e-7, weight_decay=0.0) for parameter in (plain, master)]
    gradient = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    for _ in range(200):
        plain.grad, master.grad = gradient.bfloat16(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = lambda now: (now != start.bfloat16()).float().mean().item()
    assert moved(plain) < 0.02 and moved(master.bfloat16()) > 0.6 and moved(master.float()) > 0.99


def test_the_learning_rate_warms_up_and_cools_down():
    args = argparse.Namespace(lr=1.0, warmup=0.2)
    rates = [dpo.learning_rate(args, step, 10) for step in range(10)]
    assert (
        rates[:3] == [0.5, 1.0, 1.0]
        and rates[6] == pytest.approx(0.5)
        and rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    )


@pytest.mark.parametrize(
    "tune", ["full", "lora"]
)  # with LoRA nothing below the first layer has a gradient; its factors have theirs all the same
def test_activation_checkpointing_changes_nothing_but_memory(train, monkeypatch, tune):
    flags = ("--lr", "1e-3", "--epochs", "2", "--tune", tune)
    calls, attention = [], transformers.AttentionInterface()["sdpa"]
    counted = lambda *args, **kwargs: (calls.append(1), attention(*args, **kwargs))[1]
    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "sdpa", counted)
    (plain, _), n_plain, (saved, _) = (
        train("plain", *flags),
        len(calls),
        train("saved", *flags, "--activation-checkpointing"),
    )
    # 2 videos: the reference and two epochs, each with 2 layers of the vision tower; 4 layers x 2 parts (video, branches), again in two backward passes
    assert n_plain == 2 * 3 * (2 + 8) and len(calls) - n_plain == n_plain + 2 * 2 * 8
    for mine, theirs in zip(
        common.load_model(saved, ["cpu"]).parameters(), common.load_model(plain, ["cpu"]).parameters()
    ):
        torch.testing.assert_close(mine, theirs)


def test_infinity_stops_it_with_step_and_pairs(train, monkeypatch):
    monkeypatch.setattr(
        dpo, "dpo_loss", lambda chosen, *_, **__: (chosen * float("inf"), chosen.detach(), chosen.detach())
    )
    with pytest.raises(common.InputError, match="step 1: loss .*no update was made.*a.mp4/0"):
        train("model")


def test_run_again_it_does_nothing_and_other_arguments_are_refused(train, capsys):
    output, _ = train("model")
    before = (output / "model.safetensors").stat().st_mtime_ns
    train("model")
    assert "is finished" in capsys.readouterr().out and (output / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(common.InputError, match="beta"):
        train("model", "--beta", "0.2")


@pytest.mark.parametrize("how", ["--dtype=float32", "--dtype=bfloat16", "--tune=lora"])
def test_cut_off_it_goes_on_to_the_same_weights_bit_for_bit(train, monkeypatch, capsys, how):
    flags = ("--lr", "1e-3", "--epochs", "6", "--videos-per-step", "1", "--save-every", "3", how)  # 12 steps
    whole, steps = train("whole", *flags)
    for n_steps in (
        1,
        4,
        4,
        5,
    ):  # cut off behind steps 1 (no checkpoint yet), 4, 7 and 11: the newest checkpoints are of 3, 6 and 9
        calls, accumulate = [], dpo.accumulate

        def cut_off(*arguments):
            calls.append(1)
            if len(calls) > n_steps:
                raise KeyboardInterrupt
            return accumulate(*arguments)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(dpo, "accumulate", cut_off)
            train("torn", *flags)
    output, metrics = train("torn", *flags)
    assert "going on behind step 9" in capsys.readouterr().out
    [file] = output.glob("*model.safetensors")  # or adapter_model.safetensors
    assert file.read_bytes() == (whole / file.name).read_bytes()
    strip = lambda rows: [{key: row[key] for key in row if key != "tokens/s"} for row in rows]
    assert strip(metrics) == strip(steps)
    assert (
        not list(output.glob("checkpoint*")) and not (output / "reference.json").exists()
    )  # what it took to go on is gone


def test_a_damaged_checkpoint_is_named(train, pairs, monkeypatch):
    flags = ("--epochs", "3", "--videos-per-step", "1", "--save-every", "2")

    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dpo, "save", cut_off)
        train("model", *flags)
    files = sorted((pairs.parent / "model").glob("checkpoint-*"))
    assert [file.name for file in files] == ["checkpoint-000002.state", "checkpoint-000004.state"]
    files[1].write_bytes(files[1].read_bytes()[:1000])
    with pytest.raises(common.InputError, match="checkpoint-000004.state: .*the one before"):
        train("model", *flags)
    files[1].unlink()
    assert train("model", *flags)[1][-1]["step"] == 6


def test_killed_before_it_has_cleaned_up_the_model_can_be_read(train, pairs, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pathlib.Path, "unlink", killed)
        train("model", "--epochs", "3", "--videos-per-step", "1", "--save-every", "4")
    assert list((pairs.parent / "model").glob("checkpoint-*")) and common.load_model(pairs.parent / "model", ["cpu"])


def test_a_full_disk_is_no_traceback(train, capsys):
    """A limit on the size of files does what a full disk does: the first checkpoint cannot be written whole."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(SystemExit, match="1"):
            common.run(lambda: train("model", "--epochs", "3", "--videos-per-step", "1", "--save-every", "2"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in (said := capsys.readouterr().err) and "the same command goes on" in said
    assert train("model", "--epochs", "3", "--videos-per-step", "1", "--save-every", "2")[1][-1]["step"] == 6


def test_no_pairs_are_said_so(train, pairs):
    pairs.write_text(json.dumps({"id": "a", "video": "a.mp4", "dropped": "unchanged"}) + "\n")
    with pytest.raises(common.InputError, match="no row is a pair"):
        train("model")
