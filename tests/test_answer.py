"""tools.answer: the same questions, answered by another model."""

import sys

import pytest

import common
import critique
import generate
from conftest import MODEL
from shapes import world
from tools import answer, report


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Give a function that runs a stage or tool on the tiny model -> the rows that it writes."""

    def run(stage, input, output, *more):
        options = ["--model", str(MODEL), "--devices", "cpu", "--input", str(input), "--output", str(tmp_path / output)]
        monkeypatch.setattr(sys, "argv", [stage.__name__, *options, *more])
        stage.main()
        return common.read_jsonl(tmp_path / output)

    return run


@pytest.mark.slow
def test_the_model_that_asked_gives_its_own_greedy_answers_again(run, tmp_path):
    world.write_split(tmp_path, "round1", 6, seed=0)
    (tmp_path / "round1" / "broken.mp4").write_text("not a video")
    greedy = run(generate, tmp_path / "round1", "greedy.jsonl", "--temperature", "0", "--spatial", "2")
    sampled = run(generate, tmp_path / "round1", "sampled.jsonl", "--spatial", "2")  # the same questions
    assert sampled != greedy
    common.write_jsonl(tmp_path / "sampled.jsonl", [row | {"critique": "Errors: none"} for row in sampled])
    assert run(answer, tmp_path / "sampled.jsonl", "again.jsonl") == greedy
    assert greedy[0]["dropped"] == "unreadable_video"


def test_one_critic_reads_the_answers_of_two_models(run, tmp_path, capsys, monkeypatch):
    # As docs/paper-tables.md does it for Table 2; here both models are the same, so both columns are
    world.write_split(tmp_path, "round1", 2, seed=0)
    run(generate, tmp_path / "round1", "questions.jsonl")
    paths = []
    for name in ("base", "round1"):
        run(answer, tmp_path / "questions.jsonl", f"{name}/responses.jsonl")
        run(critique, tmp_path / name / "responses.jsonl", f"{name}/critiques.jsonl")
        paths.append(str(tmp_path / name / "critiques.jsonl"))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["report.py", *paths])
    report.main()
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert lines[0][:2] == ["base", "round1"]
    [errors] = [line[1:3] for line in lines if line[0] == "errors"]
    assert errors[0] == errors[1] != "0"
    for doubt in ("not the same questions", "not one critic", "no meta.json"):
        assert doubt not in printed


def test_only_the_question_of_a_row_is_kept():
    asked = {"id": "v/spatial/0", "video": "v", "kind": "spatial", "question": "what is red?"}
    pair = asked | {"initial": "a.", "critique": "Errors: none", "error_types": [], "dropped": "no_error_found"}
    assert answer.strip_row(pair) == asked
    cut_off = asked | {"initial": "and so on and", "dropped": "truncated"}
    assert answer.strip_row(cut_off) == asked  # another model may end its answer
    assert answer.strip_row(asked | {"dropped": "bad_question"}) == asked | {"dropped": "bad_question"}
    unreadable = {"id": "w/spatial/0", "video": "w", "dropped": "unreadable_video", "error": "no frame"}
    assert answer.strip_row(unreadable) == unreadable
