"""tools.agree: rows on which several views of a video agree."""

import json
import sys

import pytest

import common
from tools import agree

ASKED = {"id": "a/1", "video": "a.mp4", "question": "how many?"}
PAIR = ASKED | {"initial": "two.", "revised": "three.", "chosen": "three.", "rejected": "two."}
PASSED = ASKED | {"initial": "Three", "dropped": "no_error_found"}
OTHER = ASKED | {"initial": "two.", "dropped": "no_error_found"}
NONE = ASKED | {"dropped": "truncated"}


@pytest.mark.parametrize(
    "first, second, reasons",
    [
        (PAIR, PASSED, [None, "no_error_found"]),  # a revision, and an answer that was left: both "three"
        (PAIR, OTHER, ["views_disagree"] * 2),
        (PASSED, OTHER, ["views_disagree"] * 2),  # each is sure of its own
        (PASSED, NONE, ["views_disagree", "truncated"]),
        (OTHER, OTHER | {"dropped": "unchanged"}, ["no_error_found", "unchanged"]),
    ],
)
def test_two_views_by_hand(first, second, reasons):
    agreed = agree.agree([[first], [second]])
    assert [rows[0].get("dropped") for rows in agreed] == reasons
    for [row], before in zip(agreed, (first, second)):
        if row.get("dropped") == "views_disagree":
            assert "chosen" not in row and row["initial"] == before["initial"]  # what was said can be read
        else:
            assert row == before


def test_all_views_must_agree_and_one_that_lacks_a_row_does_not():
    ends = [[PASSED], [PASSED], [OTHER]]
    assert [rows[0]["dropped"] for rows in agree.agree(ends)] == ["views_disagree"] * 3
    assert [[row["dropped"] for row in rows] for rows in agree.agree([[PASSED], []])] == [["views_disagree"], []]


def write_view(directory, *rows, finished=True):
    path = directory / "pairs.jsonl"
    directory.mkdir()
    common.write_jsonl(path, rows)
    account = {"account": "rows", "kept": 1, "seconds": 2.5} if finished else {}
    meta = {"root": str(directory / "videos"), "stage": "refine.py", "finished": account, "content": {"model": "m"}}
    common.write_json(common.meta_path(path), meta)
    return path


def run(monkeypatch, *paths):
    monkeypatch.setattr(sys, "argv", ["agree", *map(str, paths)])
    agree.main()


def test_each_view_gets_its_rows_and_its_own_root(tmp_path, monkeypatch, capsys):
    second = ASKED | {"id": "a/2"}
    one = write_view(tmp_path / "one", PAIR, second | {"initial": "x", "dropped": "unchanged"})
    two = write_view(tmp_path / "two", PASSED, second | {"initial": "y", "dropped": "unchanged"})
    run(monkeypatch, one, two)
    for view, first, n_pairs in (("one", PAIR, 1), ("two", PASSED, 0)):
        path = tmp_path / view / "agreed.jsonl"
        rows = common.read_jsonl(path)
        assert rows[0] == first and rows[1]["dropped"] == "views_disagree"
        meta = json.loads(common.meta_path(path).read_text())
        assert meta["root"] == str(tmp_path / view / "videos")  # dpo.py finds the copies there
        assert meta["finished"]["account"].startswith(f"rows in 2 = {n_pairs} pairs + {2 - n_pairs} dropped")
    assert "with those left unchanged 1 rows agree" in capsys.readouterr().out
    with pytest.raises(common.InputError, match="exists already"):
        run(monkeypatch, one, two)


def test_views_that_cannot_be_compared_are_refused(tmp_path, monkeypatch, capsys):
    one = write_view(tmp_path / "one", PAIR)
    other = write_view(tmp_path / "other", PAIR | {"question": "which?"})
    twice = write_view(tmp_path / "twice", PAIR, PAIR)
    torn = write_view(tmp_path / "torn", PAIR, finished=False)
    answers = write_view(tmp_path / "answers", ASKED | {"initial": "two."})  # of generate.py
    for path, complaint in [
        (other, "a/1: its question is another one"),
        (twice, "duplicate id"),
        (torn, "is unfinished"),
        (answers, "no key 'chosen', which refine.py writes"),
    ]:
        with pytest.raises(common.InputError, match=complaint):
            run(monkeypatch, one, path)
    for paths in ([one], [one, one]):
        with pytest.raises(SystemExit):
            run(monkeypatch, *paths)
        assert "at least two views, each in a directory of its own" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/agreed*"))
