"""The training stage as a whole, on four pairs about two videos."""

import argparse
import copy
import functools
import json
import math
import pathlib
import resource
import shutil
import time
import types

import pytest
import torch
import transformers

import common
import dpo
import media
import outputs
import prompts
import vlm
from conftest import MODEL
from shapes import patterns, world

# (video, question, chosen, rejected)
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
PAIRS = [
    ("a.mp4", "which way does the red square move?", "it moves up.", "it moves left."),
    ("a.mp4", "how many shapes are there?", "there are two shapes.", "there are three shapes."),
    ("a.mp4", "why does the blue triangle move?", "because the red square hits it.", "it moves by itself."),
    ("b.mp4", "how many shapes are there?", "there are three shapes.", "there are two shapes."),
]


def write_pairs(directory):
    """Render the two videos and write pairs.jsonl with its meta.json, as refine.py would -> its path."""
    for number, name in enumerate(("a.mp4", "b.mp4")):
        world.render(world.make_scene(0, "dev", number), directory / name)
    rows = []
    for number, (video, question, chosen, rejected) in enumerate(PAIRS):
        row = {"id": f"{video}/{number}", "video": video, "question": question, "chosen": chosen, "rejected": rejected}
        rows.append(row)
    rows.append({"id": "a.mp4/9", "video": "a.mp4", "dropped": "unchanged"})

    path = directory / "pairs.jsonl"
    common.write_jsonl(path, rows)
    meta = {"root": str(directory), "stage": "refine.py", "finished": {"account": "written by hand"}}
    common.write_json(common.meta_path(path), meta)
    return path


def read_metrics(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path)


@pytest.fixture
def train(pairs, monkeypatch):
    def train(name, *more, model=MODEL):
        """Run dpo.py -> (its output directory, the rows of metrics.jsonl)."""
        output = pairs.parent / name
        command = ["dpo.py", "--model", model, "--input", pairs, "--output", output, "--devices", "cpu", *more]
        monkeypatch.setattr("sys.argv", [str(word) for word in command])
        dpo.main()
        return output, read_metrics(output)

    return train


def interrupt(*_, **__):
    raise KeyboardInterrupt


# ------------------------------------------------------------------------------
# It learns


def test_it_learns_the_pairs_and_leaves_the_vision_tower_alone(train, model):
    output, metrics = train("model", "--lr", "1e-3", "--epochs", "10", "--warmup", "0")
    first, last = metrics[0], metrics[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)  # policy = reference
    assert abs(first["rewards/margins"]) < 1e-4
    assert last["loss"] < 0.5
    assert last["rewards/accuracies"] == 1.0

    trained = vlm.load_model(output, ["cpu"])
    for (name, before), (_, after) in zip(model.named_parameters(), trained.named_parameters()):
        is_trained = "language_model" in name or "lm_head" in name
        assert torch.equal(before, after) == (not is_trained), name
    of_base = {path.name for path in MODEL.glob("*.json*")} - {"training.json"}
    assert of_base <= {path.name for path in output.iterdir()}


def test_tune_all_trains_every_weight(train, model, capsys):
    output, metrics = train("model", "--tune", "all", "--lr", "1e-3", "--epochs", "10", "--warmup", "0")
    assert "training all weights, also of the vision tower and the projector" in capsys.readouterr().out
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # policy = reference
    assert metrics[-1]["rewards/accuracies"] == 1.0
    trained = vlm.load_model(output, ["cpu"])
    for (name, before), (_, after) in zip(model.named_parameters(), trained.named_parameters()):
        assert not torch.equal(before, after), name


def test_the_gradient_of_the_vision_tower_is_the_slope_of_the_loss(tokenizer, frames, model):
    """Oracle: (f(w + h g) - f(w - h g)) / 2h is |g|^2, where f is a sum of log-probs and g its gradient in w."""
    model = copy.deepcopy(model).double()
    dpo.freeze_weights(model, tune="all")
    branches = [vlm.encode_branch(tokenizer, question, answer) for _, question, answer, _ in PAIRS]

    def total():
        sums, _ = vlm.branch_logps(model, vlm.Video(model, tokenizer, frames), branches)
        return sums.sum()

    total().backward()
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        weights = list(part.parameters())
        squared = sum(weight.grad.square().sum().item() for weight in weights)
        values = []
        h = 1e-4 / math.sqrt(squared)
        gradients = [weight.grad for weight in weights]
        with torch.no_grad():
            for times in (h, -2 * h):  # to w + h g, then to w - h g
                torch._foreach_add_(weights, gradients, alpha=times)
                values.append(total().item())
            torch._foreach_add_(weights, gradients, alpha=h)
        slope = (values[0] - values[1]) / (2 * h)
        assert slope == pytest.approx(squared, rel=1e-3)  # log-probs are float32


@pytest.mark.slow
def test_bfloat16_trains_on_float32_masters(train):
    # At this rate a step is below bfloat16's resolution for most weights, but the masters add the steps up
    output, metrics = train("model", "--dtype", "bfloat16", "--lr", "1e-3", "--epochs", "10", "--warmup", "0")
    assert metrics[-1]["loss"] < metrics[0]["loss"] < 0.75
    trained = vlm.load_model(output, ["cpu"], torch.bfloat16)
    assert {weight.dtype for weight in trained.parameters()} == {torch.bfloat16}


def test_plain_bfloat16_stands_still_where_float32_masters_move():
    """AdamW's steps are about the learning rate, 5e-7; a bfloat16 weight of 0.02 has neighbors 1.2e-4 away.

    So each step is rounded away, and 200 of them are 200 times nothing. Summed in float32 they are 1e-4, which shows
    after rounding in most weights.
    """
    start = 0.02 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    start = start.bfloat16()
    plain = torch.nn.Parameter(start.clone())
    master = torch.nn.Parameter(start.float())
    plain.grad = gradient.bfloat16()
    master.grad = gradient.clone()
    for parameter in (plain, master):
        optimizer = torch.optim.AdamW([parameter], 5e-7, weight_decay=0.0)
        for _ in range(200):
            optimizer.step()

    def share_moved(weights):
        return (weights != start).float().mean().item()

    assert share_moved(plain) < 0.02
    assert share_moved(master.bfloat16()) > 0.6
    assert share_moved(master.float()) > 0.99


