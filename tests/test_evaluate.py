"""Scores by hand, on the benchmark of the tiny world."""

import pytest

import benchmarks
import common
import evaluate
import prompts
from tools import report


def item(task, answer, error_type="causal_reasoning"):
    """An item of shapes: its only option is the true answer."""
    return {
        "benchmark": "shapes",
        "task": task,
        "options": [answer],
        "answer": 0,
        "tags": {"error_type": error_type},
    }


def row(video, correct, **more):
    """A row of predictions.jsonl."""
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


CIRCLE_AND_SQUARE = "a red circle and a blue square."
THREE_THINGS = "a red circle, a blue square and a white square."


@pytest.mark.parametrize(
    "task, truth, reply, errors",
    [
        ("motion", "it moves left.", "It moves left", []),
        ("motion", "it moves left.", "it moves right.", ["causal_reasoning"]),
        ("motion", "it moves left.", "", ["causal_reasoning"]),
        ("objects", CIRCLE_AND_SQUARE, "a blue square and a red circle.", []),
        ("objects", CIRCLE_AND_SQUARE, THREE_THINGS, ["object_hallucination"]),
        ("objects", THREE_THINGS, "a red circle and a white square.", ["detail_omission"]),
        (
            "objects",
            CIRCLE_AND_SQUARE,
            "a red circle and a blue circle.",
            ["object_hallucination", "detail_omission"],
        ),
    ],
)
def test_a_wrong_reply_has_the_error_types_of_its_task(task, truth, reply, errors):
    assert evaluate.name_errors(item(task, truth), reply) == errors
    assert evaluate.parse_reply(item(task, truth), reply) == (None if errors else 0)


def test_a_score_is_the_share_of_correct_replies_among_the_readable_videos():
    rows = [
        row("a", True),
        row("a", False),
        row("b", True),
        row("b", True),
        row("c", None, dropped="unreadable_video"),
    ]
    result = evaluate.score(rows)
    assert (result["score"], result["accuracy"]) == (3 / 4, 3 / 4)
    assert (result["n"], result["N"]) == (4, 5)
    assert (result["n_videos"], result["n_unreadable"]) == (2, 1)
    assert result["n_wrong"] == 1
    assert result["errors"]["factual_inaccuracy"] == 1
    assert sum(result["errors"].values()) == 1
    assert result["n_unparsed"] == 0  # a reply in free text is right or wrong, never unparsed
    # The two videos have means 1/2 and 1. A bootstrap sample draws two of them, so a quarter of the samples has the
    # mean 1/2, another quarter the mean 1: the 95% interval reaches to both ends.
    assert result["interval"] == [0.5, 1.0]


def test_the_interval_is_over_videos_not_questions():
    # 20 videos of 10 questions that are all right or all wrong: as good as 20 observations. The standard error is
    # sqrt(.25 / 20) = 0.112, not the sqrt(.25 / 200) = 0.035 of 200 observations.
    rows = [row(str(n), n % 2 == 0) for n in range(20) for _ in range(10)]
    low, high = evaluate.interval(rows, benchmarks.accuracy)
    assert high - low == pytest.approx(2 * 1.96 * 0.112, abs=0.06)


def test_the_interval_is_that_of_the_score_not_of_the_accuracy(monkeypatch):
    # A score that no accuracy can be: 10 for every row. Its interval is 10 to 10, the accuracy's is 0 to 1.
    tens = benchmarks.Benchmark(None, None, None, 1, score=lambda rows: 10.0, score_is="ten in {n_tasks} tasks")
    monkeypatch.setattr(evaluate, "SHAPES", tens)
    result = evaluate.score([row("a", True), row("b", False)])
    assert (result["score"], result["interval"]) == (10.0, [10.0, 10.0])
    assert result["score_is"] == "ten in 1 tasks"
    assert result["accuracy"] == 0.5
    assert result["by_task"]["motion"]["interval"] == [0.0, 1.0]  # by task it is the accuracy with its own interval


def test_the_critic_is_scored_by_truth():
    rows = [
        {"correct": False, "error_types": ["factual_inaccuracy"]},
        {"correct": True, "error_types": ["factual_inaccuracy"]},
        {"correct": False, "error_types": []},
        {"correct": False, "error_types": None},
        {"correct": True, "error_types": []},
    ]
    # An error was found in two replies, of which one is wrong; three replies are wrong, of which one was found
    assert report.score_critic(rows) == (1 / 2, 1 / 3)


def test_revisions_are_scored_by_truth():
    kept = item("motion", "it moves left.") | {"initial": "it moves left."}
    improved = item("motion", "it moves left.") | {"initial": "it moves up.", "revised": "it moves left."}
    worsened = item("motion", "it moves left.") | {"initial": "it moves left.", "revised": "it moves up."}
    assert report.score_revisions([kept, improved, worsened]) == 2 / 3


def test_a_benchmark_without_its_file_or_key_is_refused_by_name(tmp_path):
    with pytest.raises(common.InputError, match="questions.json"):
        evaluate.load_items("shapes", tmp_path)
    (tmp_path / "questions.json").write_text('[{"video": "a.mp4"}]')
    with pytest.raises(common.InputError, match="item 0: no key 'type'"):
        evaluate.load_items("shapes", tmp_path)


def test_an_error_type_that_has_another_name_elsewhere_is_still_counted(monkeypatch):
    # Who renames a type in prompts/default.py alone leaves the tiny world with the old name
    renamed = {"wrong_fact": "something that the video contradicts", **prompts.ERROR_TYPES}
    del renamed["factual_inaccuracy"]
    monkeypatch.setattr(prompts, "ERROR_TYPES", renamed)  # the table itself would come back in another order
    errors = evaluate.score([row("a", True), row("b", False)])["errors"]
    assert errors["factual_inaccuracy"] == 1
    assert errors["wrong_fact"] == 0
