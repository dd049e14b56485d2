"""Does a recipe end above its teacher? Scored once, where nothing was chosen.

    python -m tools.study --bases 0 1 --only nll-2400-greedy    # trains the models
    python -m tools.study_final --bases 0 1 --only nll-2400-greedy    # scores them
    python -m tools.study_final --record docs/final.jsonl    # docs/study.md's figures

tools.study compares recipes on `dev`, and the best of many is partly lucky.
Here those that were chosen there answer the `test` of another world, made in
the same way from a seed of its own: 7,200 questions about 1,200 videos. The
teacher of a recipe is the base that it starts from, when it criticises and
revises its own answers. What is in the record is not scored again.
"""

import argparse
import json
import os
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import common
import critique
import evaluate
import refine
from shapes import world
from tools import report, study, study_record
from tools.study_record import Run
from tools.study_tables import print_rows, spread
from tools.study_variants import ONE_ROUND, VARIANTS

WORLD_SEED = 22  # no rounds, no dev and no leaderboard were drawn from it
N_VIDEOS = 1200
WORLD = Path("runs/study-final")  # not runs/shapes-22, where `make loop SEED=22` has its videos
QUESTIONS = 6  # about each video
TEACHER = "the base's revisions"
NAMES = ["base", TEACHER, *study_record.NAMES[1:]]

# ------------------------------------------------------------------------------
# Scoring


def make_test():
    """Make the videos and questions of the test, where they are missing.

    Raises:
        InputError: if there are others in their place
    """
    questions = WORLD / "test" / "questions.json"  # the last file that is written
    if not questions.exists():
        world.write_split(WORLD, "test", N_VIDEOS, WORLD_SEED)
    n = len(json.loads(questions.read_text()))
    if n != QUESTIONS * N_VIDEOS:
        raise common.InputError(
            f"{questions} has {n} questions, not {QUESTIONS * N_VIDEOS}: remove {WORLD}"
        )


def score_teacher(base: Path, out: Path):
    """Let a base answer the test and revise its own answers: out / pairs.jsonl."""
    score_model(base, out)
    answers, critiques = out / "predictions.jsonl", out / "critiques.jsonl"
    study.run_stage(critique, base, answers, critiques, *study.TOGETHER)
    study.run_stage(refine, base, critiques, out / "pairs.jsonl", *study.TOGETHER)


def score_model(model: Path, out: Path):
    """Let a model answer the test: out / predictions.jsonl."""
    words = ("--benchmark", "shapes", *study.TOGETHER)
    study.run_stage(evaluate, model, WORLD / "test", out, *words)


def find_model(output: Path, run: Run) -> Path:
    """Find the model that a run of tools.study ended with.

    Args:
        output: directory of the study

    Raises:
        InputError: if tools.study has not made it
    """
    directory = study.run_directory(output, run)
    if run.variant in VARIANTS:
        model = study.find_model(directory / f"round{study.ROUNDS[-1]}")
    else:
        model = directory / ("average" if ONE_ROUND[run.variant].trainings > 1 else "model0")
    if not model.exists():
        raise common.InputError(
            f"{model} is missing. What makes it: python -m tools.study --output {output} --bases "
            f"{run.base} --seeds {run.seed} --only {run.variant}"
        )
    return model


def count_right(file: Path, is_right: Callable[[dict], bool]) -> str:
    """Count the right answers to each video -> a digit for each, in their order in the test.

    Args:
        file: answers to the test, six to each video
        is_right: tells whether the answer of a row is right
    """
    by_video = {}
    for row in common.read_jsonl(file, ("video",)):
        by_video.setdefault(row["video"], []).append(is_right(row))
    return "".join(f"{sum(by_video[video])}" for video in sorted(by_video))


def score_all(missing: list[Run], bases: dict[int, Path], output: Path) -> dict[Run, str]:
    """Score runs, and the teachers that are among them, on the test, which is made if need be.

    A base's own answers come with those of the teacher.

    Returns:
        {run: right answers to each video}

    Raises:
        InputError: before anything is scored, if a model is missing
    """
    jobs = []
    for run in missing:
        out = final_directory(output, run)
        if run.variant == TEACHER:
            jobs.append(study.Job(score_teacher, (bases[run.base], out)))
        else:
            jobs.append(study.Job(score_model, (find_model(output, run), out)))
    make_test()
    study.run_phases([jobs], output / "final.log")

    right = {}
    for run in missing:
        out = final_directory(output, run)
        name = "base" if run.variant == TEACHER else run.variant
        right[run._replace(variant=name)] = count_right(
            out / "predictions.jsonl", lambda row: row["correct"]
        )
        if run.variant == TEACHER:
            right[run] = count_right(out / "pairs.jsonl", report.is_revision_right)
    return right


def final_directory(output: Path, run: Run) -> Path:
    """Name the directory that the answers of a run are written to."""
    if run.variant == TEACHER:
        return study.base_directory(output, run.base) / "final"
    return study.run_directory(output, run) / "final"


# ------------------------------------------------------------------------------
# The record and its tables


def read_record(path: Path) -> dict[Run, str]:
    """Read a record -> {run: a digit for each video, its right answers}; empty if there is none.

    Raises:
        InputError: for a row that is none of this record, a recipe that there is not (any more), or
            one whose base or teacher is missing
    """
    record = {}
    if path.exists():
        for row in common.read_jsonl(path, Run._fields):
            run = Run(*(row[name] for name in Run._fields))
            if not re.fullmatch(f"[0-{QUESTIONS}]{{{N_VIDEOS}}}", str(row.get("right"))):
                raise common.InputError(
                    f"{path}, {run}: `right` must have {N_VIDEOS} digits, right answers to a video"
                )
            record[run] = row["right"]
    for run in record:
        if run.variant not in NAMES:
            raise common.InputError(f"{path}: {run.variant!r} is none of {', '.join(NAMES)}")
        for name in ("base", TEACHER):
            if Run(run.base, name, 0) not in record:
                raise common.InputError(f"{path}: {name!r} of base {run.base} is missing")
    return record