def test_the_learning_rate_warms_up_and_cools_down():
    args = argparse.Namespace(lr=1.0, warmup=0.2)
    rates = [dpo.learning_rate(args, step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


# With LoRA nothing before the first layer has a gradient; its factors have theirs all the same
@pytest.mark.parametrize("tune", ["full", "all", "lora"])
def test_activation_checkpointing_changes_nothing_but_memory(train, monkeypatch, tune):
    flags = ("--lr", "1e-3", "--epochs", "2", "--tune", tune)
    sdpa = transformers.AttentionInterface()["sdpa"]
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return sdpa(*args, **kwargs)

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "sdpa", counted)
    plain, _ = train("plain", *flags)
    n_plain = len(calls)
    saved, _ = train("saved", *flags, "--activation-checkpointing")
    n_saved = len(calls) - n_plain

    # Each of 2 videos passes forward 3 times (the reference, then two epochs). A pass calls attention in the 2 layers
    # of the vision tower, and in the 4 layers of the language model once for the video, once for the branches.
    n_language = 4 * 2
    assert n_plain == 2 * 3 * (2 + n_language)
    n_again = 2 + n_language if tune == "all" else n_language
    assert n_saved == n_plain + 2 * 2 * n_again  # again in the backward passes of two epochs
    mine = vlm.load_model(saved, ["cpu"]).parameters()
    theirs = vlm.load_model(plain, ["cpu"]).parameters()
    for one, other in zip(mine, theirs):
        torch.testing.assert_close(one, other)


# ------------------------------------------------------------------------------
# A step's loss, by hand

ARGS = {"loss": "sigmoid", "beta": 0.5, "label_smoothing": 0.0, "nll_weight": 0.0, "sft_on": "chosen"}

# One pair: log-probs -6 and -8 over 3 and 4 tokens; under the reference they are -9 and -8
SUMS = torch.tensor([[-6.0], [-8.0]])
LENGTHS = torch.tensor([[3.0], [4.0]])
REFERENCE = torch.tensor([[-9.0], [-8.0]])


def loss_of_one_pair(n_tokens=3, **changes):
    args = argparse.Namespace(**ARGS | changes)
    loss, _ = dpo.step_loss(args, SUMS, LENGTHS, REFERENCE, n_pairs=1, n_tokens=n_tokens)
    return loss.item()


def test_step_loss_by_hand():
    # Per token: h = (-2 + 3) - (-2 + 2) = 1, and 1 / (2 beta) = 1
    assert loss_of_one_pair(loss="ipo") == pytest.approx((1.0 - 1.0) ** 2)
    # 6 nats over 3 chosen tokens
    assert loss_of_one_pair(loss="sft") == pytest.approx(2.0)
    # 8 nats over 4 rejected tokens, and no token counted for the chosen answer
    assert loss_of_one_pair(loss="sft", sft_on="rejected", n_tokens=4) == pytest.approx(2.0)
    # Hinge: beta * h = 0.5 * 3 is more than 1, so nothing but the NLL term is left
    assert loss_of_one_pair(loss="hinge", nll_weight=0.5) == pytest.approx(0.0 + 0.5 * 2.0)


@pytest.mark.parametrize("sft_on", ["chosen", "rejected"])
def test_the_nll_term_beside_a_preference_is_on_chosen_whatever_sft_learns(sft_on):
    # beta * h = 0.5 * 3, and the NLL is 6 nats over 3 chosen tokens
    loss = loss_of_one_pair(loss="sigmoid", nll_weight=1.0, sft_on=sft_on)
    assert loss == pytest.approx(math.log(1 + math.exp(-1.5)) + 2.0)


@pytest.mark.parametrize(
    "loss, sft_on, expected",
    [
        # Policy and reference are one: ln 2. NLL: 6 + 2 = 8 nats over 3 + 1 = 4 chosen tokens.
        ("sigmoid", "chosen", math.log(2) + 2.0),
        ("sigmoid", "rejected", math.log(2) + 2.0),
        ("sft", "chosen", 2.0),
        # 8 + 22 = 30 nats over 4 + 6 = 10 rejected tokens
        ("sft", "rejected", 3.0),
    ],
)
def test_a_step_counts_the_tokens_of_the_side_that_its_cross_entropy_is_on(monkeypatch, loss, sft_on, expected):
    logps = {
        ("a.mp4", None, None): (torch.tensor([[-6.0], [-8.0]]), torch.tensor([[3], [4]])),
        ("b.mp4", None, None): (torch.tensor([[-2.0], [-22.0]]), torch.tensor([[1], [6]])),
    }

    def by_hand(model, tokenizer, video, pairs):
        sums, lengths = logps[common.segment(pairs[0])]
        return sums.clone().requires_grad_(), lengths

    monkeypatch.setattr(dpo, "pair_logps", by_hand)
    batch = [(name, [{"id": f"{name}/0", "video": name}]) for name, _, _ in logps]
    watched = ((pairs, "a video that is not looked at") for _, pairs in batch)
    args = argparse.Namespace(**ARGS | {"loss": loss, "sft_on": sft_on, "nll_weight": 1.0})
    step = dpo.accumulate(torch.nn.Linear(1, 1), None, watched, batch, logps, args)
    assert step.loss == pytest.approx(expected)
    assert step.sums.tolist() == [[-6.0, -2.0], [-8.0, -22.0]]
    assert step.lengths.tolist() == [[3, 1], [4, 6]]


@pytest.mark.parametrize(
    "flags, complaint",
    [
        ("--nll-weight 1 --sft-on revised", "--sft-on belongs to --loss sft alone"),
        ("--loss sft --nll-weight 1", "--nll-weight is added to a preference loss"),
        ("--with-unchanged", "--with-unchanged needs --nll-weight or --loss sft"),
        ("--lora-rank 8", "--lora-rank and --lora-alpha belong to --tune lora alone"),
        ("--lora-alpha 8", "--lora-rank and --lora-alpha belong to --tune lora alone"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(train, capsys, flags, complaint):
    with pytest.raises(SystemExit):
        train("model", *flags.split())
    assert complaint in capsys.readouterr().err


def without_speed(metrics):
    return [{key: value for key, value in row.items() if key != "tokens/s"} for row in metrics]


def test_a_step_is_a_mean_over_pairs_not_over_videos(train, tokenizer):
    # Three pairs about one video and one about the other, in one step: the metrics are the means of the four
    _, [first, *_] = train("model", "--limit", "2")
    lengths = [len(vlm.encode_branch(tokenizer, "", chosen).answer) for _, _, chosen, _ in PAIRS]
    assert first["lengths/chosen"] == sum(lengths) / 4

    args = argparse.Namespace(**ARGS | {"beta": 0.1})
    sums = torch.tensor([[-1.0, -2.0, -3.0, -4.0], [-2.0, -2.0, -2.0, -2.0]])
    ones = torch.ones(2, 4)
    zeros = torch.zeros(2, 4)

    def share(pairs):
        """Compute the loss of some of the step's four pairs, as if they were about one video."""
        loss, _ = dpo.step_loss(args, sums[:, pairs], ones[:, pairs], zeros[:, pairs], n_pairs=4, n_tokens=4)
        return loss.item()

    whole = share(slice(0, 4))
    assert whole == pytest.approx(share(slice(0, 3)) + share(slice(3, 4)))


# ------------------------------------------------------------------------------
# Before the first update policy and reference are one model


def test_the_first_rewards_may_differ_from_0_by_rounding_alone(tmp_path, capsys):
    # Log-probs of up to 20 nats, beta 0.1: a hundredth of the largest, 0.01 * 0.1 * 20 = 0.02, is called rounding
    args = argparse.Namespace(beta=0.1, loss="sigmoid", output=tmp_path)
    batch = [("a.mp4", [{"id": "a.mp4/0"}, {"id": "a.mp4/1"}])]
    sums = torch.tensor([[-12.0, -5.0], [-20.0, -5.0]])

    def check(reward):
        rewards = torch.tensor([[0.0, 0.0], [0.0, reward]])
        dpo.check_first_margin(dpo.Step(0.7, rewards, sums, lengths=sums), batch, args)

    check(-0.019)
    assert "first step: largest |reward| 1.9e-02: policy and reference are one model" in capsys.readouterr().out
    for reward in (0.021, -0.021):
        (tmp_path / "reference.jsonl").write_text("{}")
        with pytest.raises(common.InputError, match=r"step 1: a reward of 2.1e-02 .*no update.*a.mp4/0, a.mp4/1$"):
            check(reward)
    assert capsys.readouterr().out == ""

    # ipo's rewards are per token: of 10 tokens each, the largest mean is 2 nats, and 0.01 * 0.1 * 2 = 0.002 is rounding
    args.loss = "ipo"
    rewards = torch.tensor([[0.0, 0.0], [0.0, 0.003]])
    (tmp_path / "reference.jsonl").write_text("{}")
    with pytest.raises(common.InputError, match=r"a reward of 3.0e-03"):
        dpo.check_first_margin(dpo.Step(0.7, rewards, sums, lengths=torch.full((2, 2), 10.0)), batch, args)


@pytest.fixture
def updates(monkeypatch):
    """The updates of AdamW: a list that grows by one with each."""
    updates = []
    step = torch.optim.AdamW.step

    def counted(self, *arguments):
        updates.append(1)
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    return updates


def check_that_nothing_was_learned(output, updates):
    assert not updates
    assert read_metrics(output) == []
    assert not list(output.glob("checkpoint*"))
    assert not list(output.glob("*.safetensors"))


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "sft"])
def test_a_video_that_changes_after_the_reference_pass_is_refused_by_name(train, pairs, monkeypatch, updates, loss):
    compute = dpo.reference_logps

    def compute_then_change_a_video(*arguments):
        reference = compute(*arguments)
        world.render(world.make_scene(0, "dev", 7), pairs.parent / "a.mp4")
        return reference

    monkeypatch.setattr(dpo, "reference_logps", compute_then_change_a_video)
    with pytest.raises(common.InputError, match=r"step 1: a reward of .*no update was made.*a.mp4/0"):
        train("model", "--loss", loss)
    check_that_nothing_was_learned(pairs.parent / "model", updates)


def test_a_reference_that_is_off_is_refused_and_computed_again(train, pairs, monkeypatch, updates):
    compute = dpo.reference_logps

    def off(*arguments):
        reference = compute(*arguments)
        return {name: (sums + 1.0, lengths) for name, (sums, lengths) in reference.items()}

    with monkeypatch.context() as patch:
        patch.setattr(dpo, "reference_logps", off)
        with pytest.raises(common.InputError, match=r"step 1: a reward of 1.0e-01 .*a.mp4/0.*"):
            train("model", "--videos-per-step", "2")
    check_that_nothing_was_learned(pairs.parent / "model", updates)

    # The same command must not resume with it
    _, [first] = train("model", "--videos-per-step", "2")
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)


def test_the_first_rewards_are_not_checked_where_the_reference_is_an_earlier_runs(train, pairs, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dpo, "accumulate", interrupt)
        train("model")
    path = pairs.parent / "model" / "reference.jsonl"
    rows = common.read_jsonl(path)
    for row in rows:
        row["sums"][0] = [logp - 1.0 for logp in row["sums"][0]]
    common.write_jsonl(path, rows)

    capsys.readouterr()
    _, [first] = train("model")
    assert first["rewards/chosen"] == pytest.approx(0.1, abs=1e-4)  # beta * 1 nat
    said = capsys.readouterr()
    assert "first step" not in said.out
    assert "reference" not in said.out + said.err


def test_a_loss_without_a_reference_has_no_reference_pass_and_no_such_check(train, pairs, monkeypatch, capsys):
    # What every other loss prints, and its bars
    monkeypatch.setattr(common, "bars", [])
    train("with")
    assert [bar.desc for bar in common.bars if hasattr(bar, "desc")] == ["reference", "training"]
    assert "first step: largest |reward|" in capsys.readouterr().out

    monkeypatch.setattr(dpo, "REFERENCE_FREE", ("sigmoid",))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dpo, "accumulate", interrupt)
        train("without")
    assert not (pairs.parent / "without" / "reference.jsonl").exists()
    monkeypatch.setattr(common, "bars", [])
    _, [first] = train("without")
    assert [bar.desc for bar in common.bars if hasattr(bar, "desc")] == ["training"]
    said = capsys.readouterr().out
    assert "reference" not in said
    assert "first step" not in said
    for side in ("chosen", "rejected"):
        assert first[f"rewards/{side}"] == pytest.approx(0.1 * first[f"logps/{side}"], rel=1e-6)  # beta * log pi


