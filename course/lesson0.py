"""Lesson 0: guesses beside what the loop printed. Nobody fails."""

from pathlib import Path

import common
from tools import report, report_rounds

EXERCISE = "guess"
PAGE = "0_a_loop_you_can_watch.md"
RUN = Path("runs/loop")  # where `make loop` writes


def read_column(name: str) -> dict:
    """Read a column of the table that `make loop` prints.

    Raises:
        InputError: if the run is not there, or has not come so far
    """
    directory = RUN / name
    results = report.read_scores(directory)
    if not results:
        raise common.InputError(
            f"{directory} has no score yet: run `make loop` first, to its end. It resumes"
        )
    return report.describe_scores(directory, results) | report_rounds.count_rows(directory)


def check_guesses(exercise):
    """Check that three guesses stand beside what happened."""
    first = read_column("round1")
    last = read_column("round4")
    compared = [
        ("right after round 1", exercise.ACCURACY_AFTER_ROUND_1, first["accuracy"]),
        ("pairs in round 4", exercise.PAIRS_IN_ROUND_4, last["pairs"]),
        ("recall after round 4", exercise.RECALL_AFTER_ROUND_4, last["critic's recall"]),
    ]
    if any(guess is None for _, guess, _ in compared):
        raise NotImplementedError
    print(f"{'':24}{'your guess':>12}{'the run':>12}")
    for what, guess, happened in compared:
        print(f"{what:24}{guess!s:>12}{happened!s:>12}")


CHECKS = [check_guesses]
