"""Lesson 5: train the same pairs six times, five of them with a bug of a line or two.

    python -m course.bugs                     # runs/bugs: some four minutes on two cores
    python -m course.bugs --show              # the table again
    python -m course.bugs --samples D         # what model D answers, beside the good one

The bugs are patches (course/patches/) to copies of the code, so that your own
files stay as they are. The models are scored on `dev` with the good code.

reads    pairs.jsonl of a round 1, as `make loop` leaves it
writes   runs/bugs/good, A, B, C, D, E: model/metrics.jsonl and eval/ of each
"""

import argparse
import itertools
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import common

ROOT = Path(common.__file__).parent
PATCHES = ROOT / "course" / "patches"
ROOMS = ("vlm", "media", "outputs", "prompts", "benchmarks")  # what dpo.py imports
# Whoever reads on sees the solution
LETTERS = {
    "good": None,
    "A": "bfloat16_weights",
    "B": "sorted_sides",
    "C": "prompt_counted",
    "D": "no_video",
    "E": "moving_reference",
}
TRAINING = ("--beta", "3", "--lr", "1e-4", "--epochs", "2", "--seed", "1")
# Columns of the table, and how wide they are
WIDTH = {
    "loss": 7,
    "rewards/accuracies": 12,
    "rewards/margins": 9,
    "rewards": 16,
    "logps": 20,
    "lengths": 16,
    "grad_norm": 11,
}


def main():
    """Train and score what is missing, then print the table."""
    args = parse_args()
    if args.samples:
        print_samples(args.output, args.samples)
        return
    if not args.show:
        for letter, bug in LETTERS.items():
            train(args.pairs, args.videos, bug, args.output / letter)
            score(args.dev, args.output / letter)
    print_table(args.output)


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/bugs"), metavar="DIR", help="where to write")
    add(
        "--pairs",
        type=Path,
        default=Path("runs/loop/round1/pairs.jsonl"),
        metavar="FILE",
        help="what is trained on",
    )
    add(
        "--videos",
        type=Path,
        default=Path("runs/shapes/round1"),
        metavar="DIR",
        help="where their videos are",
    )
    add(
        "--dev",
        type=Path,
        default=Path("runs/shapes/dev"),
        metavar="DIR",
        help="the benchmark that models are scored on",
    )
    add("--show", action="store_true", help="only print the table of runs that are there")
    add("--samples", choices=LETTERS, help="print answers of this model beside the good one's")
    args = parser.parse_args()
    if not (args.show or args.samples or args.pairs.exists()):
        raise common.InputError(f"{args.pairs} is missing: run `make loop` first (lesson 0)")
    return args


def train(pairs: Path, videos: Path, bug: str | None, output: Path):
    """Run dpo.py, with a bug or without, in a copy of the code; it resumes, or is finished."""
    with tempfile.TemporaryDirectory() as directory:
        code = copy_code(Path(directory), bug)
        command = ["dpo.py", "--model", ROOT / "shapes" / "model", "--input", pairs.resolve()]
        command += ["--videos", videos.resolve(), "--output", output.resolve() / "model"]
        run(code, [*command, *TRAINING])


def copy_code(directory: Path, bug: str | None) -> Path:
    """Copy the Python files to a directory and apply a bug's patch -> the copy's root."""
    code = directory / "code"
    for file in itertools.chain(ROOT.glob("*.py"), *(ROOT.glob(f"{name}/*.py") for name in ROOMS)):
        target = code / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    if bug:
        patch = PATCHES / f"{bug}.patch"
        done = subprocess.run(
            ["git", "apply", patch], cwd=code, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise common.InputError(f"{patch} does not fit the code: {done.stderr.strip()}")
    return code


def score(dev: Path, output: Path):
    """Score a model on dev, with the good code."""
    command = ["evaluate.py", "--benchmark", "shapes", "--model", output / "model", "--input", dev]
    run(ROOT, [*command, "--output", output / "eval", "--videos-per-batch", "4"])


def run(directory: Path, words: list):
    """Run a stage in a process of its own, in a directory; InputError if it fails."""
    command = [sys.executable, *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(directory)}
    done = subprocess.run(command, cwd=directory, env=environment, check=False)
    if done.returncode:
        raise common.InputError(f"{words[0]} failed; what it said is above")


# ------------------------------------------------------------------------------
# What is seen


def print_table(output: Path):
    """Print, for each run, its score on dev and its metrics at some steps."""
    for letter in LETTERS:
        steps = common.read_jsonl(find(output / letter / "model" / "metrics.jsonl"))
        results = find(output / letter / "eval" / "results.json")
        [accuracy] = common.read_keys(results, "accuracy")
        last = len(steps) - 1
        print(f"\n{letter}: dev {accuracy:.3f}")
        names = (f"{name.removeprefix('rewards/'):>{width}}" for name, width in WIDTH.items())
        print(" " * 9 + "".join(names))
        for number in sorted({0, min(1, last), min(4, last), last // 2, last}):
            row = steps[number]
            cells = (f"{show(row, name):>{width}}" for name, width in WIDTH.items())
            print(f"step {number + 1:<4}" + "".join(cells))
    print("\nrewards, logps, lengths: of chosen / of rejected")


def show(step: dict, name: str) -> str:
    """Show a metric, or both sides of one."""
    if name in step:
        return f"{step[name]:.3f}"
    return f"{step[f'{name}/chosen']:.2f} / {step[f'{name}/rejected']:.2f}"


def print_samples(output: Path, letter: str, n: int = 12):
    """Print answers of a model to questions of dev, beside those of the good one and the truth.

    n: how many at most, of those where the two differ and the good one is right
    """
    rows = common.read_jsonl(find(output / letter / "eval" / "predictions.jsonl"))
    good = common.read_jsonl(find(output / "good" / "eval" / "predictions.jsonl"))
    differing = [pair for pair in zip(rows, good) if pair[0]["initial"] != pair[1]["initial"]]
    shown = [pair for pair in differing if pair[1]["correct"]]
    for row, other in shown[:: math.ceil(len(shown) / n) or 1]:
        print(f"\n{row['question']}\n    truth  {row['options'][0]}")
        print(f"    good   {other['initial']}\n    {letter:<7}{row['initial']}")


def find(path: Path) -> Path:
    """Give a path back if the file is there."""
    if not path.exists():
        raise common.InputError(f"{path} is missing: run python -m course.bugs first")
    return path


if __name__ == "__main__":
    common.run(main)
