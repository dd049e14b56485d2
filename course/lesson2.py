"""Checks of lesson 2: what a critique says, and what makes a pair."""

import json
from pathlib import Path

from course.wrong import demand

EXERCISE = "gate"
PAGE = "2_a_critic_and_a_gate.md"
REPLIES = Path(__file__).parent / "replies.jsonl"
ENOUGH = 36  # of the 40 replies


def read_replies() -> list[dict]:
    """Read the replies: `critique`, and `verdict`, which is null for one that cannot be read."""
    return [json.loads(line) for line in REPLIES.read_text(encoding="utf-8").splitlines()]


def check_plain(exercise):
    """Check that a plain verdict is read: names, none, and nothing at all."""
    for critique, verdict in (
        ("The square moves left. Errors: factual_inaccuracy", ["factual_inaccuracy"]),
        ("The answer is right. Errors: none", []),
        ("The square moves left.", None),
    ):
        said = exercise.read_verdict(critique)
        demand(
            said == verdict,
            f"read_verdict({critique!r}) is {said!r}, not {verdict!r}. [] says that the critic "
            "found nothing; None, that nobody knows what it found.",
        )


def check_replies(exercise):
    """Check that at least 36 of 40 replies are read as a person reads them."""
    wrong = []
    for reply in read_replies():
        said = exercise.read_verdict(reply["critique"])
        if (None if said is None else sorted(said)) != reply["verdict"]:
            wrong.append((reply, said))
    n_right = len(read_replies()) - len(wrong)
    if n_right < ENOUGH:
        reply, said = wrong[0]
        demand(
            False,
            f"{n_right} of 40. The first that differs: {reply['critique']!r} says "
            f"{reply['verdict']!r}, and was read as {said!r}. All 40: course/replies.jsonl",
        )


def check_no_false_alarm(exercise):
    """Check that a reply that finds no error is never read as one that does."""
    for reply in read_replies():
        if reply["verdict"] == []:
            said = exercise.read_verdict(reply["critique"])
            demand(
                not said,
                f"{reply['critique']!r} was read as {said!r}: a right answer would be called "
                "wrong, and its revision be preferred to it.",
            )


def check_gate(exercise):
    """Check that a pair needs an error that was found and a revision that is whole and new."""
    row = {"initial": "It moves left.", "revised": "It moves right.", "error_types": ["x"]}
    for changed, whole, expected in (
        ({}, True, None),
        ({"error_types": []}, True, "no_error_found"),
        ({"error_types": None}, True, "unreadable_critique"),
        ({"revised": "it moves left"}, True, "unchanged"),
        ({"revised": " "}, True, "empty_revision"),
        ({}, False, "truncated"),
    ):
        said = exercise.judge(row | changed, whole)
        demand(
            said == expected,
            f"judge({row | changed}, whole={whole}) is {said!r}, not {expected!r}.",
        )


CHECKS = [check_plain, check_replies, check_no_false_alarm, check_gate]
