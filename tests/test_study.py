"""The controls of tools.study, each seen on rows that can be checked by hand."""

import re
from pathlib import Path

import pytest

import common
from conftest import MODEL
from shapes import world
from tools import study

ROWS = [
    {
        "critique": "errors: none",
        "id": f"round1_0001.mp4/spatial/{n}",
        "video": "round1_0001.mp4",
        "kind": "spatial",
        "question": "q?",
        "initial": f"answer {n}.",
    }
    for n in range(40)
]


def test_the_study_trains_as_the_loop_does():
    script = (Path(__file__).parent.parent / "shapes" / "loop.sh").read_text()
    assert re.search(r"lrs=\(0 (.*?)\)", script)[1].split() == [f"{lr:.0e}".replace("e-0", "e-") for lr in study.LRS]
    flags = dict(re.findall(r"--(beta|epochs) (\d+)", script))
    assert flags == {"beta": str(study.BETA), "epochs": str(study.EPOCHS)}


def test_without_the_gate_every_answered_row_gets_through():
    rows = [
        ROWS[0] | {"error_types": []},
        ROWS[1] | {"error_types": None},
        ROWS[2] | {"error_types": ["causal_reasoning"]},
        ROWS[3] | {"dropped": "truncated"},
    ]
    found = study.find_error_everywhere(rows)
    assert [row.get("error_types") for row in found] == [
        ["factual_inaccuracy"],
        ["factual_inaccuracy"],
        ["causal_reasoning"],
        None,
    ]


def test_all_revisions_are_pairs_but_not_what_was_never_revised():
    rows = [
        ROWS[0] | {"revised": "answer 0.", "dropped": "unchanged"},
        ROWS[1] | {"revised": "better.", "chosen": "better.", "rejected": "answer 1."},
        ROWS[2] | {"revised": "and so on and", "dropped": "truncated"},
    ]
    first, second, third = study.take_all_revisions(rows)
    assert "dropped" not in first and (first["chosen"], first["rejected"]) == ("answer 0.", "answer 0.")
    assert (second, third) == tuple(rows[1:])


def test_shuffled_preferences_point_both_ways_and_lose_no_row():
    pairs = [row | {"chosen": "yes.", "rejected": "no."} for row in ROWS] + [
        ROWS[0] | {"id": "x", "dropped": "unchanged"}
    ]
    shuffled = study.shuffle_preferences(pairs, seed=1)
    turned = sum(row.get("chosen") == "no." for row in shuffled)
    assert (
        10 < turned < 30
        and [row["id"] for row in shuffled] == [row["id"] for row in pairs]
        and shuffled[-1] == pairs[-1]
    )
    assert all({row["chosen"], row["rejected"]} == {"yes.", "no."} for row in shuffled[:-1])


def test_an_inverted_pair_by_the_truth_of_the_world():
    [item] = [
        item
        for item in world.all_questions(world.make_scene(0, "round1", 1))["count"]
        if item["question"] == "how many shapes are there?"
    ]
    wrong = "there are three shapes." if "two" in item["answer"] else "there are two shapes."
    pair = ROWS[0] | {"question": item["question"], "chosen": item["answer"], "rejected": wrong}
    assert study.is_inverted(pair) is False
    assert study.is_inverted(pair | {"chosen": wrong, "rejected": item["answer"]}) is True
    assert study.is_inverted(pair | {"chosen": wrong}) is False  # both wrong: nothing is turned round
    assert study.is_inverted(pair | {"question": "what is it that I see?"}) is None