def write_record(path: Path, record: dict[Run, str]):
    """Write a record, base by base and in the order of NAMES."""
    runs = sorted(record, key=lambda run: (run.base, NAMES.index(run.variant), run.seed))
    common.write_jsonl(path, [run._asdict() | {"right": record[run]} for run in runs])


def print_table(record: dict[Run, str]):
    """Print the accuracy by base and recipe, and differences to the teacher and to paper."""
    rows = []
    for base in sorted({run.base for run in record}):
        for name in NAMES:
            seeds = select(record, base, name)
            if seeds:
                rows.append([f"{base}", name, f"{len(seeds)}", *describe(record, base, seeds)])
    title = (
        f"accuracy on test of world {WORLD_SEED} (n = {QUESTIONS * N_VIDEOS}, {N_VIDEOS} videos), "
        "scored once for each; behind a difference its 95% interval over videos (recipes were "
        f"chosen elsewhere, among the {len(NAMES) - 2} of tools.study and others: docs/study.md)"
    )
    heads = ["base", "", "seeds", "accuracy", "share of the gap"]
    print_rows(title, [*heads, f"minus {TEACHER}", "minus the paper's loop"], rows)


def select(record: dict[Run, str], base: int, name: str) -> list[str]:
    """Select the right answers of a recipe on one base, for each loop seed."""
    return [right for run, right in record.items() if run[:2] == (base, name)]


def describe(record: dict[Run, str], base: int, seeds: list[str]) -> list[str]:
    """Describe a recipe on one base, in the mean of its loop seeds.

    Args:
        seeds: right answers to each video, for each loop seed

    Returns:
        four cells: accuracy; the share of the gap between base and teacher; the difference to the
        teacher; that to the paper's loop, if it is there
    """
    [before] = select(record, base, "base")
    teacher = select(record, base, TEACHER)
    papers = select(record, base, "paper")
    accuracies = [accuracy(right) for right in seeds]
    gap = accuracy(teacher[0]) - accuracy(before)
    closed = statistics.mean(accuracies) - accuracy(before)
    return [
        spread(accuracies),
        f"{closed / gap:.0%}" if gap else "",
        "" if seeds == teacher else compare(seeds, teacher),
        "" if seeds == papers or not papers else compare(seeds, papers),
    ]


def accuracy(right: str) -> float:
    """Give the share of right answers.

    >>> accuracy("63")  # nine of twelve
    0.75
    """
    return sum(map(int, right)) / (QUESTIONS * len(right))


def compare(seeds: list[str], others: list[str]) -> str:
    """Format how much more is right than with others, each in the mean of its loop seeds.

    Behind it stands the 95% interval, bootstrapped over videos.
    """
    rows = []
    for number, digits in enumerate(zip(*seeds, *others, strict=True)):
        right = [int(digit) / QUESTIONS for digit in digits]
        difference = statistics.mean(right[: len(seeds)]) - statistics.mean(right[len(seeds) :])
        rows.append({"video": f"{number}", "difference": difference})
    low, high = evaluate.interval(rows, mean_difference)
    return f"{mean_difference(rows):+.3f} ({low:+.3f} to {high:+.3f})"


def mean_difference(rows: list[dict]) -> float:
    """Give the mean over videos."""
    return statistics.mean(row["difference"] for row in rows)


# ------------------------------------------------------------------------------
# The command line


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add(
        "--bases",
        type=common.seed_number,
        nargs="+",
        default=[0],
        metavar="SEED",
        help="of the bases",
    )
    add(
        "--seeds",
        type=common.seed_number,
        nargs="+",
        default=study.SEEDS,
        metavar="SEED",
        help="of the loop",
    )
    add(
        "--only",
        nargs="+",
        choices=[*VARIANTS, *ONE_ROUND],
        default=["paper"],
        metavar="NAME",
        help="recipes of tools.study, whose models are there",
    )
    add("--output", type=Path, default=Path("runs/study"), help="directory of the study")
    add(
        "--record",
        type=Path,
        metavar="FILE",
        help="figures of all runs so far, which are not scored again, and of those that are added "
        "(default: final.jsonl in the output; docs/final.jsonl has those of docs/study.md)",
    )
    return parser.parse_args()


def main():
    """Score what is missing, then print the table of all that was scored."""
    args = parse_args()
    if args.record and not args.record.exists():
        raise common.InputError(f"{args.record}: no such file; leave --record out to begin one")
    path = args.record or args.output / "final.jsonl"
    record = read_record(path)
    wanted = []
    for base in args.bases:
        wanted.append(Run(base, TEACHER, 0))
        wanted += [Run(base, name, seed) for name in args.only for seed in args.seeds]
    missing = [run for run in dict.fromkeys(wanted) if run not in record]
    if missing:
        lock = study.lock_output(args.output)
        os.environ["OMP_NUM_THREADS"] = "1"  # of all processes started here: there is one a core
        bases = study.find_bases(args.bases, args.output)
        record |= score_all(missing, bases, args.output)
        write_record(path, record)
        lock.release()
    print_table(record)


if __name__ == "__main__":
    common.run(main)
