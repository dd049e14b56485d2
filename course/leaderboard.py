"""Run a recipe on a world that nobody has seen, and put its score on the board.

    python -m course.leaderboard shapes/recipes/paper.txt --seed 7
    make leaderboard RECIPE=mine.txt SEED=7

A recipe is a file with options of tools/loop.sh, as those in shapes/recipes/. It
may say what it likes about rounds, pairs, prompts and training. Model, videos
and benchmark are the same for all: 800 unlabeled videos of the world of that
seed, in one pool. Its last model is scored once, on that world's `test`; base
and revisions too, for the closed gap. Nothing before that sees the truth. Each
version of a recipe is a run of its own, and stands on the board.

The budget: 800 videos, and 10 minutes of the stages' own time on your machine.

writes   runs/shapes-SEED/                   the world, as make loop SEED=... has it
         runs/leaderboard/SEED/base/         the base, scored once
         runs/leaderboard/SEED/NAME-VERSION  the run, which resumes
         runs/leaderboard/SEED/board.jsonl   a line for each run, which is printed
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import common
from tools import report

ROOT = Path(common.__file__).parent
RUNS = ROOT / "runs"
MODEL = "shapes/model"
ROUNDS = ("round1", "round2", "round3", "round4")
VIDEOS = 800
MINUTES = 10
OURS = (
    "--model",
    "--videos",
    "--run",
    "--benchmark",
    "--beside",
    "--dry-run",
    "--processes",
    "--train-processes",
)


def main():
    """Run and score a recipe, then print the board."""
    args = parse_args()
    options = read_recipe(args.recipe)
    world = RUNS / f"shapes-{args.seed}"
    board = RUNS / "leaderboard" / str(args.seed)
    run = board / f"{args.recipe.stem}-{common.fingerprint(*options)[:6]}"
    if not (world / "test" / "questions.json").exists():  # the last file that is written
        call(sys.executable, "-m", "shapes.world", world, "--seed", args.seed)

    videos = [world / name for name in ROUNDS]
    call("bash", "tools/loop.sh", "--model", MODEL, "--videos", *videos, "--run", run, *options)
    last = max(run.glob("round*"), key=lambda path: int(path.name.removeprefix("round")))
    score(MODEL, world / "test", board / "base", revise=True)
    score(last / "model", world / "test", last, revise=False)
    entry = describe(run, last, board / "base")
    common.write_jsonl(board / "board.jsonl", add(board / "board.jsonl", entry))
    print_board(board / "board.jsonl")


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument("recipe", type=Path, help="file with options of tools/loop.sh")
    parser.add_argument(
        "--seed", type=common.at_least(1), required=True, metavar="N", help="of the world"
    )
    return parser.parse_args()


def read_recipe(path: Path) -> list[str]:
    """Read a recipe's words; InputError for an option that is the same for all."""
    if not path.exists():
        raise common.InputError(f"{path}: no such file; shapes/recipes/ has some")
    words = shlex.split(path.read_text(encoding="utf-8"), comments=True)
    for word in words[: words.index("--") if "--" in words else len(words)]:
        if word in OURS:
            raise common.InputError(
                f"{path}: {word} is the same for all on the board; leave it out"
            )
    return words


def call(*words):
    """Run a command at the repository's root; InputError if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path}
    done = subprocess.run([*map(str, words)], cwd=ROOT, env=environment, check=False)
    if done.returncode:
        name = words[2] if words[1] == "-m" else words[1]
        raise common.InputError(f"{name} failed; what it said is above")


def score(model, benchmark: Path, output: Path, revise: bool):
    """Score a model's answers, and those of its revisions if that is asked for."""
    command = [sys.executable, "evaluate.py", "--benchmark", "shapes", "--model", model]
    call(*command, "--input", benchmark, "--output", output / "eval")
    if revise:
        source = output / "eval" / "predictions.jsonl"
        for stage, name in (("critique.py", "critiques.jsonl"), ("refine.py", "pairs.jsonl")):
            target = output / "eval" / name
            call(sys.executable, stage, "--model", model, "--input", source, "--output", target)
            source = target


def describe(run: Path, last: Path, scored_base: Path) -> dict:
    """Describe a run, whose last round is `last`, as a line of the board."""
    base = report.describe_scores(scored_base, report.read_scores(scored_base))
    final = report.describe_scores(last, report.read_scores(last))
    videos = set()
    seconds = 0.0
    for directory in run.glob("round*"):
        videos |= {row["video"] for row in common.read_jsonl(directory / "responses.jsonl")}
        for name in ("responses.jsonl", "critiques.jsonl", "pairs.jsonl", "model"):
            [finished] = common.read_keys(common.meta_path(directory / name), "finished")
            seconds += finished["seconds"]
    within = len(videos) <= VIDEOS and seconds <= 60 * MINUTES
    return {
        "recipe": run.name,
        "accuracy": float(final["accuracy"]),
        "interval": final["95% interval"],
        "gap closed": round(report.closed_gap([base, final]) or 0.0, 2),
        "rounds": int(last.name.removeprefix("round")),
        "videos": len(videos),
        "minutes": round(seconds / 60, 1),
        "budget": "kept" if within else "exceeded",
    }


def add(path: Path, entry: dict) -> list[dict]:
    """Add an entry to a board, in the place of an older one of the same run; the best first."""
    entries = common.read_jsonl(path) if path.exists() else []
    entries = [other for other in entries if other["recipe"] != entry["recipe"]] + [entry]
    return sorted(entries, key=lambda entry: (entry["budget"] != "kept", -entry["accuracy"]))


def print_board(path: Path):
    """Print the board."""
    entries = common.read_jsonl(path)
    widths = {
        key: max(len(key), *(len(f"{entry[key]}") for entry in entries)) for key in entries[0]
    }
    print("  ".join(f"{key:>{width}}" for key, width in widths.items()))
    for entry in entries:
        print("  ".join(f"{entry[key]!s:>{width}}" for key, width in widths.items()))


if __name__ == "__main__":
    common.run(main)