def test_second_samples_are_other_answers_to_the_same_questions(tmp_path):
    world.write_split(tmp_path, "round1", 3, seed=0)
    rows = [
        {
            "id": f"round1_{n:04}.mp4/temporal/{k}",
            "video": f"round1_{n:04}.mp4",
            "kind": "temporal",
            "question": question,
            "initial": "it moves.",
            "critique": "",
        }
        | extra
        for n in range(3)
        for k, (question, extra) in enumerate(
            [
                ("how many shapes are there?", {"chosen": "a", "rejected": "b"}),
                ("what can be seen in the video?", {"dropped": "unchanged"}),
            ]
        )
    ]
    pairs = study.prefer_second_samples(rows, 0, MODEL, tmp_path / "round1")
    assert len(pairs) == 3  # as many as there were
    asked = {row["id"]: row["question"] for row in rows}
    assert all(
        pair["question"] == asked[pair["id"]] and pair["rejected"] == "it moves." != pair["chosen"] for pair in pairs
    )


@pytest.mark.slow
def test_two_rounds_of_a_control_end_in_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "VIDEOS", tmp_path / "shapes")
    for split in ("round1", "round2", "dev", "hard"):
        world.write_split(tmp_path / "shapes", split, 6, seed=0)
    monkeypatch.setattr(study, "ROUNDS", (1, 2))
    study.make_seen(n=2)
    base, run = study.BASE, tmp_path / "seed1" / "fixed-reference"
    study.score_base((base, tmp_path / "base"))
    for n in study.ROUNDS:
        study.run_round(("fixed-reference", 1, base, run, n))
    first_steps = [common.read_jsonl(run / f"round{n}" / "model" / "metrics.jsonl")[0] for n in study.ROUNDS]
    assert first_steps[0]["rewards/margins"] == 0  # the model is the base, which is the reference
    assert first_steps[1]["rewards/margins"] != 0  # here the model has moved, and the reference has not
    before, after = study.measure(tmp_path / "base"), study.measure(run / "round2")
    assert before["errors the model names"] == before["errors the base names"]  # there the model is the base
    assert after["pairs"] > 0 and 0 <= after["pairs inverted"] <= 1
    assert set(after) - set(before) >= {"pairs", "logps/chosen, last steps"} and all(
        f"on {name}" in after for name in study.BENCHMARKS
    )
    assert (run / "round1" / "edited.jsonl").read_bytes() == (
        run / "round1" / "pairs.jsonl"
    ).read_bytes()  # this control edits no rows


def test_tables_and_plot_of_made_up_figures(tmp_path, capsys):
    names = (
        "accuracy",
        "errors by truth",
        "errors the model names",
        "errors the base names",
        "critic's precision",
        "critic's recall",
        "the base's precision",
        "the base's recall",
        "words an answer",
        *(f"on {name}" for name in study.BENCHMARKS),
    )
    more = (
        "pairs",
        "pairs inverted",
        "pairs judged",
        "lengths/chosen",
        "lengths/rejected",
        *(f"logps/{side}, {end} steps" for side in ("chosen", "rejected") for end in ("first", "last")),
    )
    base = dict.fromkeys(names, 0.5) | {"accuracy of revisions": 0.9}
    figures = {
        (0, variant, seed): [base, *(dict.fromkeys((*names, *more), 0.5 + 0.1 * seed) for _ in study.ROUNDS)]
        for variant in study.VARIANTS
        for seed in study.SEEDS
    }
    figures[0, "sft", 1][1]["pairs inverted"] = float("nan")  # no pair could be judged
    study.print_tables(figures, {"sft-matched": [(400, 0.8), (410, 0.9)]}, [0])
    printed = capsys.readouterr().out
    assert (
        "| dpo | 0.500 | 0.700 +- 0.100 | 0.700 +- 0.100 | 0.700 +- 0.100 | 0.700 +- 0.100 |" in printed
    )  # 0.6, 0.7, 0.8
    assert "| sft |  | 0.75 +- 0.07 | 0.70 +- 0.10 |" in printed
    assert "| sft-matched | 405 +- 7 | 0.850 +- 0.071 |" in printed and "| dpo | 1 +- 0 | 0.700 +- 0.100 |" in printed
    study.plot(figures, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000


@pytest.mark.parametrize("values, text", [([0.5], "0.500"), ([0.8, 0.9], "0.850 +- 0.071")])
def test_spread_by_hand(values, text):
    assert study.spread(values) == text  # (0.9 - 0.8) / sqrt(2)