# ------------------------------------------------------------------------------
# Pairs about segments of a video

# The seconds of a.mp4 that each of its pairs is about; b.mp4 is shown whole
SEGMENTS = [(0.0, 1.0), (1.0, 2.0), (0.0, 1.0), (None, None)]


@pytest.fixture
def pairs_with_segments(pairs):
    """Write the four pairs again, with start and end: three segments of two videos."""
    rows = common.read_jsonl(pairs)
    for row, (start, end) in zip(rows, SEGMENTS):
        row |= {"start": start, "end": end}
    common.write_jsonl(pairs, rows)
    return pairs


def test_pairs_are_grouped_by_segment_also_where_others_lie_between():
    rows = [{"video": "a", "start": start, "end": end} for start, end in SEGMENTS]
    assert common.group_by_segment(rows) == [("a", [rows[0], rows[2]]), ("a", [rows[1]]), ("a", [rows[3]])]


def test_each_segment_has_its_own_reference_and_all_are_trained_on(train, pairs_with_segments, model, tokenizer):
    # One step of all: the rewards of the first step are 0 only if each pair's reference is of the seconds that it is
    # shown, which check_first_margin would refuse otherwise
    _, [first] = train("model", "--videos-per-step", "3")
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)

    # The log-probs are those of each segment, computed alone
    sums = []
    for row in common.read_jsonl(pairs_with_segments)[:4]:
        frames, *_ = media.sample_frames(pairs_with_segments.parent / row["video"], 8, row["start"], row["end"])
        video = vlm.Video(model, tokenizer, frames)
        prompt = prompts.fill(patterns.USUAL["answer"], question=row["question"])
        with torch.no_grad():
            [logp], _ = vlm.branch_logps(model, video, [vlm.encode_branch(tokenizer, prompt, row["chosen"])])
        sums.append(logp.item())
    assert first["logps/chosen"] == pytest.approx(sum(sums) / 4, abs=1e-4)


