"""Does a recipe end above its teacher? Scored once, on a test that nothing was chosen on.

    python -m tools.study --bases 0 1 --only nll-2400    # trains the models
    python -m tools.study_final --bases 0 1 --only paper nll-2400
    python -m tools.study_final --record docs/final.jsonl    # docs/study.md's tables

tools.study compares recipes on `dev`, and the best of many is the best partly
by luck. Here those that were chosen there answer the `test` of another world,
made in the same way from a seed of its own: 7,200 questions about 1,200 videos.
The teacher of a recipe is the base that it starts from, when it criticises and
revises its own answers. What is in the record is not scored again.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import common
import critique
import evaluate
import refine
from tools import study
from tools.study_record import Run
from tools.study_tables import mean_and_error, print_rows, spread
from tools.study_variants import ONE_ROUND, VARIANTS

WORLD_SEED = 22  # no rounds, no dev and no leaderboard were drawn from it
N_VIDEOS = 1200
TEST = Path(f"runs/shapes-{WORLD_SEED}")
QUESTIONS = 6  # about each video
TEACHER = "the base's revisions"
NAMES = ["base", TEACHER, *VARIANTS, *ONE_ROUND]

# ------------------------------------------------------------------------------
# Scoring


def score_teacher(base: Path, out: Path):
    """Let a base answer the test and revise its own answers: out / pairs.jsonl."""
    score_model(base, out)
    answers, critiques = out / "predictions.jsonl", out / "critiques.jsonl"
    study.run_stage(critique, base, answers, critiques, *study.TOGETHER)
    study.run_stage(refine, base, critiques, out / "pairs.jsonl", *study.TOGETHER)


def score_model(model: Path, out: Path):
    """Let a model answer the test: out / predictions.jsonl."""
    words = ("--benchmark", "shapes", *study.TOGETHER)
    study.run_stage(evaluate, model, TEST / "test", out, *words)


def find_model(run: Path, name: str) -> Path:
    """Find the model that a run of tools.study ended with.

    Args:
        run: directory of the run
        name: one of VARIANTS or of ONE_ROUND

    Raises:
        InputError: if tools.study has not made it
    """
    if name in VARIANTS:
        model = study.find_model(run / f"round{study.ROUNDS[-1]}")
    else:
        model = run / ("average" if ONE_ROUND[name].trainings > 1 else "model0")
    if not model.exists():
        raise common.InputError(f"{model} is missing: python -m tools.study --only {name} makes it")
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


def is_revision_right(row: dict) -> bool:
    """Tell whether an answer is right after its revision; one that has none stays as it was."""
    answer = row.get("revised", row["initial"])
    return evaluate.parse_reply(row, answer) == row["answer"]


def score_all(missing: list[Run], bases: dict[int, Path], output: Path) -> dict[Run, str]:
    """Score runs, and the teachers that are among them -> {run: right answers to each video}.

    A base's own answers come with those of the teacher.
    """
    jobs = []
    for run in missing:
        out = final_directory(output, run)
        if run.variant == TEACHER:
            jobs.append(study.Job(score_teacher, (bases[run.base], out)))
        else:
            model = find_model(study.run_directory(output, run), run.variant)
            jobs.append(study.Job(score_model, (model, out)))
    options = {"--seed": WORLD_SEED, "--videos": 1, "--benchmark-videos": N_VIDEOS}
    study.make_world(TEST, *(f"{word}" for pair in options.items() for word in pair))
    study.run_phases([jobs], output / "final.log")

    right = {}
    for run in missing:
        out = final_directory(output, run)
        name = "base" if run.variant == TEACHER else run.variant
        right[run._replace(variant=name)] = count_right(
            out / "predictions.jsonl", lambda row: row["correct"]
        )
        if run.variant == TEACHER:
            right[run] = count_right(out / "pairs.jsonl", is_revision_right)
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
        InputError: for a recipe that there is not (any more), or one whose teacher is missing
    """
    record = {}
    if path.exists():
        for row in common.read_jsonl(path, (*Run._fields, "right")):
            record[Run(row["base"], row["variant"], row["seed"])] = row["right"]
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


def print_tables(record: dict[Run, str]):
    """Print the accuracy by base and recipe, and how far above its teacher a recipe ends."""
    bases = sorted({run.base for run in record})
    names = [name for name in NAMES if any(run.variant == name for run in record)]
    rows = []
    for base in bases:
        for name in names:
            seeds = [right for run, right in record.items() if run[:2] == (base, name)]
            if seeds:
                rows.append([f"{base}", name, f"{len(seeds)}", *describe(record, base, seeds)])
    n_videos = len(next(iter(record.values())))
    title = (
        f"accuracy on test of world {WORLD_SEED} (n = {QUESTIONS * n_videos}, {n_videos} videos), "
        "scored once, and differences to the base's revisions (on dev tools.study chose out of "
        f"{len(NAMES) - 2} recipes and controls)"
    )
    heads = ["base", "", "seeds", "accuracy", "difference, by seeds", "95% interval, over videos"]
    print_rows(title, [*heads, "share of the gap"], rows)


def describe(record: dict[Run, str], base: int, seeds: list[str]) -> list[str]:
    """Describe a recipe on one base: accuracy, differences to the teacher, share of the gap.

    Args:
        seeds: right answers to each video, for each loop seed

    Returns:
        four cells: accuracy; the difference with its standard error over loop seeds; its 95%
        interval over videos; the share of the gap between base and teacher
    """
    teacher = record[Run(base, TEACHER, 0)]
    before = accuracy(record[Run(base, "base", 0)])
    accuracies = [accuracy(right) for right in seeds]
    differences = [each - accuracy(teacher) for each in accuracies]
    low, high = evaluate.interval(list_differences(seeds, teacher), mean_difference)
    share = (statistics.mean(accuracies) - before) / (accuracy(teacher) - before)
    return [
        spread(accuracies),
        mean_and_error(differences),
        f"{low:+.3f} to {high:+.3f}",
        f"{share:.0%}",
    ]


def accuracy(right: str) -> float:
    """Give the share of right answers.

    >>> accuracy("63")  # nine of twelve
    0.75
    """
    return sum(map(int, right)) / (QUESTIONS * len(right))


def list_differences(seeds: list[str], teacher: str) -> list[dict]:
    """List by video how much better a recipe is than its teacher, in the mean of its loop seeds."""
    rows = []
    for number, digits in enumerate(zip(teacher, *seeds, strict=True)):
        by_teacher, *by_seed = map(int, digits)
        difference = (statistics.mean(by_seed) - by_teacher) / QUESTIONS
        rows.append({"video": f"{number}", "difference": difference})
    return rows


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
        metavar="SEED",
        help="of the bases that are scored, with their models (default: none, and what the record "
        "has is printed)",
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
    """Score what is missing, then print the tables."""
    args = parse_args()
    path = args.record or args.output / "final.jsonl"
    lock = study.lock_output(args.output)
    os.environ["OMP_NUM_THREADS"] = "1"  # of all processes started here: there is one a core
    record = read_record(path)
    wanted = []
    for base in args.bases or []:
        wanted.append(Run(base, TEACHER, 0))
        wanted += [Run(base, name, seed) for name in args.only for seed in args.seeds]
    missing = [run for run in wanted if run not in record]
    if missing:
        bases = study.make_bases(args.bases, args.output)
        record |= score_all(missing, bases, args.output)
        write_record(path, record)
    if not record:
        raise common.InputError(f"{path}: no such file, and no --bases to score")
    print_tables(record)
    lock.release()


if __name__ == "__main__":
    common.run(main)
