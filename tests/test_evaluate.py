"""Scoring by truth, by hand."""

import pytest

import common
import evaluate
from tools import report


def item(task, answer, error="causal_reasoning"):
    return {"benchmark": "shapes", "task": task, "options": [answer], "answer": 0, "tags": {"error_type": error}}


@pytest.mark.parametrize(
    "task, truth, reply, errors",
    [
        ("motion", "it moves left.", "It moves left", []),
        ("motion", "it moves left.", "it moves right.", ["causal_reasoning"]),
        ("motion", "it moves left.", "", ["causal_reasoning"]),
        ("objects", "a red circle and a blue square.", "a blue square and a red circle.", []),
        (
            "objects",
            "a red circle and a blue square.",
            "a red circle, a blue square and a white square.",
            ["object_hallucination"],
        ),
        (
            "objects",
            "a red circle, a blue square and a white square.",
            "a red circle and a white square.",
            ["detail_omission"],
        ),
        (
            "objects",
            "a red circle and a blue square.",
            "a red circle and a blue circle.",
            ["object_hallucination", "detail_omission"],
        ),
    ],
)
def test_errors_of_a_reply(task, truth, reply, errors):
    assert evaluate.name_errors(item(task, truth), reply) == errors
    assert evaluate.parse_reply(item(task, truth), reply) == (None if errors else 0)


def row(video, correct, **more):
    return {
        "id": f"{video}/{id(object())}",
        "benchmark": "shapes",
        "video": video,
        "task": "motion",
        "tags": {},
        "options": ["it moves left."],
        "answer": 0,
        "initial": "it moves.",
        "parsed": 0 if correct else None,
        "correct": correct,
        "true_errors": [] if correct else ["factual_inaccuracy"],
        **more,
    }


def test_score_by_hand():
    rows = [row("a", True), row("a", False), row("b", True), row("b", True), row("c", None, dropped="unreadable_video")]
    result = evaluate.score(rows)
    assert (
        result["accuracy"],
        result["n"],
        result["N"],
        result["n_videos"],
        result["n_unreadable"],
        result["n_wrong"],
    ) == (0.75, 4, 5, 2, 1, 1)
    assert result["errors"]["factual_inaccuracy"] == 1 and sum(result["errors"].values()) == 1
    assert (result["score"], result["n_unparsed"]) == (0.75, 0)  # a free-form reply is right or wrong, never unparsed
    # bootstrap over two videos with means 1/2 and 1: a resample has the mean 1/2 or 1 in a quarter of the cases each, so the interval is both ends
    assert result["interval"] == [0.5, 1.0]


def test_the_interval_is_over_videos_not_questions():
    # 20 videos of 10 questions that are all right or all wrong: as good as 20 observations, standard error sqrt(.25 / 20) = 0.11, not 0.035
    rows = [row(str(n), n % 2 == 0) for n in range(20) for _ in range(10)]
    low, high = evaluate.interval(rows)
    assert high - low == pytest.approx(2 * 1.96 * 0.112, abs=0.06)


def test_the_critic_and_the_revisions_by_hand():
    rows = [
        {"correct": False, "error_types": ["factual_inaccuracy"]},
        {"correct": True, "error_types": ["factual_inaccuracy"]},
        {"correct": False, "error_types": []},
        {"correct": False, "error_types": None},
        {"correct": True, "error_types": []},
    ]
    assert report.score_critic(rows) == (
        1 / 2,
        1 / 3,
    )  # two found, one of them wrong indeed; three wrong, one of them found
    kept = item("motion", "it moves left.") | {"initial": "it moves left."}
    mended = item("motion", "it moves left.") | {"initial": "it moves up.", "revised": "it moves left."}
    spoiled = item("motion", "it moves left.") | {"initial": "it moves left.", "revised": "it moves up."}
    assert report.score_revisions([kept, mended, spoiled]) == 2 / 3


def test_a_bad_benchmark_is_named(tmp_path):
    with pytest.raises(common.InputError, match="questions.json"):
        evaluate.load_items("shapes", tmp_path)
    (tmp_path / "questions.json").write_text('[{"video": "a.mp4"}]')
    with pytest.raises(common.InputError, match="item 0: no key 'type'"):
        evaluate.load_items("shapes", tmp_path)