def test_every_segment_is_in_every_epoch(train, pairs_with_segments, monkeypatch):
    trained_on = []
    accumulate = dpo.accumulate

    def note(model, tokenizer, watched, *rest):
        watched = list(watched)
        trained_on.append([[pair["id"] for pair in pairs] for pairs, _ in watched])
        return accumulate(model, tokenizer, watched, *rest)

    monkeypatch.setattr(dpo, "accumulate", note)
    train("model", "--videos-per-step", "2", "--epochs", "2")
    assert [len(step) for step in trained_on] == [2, 1, 2, 1]  # an epoch ends with a step
    for epoch in (trained_on[:2], trained_on[2:]):
        ids = sorted(id for step in epoch for segment in step for id in segment)
        assert ids == ["a.mp4/0", "a.mp4/1", "a.mp4/2", "b.mp4/3"]


@pytest.mark.slow
def test_a_training_stopped_after_any_step_resumes_to_the_same_bytes(train, pairs_with_segments, monkeypatch):
    # Three segments, two a step, three epochs: every second step is short
    flags = ("--lr", "1e-3", "--epochs", "3", "--videos-per-step", "2", "--save-every", "0")
    whole, steps = train("whole", *flags)
    assert len(steps) == 6
    for n_steps in range(6):
        name = f"stopped after {n_steps}"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(dpo, "accumulate", interrupt_after(n_steps))
            train(name, *flags)
        output, metrics = train(name, *flags)
        assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert without_speed(metrics) == without_speed(steps)


# ------------------------------------------------------------------------------
# It is stopped, and resumes


def test_the_reference_pass_resumes_where_it_was_stopped(train, pairs_with_segments, monkeypatch):
    whole, _ = train("whole", "--lr", "1e-3")
    pair_logps = dpo.pair_logps
    computed = []

    def stop_in_the_third(model, tokenizer, video, pairs):
        computed.append(len(pairs))
        if len(computed) == 3:
            raise KeyboardInterrupt
        return pair_logps(model, tokenizer, video, pairs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dpo, "pair_logps", stop_in_the_third)
        train("stopped", "--lr", "1e-3")
    path = pairs_with_segments.parent / "stopped" / "reference.jsonl"
    assert len(common.read_jsonl(path)) == 2
    with path.open("a") as file:
        file.write('{"video": "b.m')  # a line that was not finished

    computed.clear()
    with monkeypatch.context() as patch:
        patch.setattr(dpo, "pair_logps", lambda *args: computed.append(1) or pair_logps(*args))
        stopped, _ = train("stopped", "--lr", "1e-3")
    assert len(computed) == 1 + 3  # what was left of the reference, and one step of three segments
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_after_the_last_step_nothing_is_computed_again(train, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dpo, "save", interrupt)
        train("model", "--epochs", "2")
    monkeypatch.setattr(dpo, "accumulate", interrupt)
    _, metrics = train("model", "--epochs", "2")
    assert len(metrics) == 2


