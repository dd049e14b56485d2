"""tools.study_final: is a recipe above its teacher, on a test that is scored once?"""

import sys

import pytest

import common
from conftest import MODEL
from shapes import world
from tools import report, study, study_final
from tools.study_record import Run


def test_the_table_by_hand(monkeypatch, capsys):
    monkeypatch.setattr(study_final, "N_VIDEOS", 2)
    # Two videos with six questions each. Of the base 6 of 12 answers are right, after its revision
    # 9; the two models of the recipe have 10 and 11
    record = {
        Run(0, "base", 0): "33",
        Run(0, study_final.TEACHER, 0): "54",
        Run(0, "paper", 1): "45",
        Run(0, "nll-800", 1): "55",
        Run(0, "nll-800", 2): "65",
    }
    study_final.print_table(record)
    base, teacher, paper, recipe = capsys.readouterr().out.splitlines()[-4:]
    # To the teacher the differences are 1/12 and 2/12. The gap is 3 answers, closed by 4.5 in the
    # mean. In the mean of both models the videos gain 0.5 and 1 of 6; of all draws of two videos a
    # quarter has the first twice, another quarter the second. To paper it is 1.5 and 0 of 6
    cells = ["0", "nll-800", "2", "0.875 +- 0.059", "150%"]
    cells += ["+0.125 (+0.083 to +0.167)", "+0.125 (+0.000 to +0.250)"]
    assert recipe == f"| {' | '.join(cells)} |"
    assert base.startswith("| 0 | base | 1 | 0.500 | 0% | -0.250 (-0.333 to -0.167) | ")
    assert teacher == "| 0 | the base's revisions | 1 | 0.750 | 100% |  | +0.000 (-0.167 to +0.167) |"
    assert paper == "| 0 | paper | 1 | 0.750 | 100% | +0.000 (-0.167 to +0.167) |  |"


def test_a_digit_for_each_video_in_order(tmp_path):
    rows = []
    for video, *verdicts in [("1.mp4", 0, 1), ("0.mp4", 1, 1), ("1.mp4", 0, 0)]:
        rows += [{"video": video, "correct": bool(verdict)} for verdict in verdicts]
    common.write_jsonl(tmp_path / "predictions.jsonl", rows)
    right = study_final.count_right(tmp_path / "predictions.jsonl", lambda row: row["correct"])
    assert right == "21"


def test_what_is_recorded_is_what_the_stages_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(study_final, "WORLD", tmp_path / "world")
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
    with pytest.raises(common.InputError, match=r"model0 is missing.* --seeds 1 --only nll-800"):
        study_final.score_all([Run(0, "nll-800", 1)], {0: MODEL}, tmp_path)


def test_another_world_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(study_final, "WORLD", tmp_path)
    world.write_split(tmp_path, "test", 1, seed=22)
    with pytest.raises(common.InputError, match=r"has 6 questions, not 7200: remove"):
        study_final.make_test()


RIGHT = "6" * study_final.N_VIDEOS


@pytest.mark.parametrize(
    "rows, said",
    [
        ([("base", RIGHT), ("paper", RIGHT)], '"the base\'s revisions" of base 0 is missing'),
        ([("unknown", RIGHT)], "'unknown' is none of base, "),
        ([("base", "66")], "`right` must have 1200 digits"),
        ([("base", None)], "`right` must have 1200 digits"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, rows, said):
    path = tmp_path / "final.jsonl"
    lines = [Run(0, name, 0)._asdict() | {"right": right} for name, right in rows]
    common.write_jsonl(path, lines)
    with pytest.raises(common.InputError, match=said):
        study_final.read_record(path)


@pytest.mark.slow
def test_what_is_in_the_record_is_not_scored_again(tmp_path, monkeypatch, capsys):
    record = {Run(0, name, 0): RIGHT for name in ("base", study_final.TEACHER)}
    record |= {Run(0, "paper", seed): RIGHT for seed in (1, 2)}
    path = tmp_path / "final.jsonl"
    study_final.write_record(path, record)
    asked = []

    def score(missing, bases, output):
        asked.extend(missing)
        return {}

    monkeypatch.setattr(study_final, "score_all", score)
    words = ["--seeds", "1", "2", "2", "--output", str(tmp_path), "--record", str(path)]
    monkeypatch.setattr(sys, "argv", ["study_final.py", *words])
    study_final.main()
    assert asked == []
    # No gap to close where the base is as often right as its revisions
    assert "| 0 | paper | 2 | 1.000 +- 0.000 |  | +0.000 (+0.000 to +0.000) |  |" in capsys.readouterr().out
    sys.argv += ["--only", "paper", "nll-2400"]
    study_final.main()
    assert asked == [Run(0, "nll-2400", 1), Run(0, "nll-2400", 2)]
