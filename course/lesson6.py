"""Checks of lesson 6: two tests by hand, and which control refutes which claim."""

from pathlib import Path

import common
from course.wrong import demand

EXERCISE = "measuring"
PAGE = "6_measuring_honestly.md"
RUN = Path("runs/loop")
OUTPUT = Path("runs/lesson6")  # where the lesson's commands write
CONTROLS = ("another judge", "paired test", "shuffled sides", "unseen videos", "second sample")


def check_interval(exercise):
    """Check that the interval is drawn over videos, not over answers."""
    correct = [True] * 30 + [False] * 30
    two = ["a"] * 30 + ["b"] * 30
    low, high = exercise.interval(correct, two, 1000, 0)
    demand(
        (low, high) == (0.0, 1.0),
        f"Two videos with 30 answers each, all right about one and all wrong about the other: one "
        f"draw in four takes the same video twice, so the interval is (0, 1), not "
        f"({low:.2f}, {high:.2f}). Answers about one video are not independent.",
    )


def check_width(exercise):
    """Check that its width is that of a mean over independent videos: 2 * 1.96 standard errors."""
    correct = [number % 4 > 0 for number in range(400)]
    low, high = exercise.interval(correct, [str(number) for number in range(400)], 2000, 0)
    expected = 2 * 1.96 * (0.75 * 0.25 / 400) ** 0.5  # 0.085
    demand(
        abs(high - low - expected) < 0.015 and low < 0.75 < high,
        f"400 videos with one answer each, three of four right: some {expected:.3f} wide around "
        f"0.75, not ({low:.3f}, {high:.3f}). 95% leaves out 2.5% on each side.",
    )


def check_seed(exercise):
    """Check that the same seed gives the same interval."""
    videos = [str(int(number**0.7)) for number in range(300)]  # of different numbers of answers
    data = ([number % 7 < 5 for number in range(300)], videos, 100)
    demand(
        exercise.interval(*data, 5) == exercise.interval(*data, 5),
        "Two calls with one seed differ: somebody who repeats your command sees other figures.",
    )


def check_mcnemar(exercise):
    """Check that McNemar's test counts changes alone: 8 better and 2 worse have p = 0.109."""
    before = [False] * 8 + [True] * 2 + [True] * 90
    after = [True] * 8 + [False] * 2 + [True] * 90
    p = exercise.mcnemar(before, after)
    hints = {
        0.0547: "That is one side: better by chance and worse by chance are both surprises.",
        0.0879: "That is the probability of 8 to 2 alone; p is that of 2, 1 or 0, on both sides.",
    }
    hint = next((text for wrong, text in hints.items() if abs(p - wrong) < 5e-4), "")
    # 2 * (1 + 10 + 45) / 1024
    demand(abs(p - 0.109375) < 1e-6, f"It is {p:.4f}. {hint}".strip())
    same = exercise.mcnemar([True, False], [True, False])
    demand(same == 1, f"Two models that differ nowhere have p = 1, not {same}.")
    even = exercise.mcnemar([True, False], [False, True])
    demand(even == 1, f"One better and one worse have p = 1, not {even}: a probability ends at 1.")


def check_claims(exercise):
    """Check that each claim is refuted by the control that keeps all else as it was."""
    hints = {
        "A": "Who counts the errors? What does he not see?",
        "B": "By how many answers do the two differ, and in how many did they change places?",
        "C": "Would this figure be lower if the pairs taught nonsense?",
    }
    expected = {"A": "another judge", "B": "paired test", "C": "shuffled sides"}
    for claim, hint in hints.items():
        said = exercise.CLAIMS[claim]
        if said is None:
            raise NotImplementedError
        demand(said in CONTROLS, f"{said!r} is none of {', '.join(CONTROLS)}.")
        demand(said == expected[claim], f"Claim {claim}: {said!r} does not touch it. {hint}")


def check_figures(exercise):
    """Check that the controls were run: the figures are those of runs/loop and runs/lesson6."""
    [n_wrong] = common.read_keys(read_file(RUN / "round4" / "eval" / "results.json"), "n_wrong")
    compare("WRONG_IN_ROUND_4", exercise, n_wrong, 0.5)

    rounds = []
    for name in ("round3", "round4"):
        rows = common.read_jsonl(read_file(RUN / name / "eval" / "predictions.jsonl"))
        rounds.append([row["correct"] for row in rows])
    compare("P_OF_ROUND_4_AGAINST_3", exercise, exercise.mcnemar(*rounds), 0.005)

    [accuracy] = common.read_keys(read_file(OUTPUT / "eval" / "results.json"), "accuracy")
    compare("ACCURACY_AFTER_SHUFFLING", exercise, accuracy, 0.001)


def read_file(path: Path) -> Path:
    """Give a path back if the file is there; InputError says what writes it."""
    if not path.exists():
        raise common.InputError(f"{path} is missing: run `make loop`, then the lesson's commands")
    return path


def compare(name: str, exercise, happened: float, tolerance: float):
    """Demand that a figure which was written down is the one that came out."""
    said = getattr(exercise, name)
    demand(
        said is not None and abs(said - happened) <= tolerance,
        f"{name} is {said}; in your runs it is {happened:.3f}.",
    )


CHECKS = [
    check_interval,
    check_width,
    check_seed,
    check_mcnemar,
    check_claims,
    check_figures,
]