def test_pairs_of_another_model_are_said_to_be_off_policy(train, pairs, capsys):
    meta = common.read_json(common.meta_path(pairs))
    for made_by, said in ((common.fingerprint(MODEL), False), ("0123456789abcdef", True)):
        meta |= {"arguments": {"model": "another"}, "content": {"model": made_by}}
        common.write_json(common.meta_path(pairs), meta)
        train(f"model {said}")
        assert ("pairs.jsonl was made by another model, another" in capsys.readouterr().out) == said


def test_without_clipping_the_gradient_is_as_it_is(train):
    def first_update(name, *flags):
        output, [first] = train(name, "--lr", "1e-3", "--warmup", "0", *flags)
        return (output / "model.safetensors").read_bytes(), first["grad_norm"]

    none, norm = first_update("none", "--max-grad-norm", "0")
    assert (none, norm) == first_update("wide", "--max-grad-norm", "1e9")
    assert none != (first_update("narrow", "--max-grad-norm", "1e-9"))[0]


def test_a_finished_training_is_left_alone_and_other_arguments_are_refused(train, capsys):
    output, _ = train("model")
    file = output / "model.safetensors"
    before = file.stat().st_mtime_ns
    train("model")
    assert "is finished" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == before
    with pytest.raises(common.InputError, match="beta"):
        train("model", "--beta", "0.2")


def test_overwrite_removes_what_dpo_wrote_and_nothing_else(train, pairs):
    output, _ = train("model", "--epochs", "2")
    names = {path.name for path in output.iterdir()}
    (output / "eval").mkdir()
    (output / "eval" / "results.json").write_text("{}")
    (output / "notes.txt").write_text("beta is too small")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(common.InputError, match="--overwrite would remove .*: eval, notes.txt. Move it away"):
        train("model", "--beta", "0.2", "--overwrite")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before

    (output / "eval" / "results.json").unlink()
    (output / "eval").rmdir()
    (output / "notes.txt").unlink()
    train("model", "--beta", "0.2", "--overwrite")
    assert {path.name for path in output.iterdir()} == names


