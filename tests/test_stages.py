"""Stages 1 to 3 and 5 as they are run, on a handful of videos, with the shipped model."""

import json
import sys

import pytest

import common
import critique
import evaluate
import generate
import refine
from conftest import MODEL
from shapes import world


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    world.write_split(root, "round1", 4, seed=0)
    world.write_split(root, "dev", 4, seed=0)
    (root / "round1" / "broken.mp4").write_text("no video")
    return root


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(stage, input, output, *more):
        monkeypatch.setattr(
            sys,
            "argv",
            [
                f"{stage.__name__}.py",
                "--model",
                str(MODEL),
                "--input",
                str(input),
                "--output",
                str(tmp_path / output),
                "--devices",
                "cpu",
                *more,
            ],
        )
        stage.main()
        return tmp_path / output

    return run


def test_every_row_ends_as_a_pair_or_with_a_reason(root, run, capsys):
    responses = run(generate, root / "round1", "responses.jsonl")
    critiques = run(critique, responses, "critiques.jsonl")
    pairs = common.read_jsonl(run(refine, critiques, "pairs.jsonl"))
    assert len(pairs) == 5 * 6
    for row in pairs:
        assert ("chosen" in row) != ("dropped" in row)
        if "chosen" in row:
            assert row["error_types"] and row["chosen"] == row["revised"] != row["initial"] == row["rejected"]
    broken = [row for row in pairs if row["video"] == "broken.mp4"]
    assert len(broken) == 6 and all(
        row["dropped"] == "unreadable_video" and "no frame can be decoded" in row["error"] for row in broken
    )
    # a stage adds keys and edits none
    for before, after in zip(common.read_jsonl(responses), pairs):
        assert before.items() <= after.items()
    assert f"rows in 30 = {sum('chosen' in row for row in pairs)} pairs + " in capsys.readouterr().out


def test_interrupted_and_sharded_runs_write_what_an_undisturbed_one_writes(root, run, monkeypatch):
    whole = run(generate, root / "round1", "whole.jsonl").read_bytes()
    write, calls = common.Output.write, []

    def interrupted(self, rows):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(self, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(common.Output, "write", interrupted)
        run(generate, root / "round1", "torn.jsonl")
    assert run(generate, root / "round1", "torn.jsonl").read_bytes() == whole
    shards = [run(generate, root / "round1", f"shard{n}.jsonl", "--shard", f"{n}/2").read_bytes() for n in range(2)]
    assert sorted(b"".join(shards).splitlines()) == sorted(whole.splitlines())


def test_temperature_and_seed(root, run):
    answers = lambda *more: [
        row.get("initial") for row in common.read_jsonl(run(generate, root / "round1", "-".join(("out", *more)), *more))
    ]
    assert answers("--temperature", "0") != answers("--seed", "1")
    greedy = common.read_jsonl(run(generate, root / "round1", "again", "--temperature", "0"))
    assert [row.get("initial") for row in greedy] == answers(
        "--temperature", "0"
    )  # finished: read back, not done again


def test_predictions_are_records_that_the_critic_can_read(root, run):
    directory = run(evaluate, root / "dev", "eval", "--benchmark", "shapes")
    results, rows = (
        json.loads((directory / "results.json").read_text()),
        common.read_jsonl(directory / "predictions.jsonl"),
    )
    assert (
        results["accuracy"] == pytest.approx(sum(row["correct"] for row in rows) / 24, abs=1e-4)
        and results["n"] == len(rows) == 24
    )
    critiques = common.read_jsonl(run(critique, directory / "predictions.jsonl", "critiques.jsonl"))
    assert all(isinstance(row["critique"], str) for row in critiques)


def test_a_run_that_was_stopped_before_scoring_is_scored_the_next_time(root, run, monkeypatch):
    def stopped(rows):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluate, "score", stopped)
        run(evaluate, root / "dev", "eval", "--benchmark", "shapes")
    assert (run(evaluate, root / "dev", "eval", "--benchmark", "shapes") / "results.json").exists()


def test_one_question_is_answered_and_unknown_words_are_said(root, run, capsys):
    run(generate, root / "dev" / "videos" / "dev_0002.mp4", "none", "--ask", "which way does the purple square move?")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "(this model has never seen: purple)" and said[1].endswith(".")


def test_moved_files_say_where_the_videos_are(root, run, tmp_path):
    responses = run(generate, root / "round1", "responses.jsonl", "--limit", "1")
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(responses.read_bytes())
    with pytest.raises(common.InputError, match="--videos DIR"):
        run(critique, moved, "critiques.jsonl")
    assert run(critique, moved, "critiques.jsonl", "--videos", str(root / "round1")).exists()
