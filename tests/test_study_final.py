"""tools.study_final: is a recipe above its teacher, on a test that is scored once?"""

import sys

import pytest

import common
from conftest import MODEL
from tools import report, study, study_final
from tools.study_record import Run


def test_the_table_by_hand(capsys):
    # Two videos with six questions each. Of the base 6 of 12 answers are right, after its revision
    # 9; the two models of the recipe have 10 and 11
    record = {
        Run(0, "base", 0): "33",
        Run(0, study_final.TEACHER, 0): "54",
        Run(0, "nll-800", 1): "55",
        Run(0, "nll-800", 2): "65",
    }
    study_final.print_tables(record)
    base, teacher, recipe = capsys.readouterr().out.splitlines()[-3:]
    # The differences are 1/12 and 2/12: deviation 0.0589, over the root of 2. The gap is 3, closed by
    # 4.5 in the mean
    cells = ["0", "nll-800", "2", "0.875 +- 0.059", "+0.125 +- 0.042"]
    # In the mean of the models the videos gain 0.5 and 1 of 6, and a quarter of all draws of two
    # videos has the first twice, another quarter the second
    assert recipe == f"| {' | '.join([*cells, '+0.083 to +0.167', '150%'])} |"
    assert base == "| 0 | base | 1 | 0.500 | -0.250 | -0.333 to -0.167 | 0% |"
    assert teacher == "| 0 | the base's revisions | 1 | 0.750 | +0.000 | +0.000 to +0.000 | 100% |"


def test_a_digit_for_each_video_in_order(tmp_path):
    rows = []
    for video, *verdicts in [("1.mp4", 0, 1), ("0.mp4", 1, 1), ("1.mp4", 0, 0)]:
        rows += [{"video": video, "correct": bool(verdict)} for verdict in verdicts]
    common.write_jsonl(tmp_path / "predictions.jsonl", rows)
    right = study_final.count_right(tmp_path / "predictions.jsonl", lambda row: row["correct"])
    assert right == "21"


def test_what_is_recorded_is_what_the_stages_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(study_final, "TEST", tmp_path / "world")
    monkeypatch.setattr(study_final, "N_VIDEOS", 3)

    def run_here(phases, log):
        for phase in phases:
            for job in phase:
                job.task(*job.arguments)

    monkeypatch.setattr(study, "run_phases", run_here)
    monkeypatch.setattr(sys, "argv", [])
    teacher = Run(0, study_final.TEACHER, 0)
    trained = Run(0, "nll-800", 1)  # here the base itself stands for what was trained
    model = study.run_directory(tmp_path, trained) / "model0"
    model.parent.mkdir(parents=True)
    model.symlink_to(MODEL.absolute())

    record = study_final.score_all([teacher, trained], {0: MODEL}, tmp_path)
    study_final.write_record(tmp_path / "final.jsonl", record)
    assert study_final.read_record(tmp_path / "final.jsonl") == record
    assert record[trained] == record[Run(0, "base", 0)]
    assert record[teacher] != record[trained]

    out = study_final.final_directory(tmp_path, teacher)
    [accuracy] = common.read_keys(out / "results.json", "accuracy")
    assert study_final.accuracy(record[trained]) == pytest.approx(accuracy, abs=1e-4)
    revised = report.score_revisions(common.read_jsonl(out / "pairs.jsonl"))
    assert study_final.accuracy(record[teacher]) == pytest.approx(revised)


def test_a_model_that_was_not_trained_is_named(tmp_path):
    with pytest.raises(common.InputError, match=r"model0 is missing.*--only nll-800"):
        study_final.score_all([Run(0, "nll-800", 1)], {0: MODEL}, tmp_path)


@pytest.mark.parametrize(
    "rows, said",
    [
        ([(0, "base", 0), (0, "paper", 1)], '"the base\'s revisions" of base 0 is missing'),
        ([(0, "unknown", 1)], "'unknown' is none of base, "),
    ],
)
def test_a_record_without_its_teacher(tmp_path, rows, said):
    path = tmp_path / "final.jsonl"
    common.write_jsonl(path, [Run(*row)._asdict() | {"right": "6"} for row in rows])
    with pytest.raises(common.InputError, match=said):
        study_final.read_record(path)