def test_overwrite_follows_a_link_to_the_output_and_keeps_it(train, pairs):
    train("model")
    (pairs.parent / "link").symlink_to(pairs.parent / "model")
    (pairs.parent / "link.meta.json").symlink_to(pairs.parent / "model.meta.json")
    train("link", "--beta", "0.2", "--overwrite")
    assert (pairs.parent / "link").is_symlink()
    assert (pairs.parent / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("moment", ["begun", "saving"])
def test_overwrite_also_removes_what_a_killed_run_left(train, pairs, monkeypatch, moment):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if moment == "begun":
            patch.setattr(dpo, "accumulate", interrupt)
        else:
            patch.setattr(pathlib.Path, "rmdir", interrupt)  # all files are in place
        train("model")
    output, _ = train("model", "--beta", "0.2", "--overwrite")
    assert (output / "model.safetensors").exists()


def interrupt_after(n_steps):
    """Make an accumulate that does n steps and stops the training in the next one."""
    accumulate = dpo.accumulate
    calls = []

    def accumulate_or_stop(*arguments):
        calls.append(1)
        if len(calls) > n_steps:
            raise KeyboardInterrupt
        return accumulate(*arguments)

    return accumulate_or_stop


@pytest.fixture
def minutes(monkeypatch, updates):
    """A clock on which every update takes a minute, and nothing else takes any time."""
    clock = types.SimpleNamespace(time=time.time, monotonic=lambda: 60.0 * len(updates))
    monkeypatch.setattr(dpo, "time", clock)
    monkeypatch.setattr(outputs.checkpoints, "time", clock)


@pytest.mark.parametrize("how", ["--dtype=float32", slow("--dtype=bfloat16"), "--tune=lora", slow("--tune=all")])
def test_a_stopped_training_resumes_to_the_same_weights_bit_for_bit(train, monkeypatch, capsys, minutes, how):
    # 12 steps of a minute each
    flags = ("--lr", "1e-3", "--epochs", "6", "--videos-per-step", "1", "--save-every", "3", how)
    whole, steps = train("whole", *flags)
    # Stopped after steps 1 (no checkpoint yet), 4, 7 and 11: the newest checkpoints are those of steps 3, 6 and 9
    for n_steps in (1, 4, 4, 5):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(dpo, "accumulate", interrupt_after(n_steps))
            train("stopped", *flags)
    output, metrics = train("stopped", *flags)
    assert "resuming after step 9" in capsys.readouterr().out

    [file] = output.glob("*model.safetensors")  # or adapter_model.safetensors
    assert file.read_bytes() == (whole / file.name).read_bytes()
    assert without_speed(metrics) == without_speed(steps)
    # What was needed to resume is deleted
    assert not list(output.glob("checkpoint*"))
    assert not (output / "reference.jsonl").exists()


def list_checkpoints(output):
    return sorted(path.name for path in output.glob("checkpoint*"))


@pytest.mark.parametrize("interval, saved_after", [("0", [1, 2, 3, 4, 5, 6]), ("2", [2, 4, 6]), ("4.5", [5, 6])])
def test_checkpoints_come_by_the_clock_and_after_the_last_step_and_one_is_kept(
    train, pairs, monkeypatch, minutes, interval, saved_after
):
    output = pairs.parent / "model"
    there = []  # after each step that saved one
    save = outputs.save_checkpoint

    def note(*arguments):
        saved = save(*arguments)
        there.append(list_checkpoints(output))
        return saved

    monkeypatch.setattr(outputs, "save_checkpoint", note)
    train("model", "--epochs", "3", "--videos-per-step", "1", "--save-every", interval)
    assert there == [[f"checkpoint-{step:06}.state"] for step in saved_after]


def stop_after_saving(train, monkeypatch, flags):
    """Stop a training of six steps when nothing but the model is left to be written."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dpo, "save", interrupt)
        train("model", *flags)


def test_a_damaged_checkpoint_is_named_and_the_training_starts_again_without_it(train, pairs, monkeypatch):
    flags = ("--epochs", "3", "--videos-per-step", "1", "--save-every", "0")
    whole, _ = train("whole", *flags)
    stop_after_saving(train, monkeypatch, flags)
    [newest] = (pairs.parent / "model").glob("checkpoint-*")
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(
        common.InputError, match=r"checkpoint-000006.state: .* it is damaged. .* starts again at step 1"
    ):
        train("model", *flags)

    newest.unlink()
    output, metrics = train("model", *flags)
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_of_two_checkpoints_the_newer_is_taken_and_the_older_is_named_if_that_is_damaged(
    train, pairs, monkeypatch, capsys
):
    # A process that is killed while it removes the older one leaves two
    flags = ("--epochs", "3", "--videos-per-step", "1", "--save-every", "0")
    with monkeypatch.context() as patch:
        patch.setattr(outputs.checkpoints, "remove_old_checkpoints", lambda output: None)
        stop_after_saving(train, monkeypatch, flags)
    output = pairs.parent / "model"
    assert list_checkpoints(output) == [f"checkpoint-{step:06}.state" for step in (1, 2, 3, 4, 5, 6)]

    newest = output / "checkpoint-000006.state"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(common.InputError, match=r"Remove this file, and the training resumes from checkpoint-000005"):
        train("model", *flags)
    newest.unlink()
    stop_after_saving(train, monkeypatch, flags)
    assert "resuming after step 5" in capsys.readouterr().out
    assert list_checkpoints(output) == ["checkpoint-000006.state"]


# Of 128 channels and 4 layers with biases of q, k, v: embedding and head, attention, MLP, norms
WORDS = common.read_json(MODEL / "config.json")["text_config"]["vocab_size"]
TRAINED = 2 * WORDS * 128 + 4 * (4 * 128**2 + 3 * 128 + 3 * 128 * 320 + 2 * 128) + 128


@pytest.mark.parametrize(
    "tune, n_trained", [("full", TRAINED), ("lora", 4 * 16 * (4 * (128 + 128) + 3 * (128 + 320)))], ids=["full", "lora"]
)
def test_a_disk_without_room_for_two_checkpoints_is_refused_before_the_training(
    train, pairs, monkeypatch, capsys, tune, n_trained
):
    flags = ("--epochs", "3", "--videos-per-step", "1", "--save-every", "0", "--tune", tune)
    two_checkpoints = 2 * 12 * n_trained  # a float32 master and two moments; more than one and the model

    def leave_free(n_bytes):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=n_bytes))

    leave_free(two_checkpoints - 1)
    with pytest.raises(
        common.InputError, match=r"needs 0.0 GiB of disk, for two checkpoints.*the same command resumes"
    ):
        train("model", *flags)
    assert not (pairs.parent / "model").exists()

    leave_free(two_checkpoints)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dpo, "save", interrupt)
        train("model", *flags)
    said = capsys.readouterr().out
    gib = two_checkpoints / 2 / 2**30
    assert (
        f"disk: checkpoints of {gib:.2f} GiB, after every step, two while one is written; a model of 0.00 GiB" in said
    )

    # The checkpoint that is there makes room for the next one, or for the model
    leave_free(two_checkpoints // 2)
    train("model", *flags)
    assert "disk: checkpoints of" in capsys.readouterr().out


def test_what_is_overwritten_makes_room(train, pairs, monkeypatch):
    output, _ = train("model")
    before = common.read_json(common.meta_path(output))
    missing = 2 * 12 * TRAINED - sum(path.stat().st_size for path in output.iterdir())
    free = [missing - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free[0]))
    with pytest.raises(common.InputError, match="Make room, and the same command resumes"):
        train("model", "--beta", "0.2", "--overwrite")
    assert common.read_json(common.meta_path(output)) == before
    assert (output / "model.safetensors").exists()
    free[0] = missing
    train("model", "--beta", "0.2", "--overwrite")


def test_a_training_killed_before_it_deletes_its_checkpoints_leaves_a_model_that_can_be_read(train, pairs, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pathlib.Path, "unlink", interrupt)
        train("model", "--epochs", "3", "--videos-per-step", "1")  # one checkpoint, after the last step
    output = pairs.parent / "model"
    assert list(output.glob("checkpoint-*"))
    assert vlm.load_model(output, ["cpu"])


def test_weights_that_a_killed_run_left_in_other_files_do_not_stay(train, pairs, monkeypatch):
    """Several processes write the files that the base has, one process its own: one was killed while it moved them."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dpo, "save", interrupt)
        train("model")
    output = pairs.parent / "model"
    moved = output / "model-00001-of-00002.safetensors"
    moved.write_text("whole, and moved")
    (output / ".part").mkdir()
    (output / ".part" / "model-00002-of-00002.safetensors").write_text("torn")
    meta = common.read_json(common.meta_path(output))
    common.write_json(common.meta_path(output), meta | {"files": [moved.name]})
    train("model")
    assert [file.name for file in output.rglob("*.safetensors")] == ["model.safetensors"]
    train("model", "--beta", "0.2", "--overwrite")  # which finds nothing that is not its own


def test_a_full_disk_gives_no_traceback_and_the_training_resumes(train, capsys):
    """A limit on the size of files does what a full disk does: the first checkpoint cannot be written whole."""
    flags = ("--epochs", "3", "--videos-per-step", "1", "--save-every", "0")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(SystemExit, match="1"):
            common.run(lambda: train("model", *flags))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert "File too large" in said
    assert "the same command resumes" in said
    _, metrics = train("model", *flags)
    assert metrics[-1]["step"] == 6


# ------------------------------------------------------------------------------
# What it refuses


def test_an_infinite_loss_stops_it_and_names_step_and_pairs(train, pairs, monkeypatch, updates):
    def infinite(chosen, *_, **__):
        rewards = torch.zeros_like(chosen)
        return chosen * float("inf"), rewards, rewards

    monkeypatch.setattr(dpo, "dpo_loss", infinite)
    with pytest.raises(common.InputError, match="step 1: loss .*no update was made.*a.mp4/0"):
        train("model")
    check_that_nothing_was_learned(pairs.parent / "model", updates)


def test_rows_without_a_pair_are_refused(train, pairs):
    common.write_jsonl(pairs, [{"id": "a", "video": "a.mp4", "dropped": "unchanged"}])
    with pytest.raises(common.InputError, match="no row is a pair"):
        train("model")


# ------------------------------------------------------------------------------
# Several inputs


def write_round(directory, number):
    """Write pairs.jsonl of a round with one pair about a video of its own, which is called a.mp4 -> its path."""
    directory.mkdir()
    world.render(world.make_scene(0, "dev", number), directory / "a.mp4")
    row = {"id": "a.mp4/0", "video": "a.mp4", "question": "how many?", "chosen": "two.", "rejected": "three."}
    path = directory / "pairs.jsonl"
    common.write_jsonl(path, [row])
    meta = {"root": str(directory), "stage": "refine.py", "finished": {"account": "by hand"}}
    common.write_json(common.meta_path(path), meta | {"prompts": {"answer": prompts.DEFAULT.answer}})
    return path


# The options that decide which pairs are read
READ = {"videos": None, "limit": None, "model": MODEL, "tune": "full", "lora_alpha": None, "loss": "sigmoid"}
READ["with_unchanged"] = False


def train_on(inputs, output, monkeypatch, *more):
    """Run dpo.py on several inputs -> the rows of metrics.jsonl."""
    words = ["dpo.py", "--model", MODEL, "--input", *inputs, "--output", output, "--devices", "cpu", *more]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    dpo.main()
    return read_metrics(output)


def test_pairs_of_several_rounds_are_trained_together_each_with_its_own_videos(tmp_path, monkeypatch):
    """Two rounds have the same ids, and videos of the same name: the mean of their log-probs is that of both.

    Each round alone gives the log-prob of its own pair; a step over both has their mean.
    """
    one = write_round(tmp_path / "round1", 0)
    two = write_round(tmp_path / "round2", 2)
    logps = []
    for number, path in enumerate((one, two)):
        [step] = train_on([path], tmp_path / f"alone{number}", monkeypatch)
        logps.append(step["logps/chosen"])
    assert abs(logps[0] - logps[1]) > 0.01  # the videos differ

    [step] = train_on([one, two], tmp_path / "both", monkeypatch)
    assert step["logps/chosen"] == pytest.approx(sum(logps) / 2, abs=1e-4)
    meta = common.read_json(tmp_path / "both.meta.json")
    assert meta["root"] == str(tmp_path)
    assert meta["arguments"]["input"] == [str(one), str(two)]


def test_a_row_of_several_inputs_is_named_with_its_file(tmp_path):
    one = write_round(tmp_path / "round1", 0)
    two = write_round(tmp_path / "round2", 2)
    args = argparse.Namespace(input=[str(one), str(two)], **READ)
    root, groups = dpo.read_pairs(args, "{question}")
    assert root == tmp_path
    assert [name for name, _ in groups] == ["round1/a.mp4", "round2/a.mp4"]
    assert dpo.list_ids(groups) == f"{one}: a.mp4/0, {two}: a.mp4/0"


def copy_round(path, name):
    """Copy a file of pairs with its meta.json into the same directory -> the copy's path."""
    copy = path.parent / name
    copy.write_bytes(path.read_bytes())
    common.write_json(common.meta_path(copy), common.read_json(common.meta_path(path)))
    return copy


def test_one_video_of_two_inputs_is_read_once_and_pairs_that_are_there_twice_are_said(tmp_path, monkeypatch, capsys):
    one = write_round(tmp_path / "round1", 0)
    again = copy_round(one, "again.jsonl")
    args = argparse.Namespace(input=[str(one), str(again)], **READ)
    _, [(name, pairs)] = dpo.read_pairs(args, "{question}")
    assert (name, len(pairs)) == ("a.mp4", 2)

    train_on([one, again], tmp_path / "model", monkeypatch)
    said = capsys.readouterr().out
    assert f"{one}: 1 pairs" in said
    assert f"{again}: 1 pairs" in said
    assert "1 pairs are there more than once, and count each time" in said


def test_inputs_that_have_moved_are_the_same_inputs(tmp_path, monkeypatch, capsys):
    one = write_round(tmp_path / "round1", 0)
    two = write_round(tmp_path / "round2", 2)
    train_on([one, two], tmp_path / "model", monkeypatch)
    (tmp_path / "elsewhere").mkdir()
    moved = two.parent.rename(tmp_path / "elsewhere" / "round2")
    with pytest.raises(common.InputError, match="no such directory"):
        train_on([one, moved / "pairs.jsonl"], tmp_path / "model", monkeypatch)
    capsys.readouterr()
    # One --videos for each input; paths may be typed otherwise
    inputs = [f"{tmp_path}/round1/../round1/pairs.jsonl", moved / "pairs.jsonl"]
    train_on(inputs, tmp_path / "model", monkeypatch, "--videos", tmp_path / "round1", moved)
    assert capsys.readouterr().out == f"{tmp_path / 'model'} is finished; nothing to do\n"
    with pytest.raises(common.InputError, match="--videos has 3 directories for 2 inputs"):
        train_on(inputs, tmp_path / "model", monkeypatch, "--videos", "a", "b", "c")


def test_of_which_input_it_is_not_known_how_it_was_asked(tmp_path, monkeypatch, capsys):
    """One of predictions, which have their own words, and one of which nothing is known."""
    inputs = []
    for number, more in ((0, {"benchmark": "mvbench", "prompt": "how many?\nA. two\nB. three"}), (2, {})):
        path = write_round(tmp_path / f"round{number}", number)
        [row] = common.read_jsonl(path)
        common.write_jsonl(path, [row | more])
        meta = common.meta_path(path)
        common.write_json(meta, common.read_json(meta) | {"prompts": {}})
        inputs.append(path)
    train_on(inputs, tmp_path / "model", monkeypatch)
    said = capsys.readouterr().out
    assert f"{inputs[0]}: no meta.json says" not in said
    assert f"{inputs[1]}: no meta.json says with which prompt its questions were asked" in said


def test_rows_of_a_benchmark_are_trained_behind_the_words_that_they_were_asked_with():
    row = {"question": "why?", "prompt": "why?\nA. x\nB. y\nAnswer with the letter."}
    assert dpo.render_prompt(row | {"benchmark": "mvbench"}, "{question} Be short.") == row["prompt"]
    assert dpo.render_prompt(row, "{question} Be short.") == "why? Be short."


def test_an_input_that_is_there_twice_and_inputs_of_other_prompts_are_refused(tmp_path, monkeypatch):
    one = write_round(tmp_path / "round1", 0)
    two = write_round(tmp_path / "round2", 2)
    with pytest.raises(common.InputError, match=r"--input .*round2/../round1/pairs.jsonl is there twice"):
        train_on([one, two.parent / ".." / "round1" / "pairs.jsonl"], tmp_path / "model", monkeypatch)

    path = common.meta_path(two)
    common.write_json(path, common.read_json(path) | {"prompts": {"answer": "{question} Look closely."}})
    with pytest.raises(common.InputError, match=r"round2/pairs.jsonl was made with another 'answer' than .*round1"):
        train_on([one, two], tmp_path / "model", monkeypatch)
    assert not (tmp_path / "model.meta.json").exists()


# ------------------------------------------------------------------------------
# What is learned, and how fast


def test_sft_on_revised_learns_the_revisions_that_repeat_the_answer_too(pairs, train):
    """Three answers: one revised, one repeated, one cut off. The cross-entropy is over the first two."""
    rows = [
        {"id": "a.mp4/0", "video": "a.mp4", "question": "why?", "initial": "x.", "revised": "it moves up."},
        {"id": "a.mp4/1", "video": "a.mp4", "question": "how?", "initial": "it rests.", "revised": "it rests."},
        {"id": "a.mp4/2", "video": "a.mp4", "question": "who?", "initial": "x.", "revised": "and so on and"},
    ]
    rows[0] |= {"chosen": "it moves up.", "rejected": "x."}
    rows[1]["dropped"] = "unchanged"
    rows[2]["dropped"] = "truncated"
    common.write_jsonl(pairs, rows)

    _, [revised] = train("revised", "--loss", "sft", "--sft-on", "revised")
    _, [chosen] = train("chosen", "--loss", "sft")
    del rows[1]["dropped"]
    common.write_jsonl(pairs, [rows[1] | {"chosen": "it rests.", "rejected": "it rests."}])
    _, [repeated] = train("repeated", "--loss", "sft")
    n_chosen, n_repeated = chosen["lengths/chosen"], repeated["lengths/chosen"]
    total = chosen["loss"] * n_chosen + repeated["loss"] * n_repeated
    assert revised["loss"] == pytest.approx(total / (n_chosen + n_repeated), abs=1e-4)


def test_with_unchanged_learns_the_answers_that_critique_left_as_they_were(pairs, train):
    """A pair, an answer in which no error was found, one that was revised to itself, and a bad question. In step 1 the
    policy is the reference, so a preference loss is log 2 of every row, and what is added to it is the cross-entropy of
    three answers, by their tokens."""
    rows = [
        {"id": "a.mp4/0", "video": "a.mp4", "question": "why?", "initial": "x.", "chosen": "it moves up."},
        {"id": "a.mp4/1", "video": "a.mp4", "question": "how?", "initial": "it rests."},
        {"id": "a.mp4/2", "video": "a.mp4", "question": "who?", "initial": "a circle.", "revised": "A circle"},
        {"id": "a.mp4/3", "video": "a.mp4", "question": "red.", "initial": "red."},
    ]
    rows[0]["rejected"] = "x."
    for row, reason in zip(rows[1:], ("no_error_found", "unchanged", "bad_question")):
        row["dropped"] = reason
    common.write_jsonl(pairs, rows)
    _, [step] = train("with", "--nll-weight", "0.5", "--with-unchanged")

    total = 0.0
    n_tokens = 0.0
    for row in rows[:3]:
        answer = row.get("chosen", row["initial"])
        kept = {key: value for key, value in row.items() if key != "dropped"}
        common.write_jsonl(pairs, [kept | {"chosen": answer, "rejected": "no."}])
        _, [alone] = train(f"alone{row['id'][-1]}", "--loss", "sft")
        total += alone["loss"] * alone["lengths/chosen"]
        n_tokens += alone["lengths/chosen"]
    assert step["lengths/chosen"] == pytest.approx(n_tokens / 3)
    assert step["loss"] == pytest.approx(math.log(2) + 0.5 * total / n_tokens, abs=1e-4)


def test_the_rate_follows_what_is_tuned_and_is_said_first(train, capsys):
    for tune, rate in (("full", 5e-7), ("lora", 5e-6)):
        capsys.readouterr()
        _, [step] = train(tune, "--tune", tune, "--warmup", "1")  # the whole rate in the only step
        assert step["learning_rate"] == rate
        assert f"learning rate {rate:g}" in capsys.readouterr().out.splitlines()[0]
    _, [step] = train("own", "--tune", "lora", "--warmup", "1", "--lr", "1e-3")
    assert step["learning_rate"] == 1e-3
