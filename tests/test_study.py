"""The controls of tools.study, each seen on rows that can be checked by hand."""

import re
from pathlib import Path

import pytest

import common
from conftest import MODEL
from shapes import world
from tools import study, study_tables

# Forty answers to questions about one video, each with its critique
ROWS = []
for number in range(40):
    row = {
        "critique": "errors: none",
        "id": f"round1_0001.mp4/spatial/{number}",
        "video": "round1_0001.mp4",
        "kind": "spatial",
        "question": "q?",
        "initial": f"answer {number}.",
    }
    ROWS.append(row)


def test_the_study_trains_as_the_loop_does():
    script = (Path(__file__).parent.parent / "shapes" / "recipes" / "paper.txt").read_text()
    rates = re.search(r"--lrs ([-\de. ]+)", script)[1].split()
    assert rates == [f"{lr:.0e}".replace("e-0", "e-") for lr in study.LRS]
    flags = dict(re.findall(r"--(beta|epochs) (\d+)", script))
    assert flags == {"beta": str(study.BETA), "epochs": str(study.EPOCHS)}


# ------------------------------------------------------------------------------
# What a control changes


def test_shuffled_preferences_point_both_ways_and_lose_no_row():
    rows = [row | {"chosen": "yes.", "rejected": "no."} for row in ROWS]
    rows.append(ROWS[0] | {"id": "x", "dropped": "unchanged"})

    shuffled = study.shuffle_preferences(rows, seed=1)
    swapped = sum(row.get("chosen") == "no." for row in shuffled)
    assert 10 < swapped < 30  # of 40
    assert [row["id"] for row in shuffled] == [row["id"] for row in rows]
    assert shuffled[-1] == rows[-1]
    for row in shuffled[:-1]:
        assert {row["chosen"], row["rejected"]} == {"yes.", "no."}


def test_second_samples_are_other_answers_to_the_same_questions(tmp_path):
    world.write_split(tmp_path, "round1", 3, seed=0)
    rows = []
    for n in range(3):
        video = f"round1_{n:04}.mp4"
        row = {"video": video, "kind": "temporal", "initial": "it moves.", "critique": ""}
        paired = {"id": f"{video}/temporal/0", "question": "how many shapes are there?"}
        rows.append(row | paired | {"chosen": "a", "rejected": "b"})
        unpaired = {"id": f"{video}/temporal/1", "question": "what can be seen in the video?"}
        rows.append(row | unpaired | {"dropped": "unchanged"})

    pairs = study.prefer_second_samples(rows, 0, MODEL, tmp_path / "round1")
    assert len(pairs) == 3  # as many as there were, out of six questions
    asked = {row["id"]: row["question"] for row in rows}
    for pair in pairs:
        assert pair["question"] == asked[pair["id"]]
        assert pair["rejected"] == "it moves."
        assert pair["chosen"] != "it moves."


# ------------------------------------------------------------------------------
# Rounds and their figures


@pytest.mark.slow
def test_two_rounds_of_a_control_end_in_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "VIDEOS", tmp_path / "shapes")
    monkeypatch.setattr(study, "ROUNDS", (1, 2))
    for split in ("round1", "round2", "dev", "hard"):
        world.write_split(tmp_path / "shapes", split, 6, seed=0)
    study.make_seen(n=2)
    base = study.BASE
    run = tmp_path / "seed1" / "fixed-reference"
    study.score_base(base, tmp_path / "base")
    for n in study.ROUNDS:
        study.run_round("fixed-reference", 1, base, run, n)

    first_step, *_ = common.read_jsonl(run / "round1" / "model" / "metrics.jsonl")
    assert first_step["rewards/margins"] == 0  # the model is the base, which is the reference
    first_step, *_ = common.read_jsonl(run / "round2" / "model" / "metrics.jsonl")
    assert first_step["rewards/margins"] != 0  # the model has moved, and the reference has not

    before = study.measure(tmp_path / "base")
    after = study.measure(run / "round2")
    assert before["errors the model names"] == before["errors the base names"]  # there it is the base
    assert after["pairs"] > 0
    assert 0 <= after["pairs inverted"] <= 1
    assert set(after) - set(before) >= {"pairs", "logps/chosen, last steps"}
    for name in study.BENCHMARKS:
        assert f"on {name}" in after

    # This control changes no rows
    edited = (run / "round1" / "edited.jsonl").read_bytes()
    assert edited == (run / "round1" / "pairs.jsonl").read_bytes()


def test_an_inverted_pair_by_the_truth_of_the_world():
    items = world.all_questions(world.make_scene(0, "round1", 1))["count"]
    [item] = [item for item in items if item["question"] == "how many shapes are there?"]
    right = item["answer"]
    wrong = "there are three shapes." if "two" in right else "there are two shapes."
    row = ROWS[0] | {"question": item["question"]}

    assert study_tables.is_inverted(row | {"chosen": right, "rejected": wrong}) is False
    assert study_tables.is_inverted(row | {"chosen": wrong, "rejected": right}) is True
    assert study_tables.is_inverted(row | {"chosen": wrong, "rejected": wrong}) is False
    unknown = row | {"question": "what is it that I see?", "chosen": right, "rejected": wrong}
    assert study_tables.is_inverted(unknown) is None


@pytest.mark.parametrize("values, text", [([0.5], "0.500"), ([0.8, 0.9], "0.850 +- 0.071")])
def test_spread_by_hand(values, text):
    assert study_tables.spread(values) == text  # (0.9 - 0.8) / sqrt(2)


def make_figures():
    """Make figures of a study that are all alike: 0.5 for the base, 0.6, 0.7, 0.8 for the seeds."""
    of_answers = [
        "accuracy",
        "errors by truth",
        "errors the model names",
        "errors the base names",
        "critic's precision",
        "critic's recall",
        "the base's precision",
        "the base's recall",
        "words an answer",
    ]
    of_answers += [f"on {name}" for name in study.BENCHMARKS]
    of_training = [
        "pairs",
        "pairs inverted",
        "pairs judged",
        "lengths/chosen",
        "lengths/rejected",
        "logps/chosen, first steps",
        "logps/chosen, last steps",
        "logps/rejected, first steps",
        "logps/rejected, last steps",
    ]
    base = dict.fromkeys(of_answers, 0.5) | {"accuracy of revisions": 0.9}
    figures = {}
    for variant in study.VARIANTS:
        for seed in study.SEEDS:
            rounds = [base]
            for _ in study.ROUNDS:
                rounds.append(dict.fromkeys([*of_answers, *of_training], 0.5 + 0.1 * seed))
            figures[0, variant, seed] = rounds
    return figures


def test_tables_and_plot_of_made_up_figures(tmp_path, capsys):
    figures = make_figures()
    figures[0, "sft", 1][1]["pairs inverted"] = float("nan")  # no pair could be judged
    study.print_tables(figures, {"sft-matched": [(400, 0.8), (410, 0.9)]}, [0])
    printed = capsys.readouterr().out
    rounds = " | ".join(["0.700 +- 0.100"] * 4)  # of 0.6, 0.7, 0.8
    assert f"| dpo | 0.500 | {rounds} |" in printed
    assert "| sft |  | 0.75 +- 0.07 | 0.70 +- 0.10 |" in printed  # of 0.7, 0.8; the base has no pairs
    assert "| sft-matched | 405 +- 7 | 0.850 +- 0.071 |" in printed
    assert "| dpo | 1 +- 0 | 0.700 +- 0.100 |" in printed  # one round: rows, accuracy

    study.plot(figures, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000
