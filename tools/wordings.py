"""Measure how well a tiny model understands prompts that it was not made with.

    python -m tools.wordings tests/wordings.json runs/wordings     # under ten minutes

The file is a list of files of prompts (docs/prompts.md), each with every prompt
in words of its own. With each of them the benchmark `dev` is answered,
criticised and revised, and questions about 50 videos of round1 are asked; the
first line is for the model's own prompts. Started again, it resumes.

Below the table stands what all of them see together: the share of dev's
questions that are right after revision in every wording, in any, and in the
answer that most of them end with. Errors that differ from wording to wording
would be mended by such a vote; those that do not are not a matter of words.

"bad questions" are those that generate.py drops as such: no question, or cut
off. "duplicates" were asked about the same video before, as two aspects were
taken for one.
"""

import argparse
import contextlib
import io
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import common
import critique
import evaluate
import generate
import refine
from tools import report
from tools.study import VIDEOS, run_stage

VIDEOS_TO_ASK_ABOUT = 50
COLUMNS = (
    "prompts",
    "answers right",
    "after revision",
    "critic's precision",
    "critic's recall",
    "bad questions",
    "duplicates",
)


def run_stages(model: Path, out: Path, options: list):
    """Score answers, critiques and revisions on dev, and ask questions about some videos."""
    run_stage(evaluate, model, VIDEOS / "dev", out, "--benchmark", "shapes", *options)
    run_stage(critique, model, out / "predictions.jsonl", out / "critiques.jsonl", *options)
    run_stage(refine, model, out / "critiques.jsonl", out / "pairs.jsonl", *options)
    asked = out / "responses.jsonl"
    run_stage(generate, model, VIDEOS / "round1", asked, "--limit", VIDEOS_TO_ASK_ABOUT, *options)


def score(out: Path) -> list[float]:
    """Score what run_stages wrote -> the numbers of COLUMNS."""
    critiques = common.read_jsonl(out / "critiques.jsonl")
    revisions = common.read_jsonl(out / "pairs.jsonl")
    asked = common.read_jsonl(out / "responses.jsonl")
    right = sum(row["correct"] for row in critiques) / len(critiques)
    precision, recall = report.score_critic(critiques)
    reasons = Counter(row.get("dropped") for row in asked)
    bad = reasons["bad_question"] / len(asked)
    duplicates = reasons["duplicate_question"] / len(asked)
    return [right, report.score_revisions(revisions), precision, recall, bad, duplicates]


class Together(NamedTuple):
    """Shares of the questions that are right after revision, over several wordings."""

    in_all: float
    in_any: float
    by_vote: float  # in the answer that most wordings end with; of several, the first one's


def score_together(revisions: list[list[dict]]) -> Together:
    """Score the answers after revision that several wordings lead to.

    revisions: of each wording, the rows of pairs.jsonl, about the same questions in the same order
    """
    n_all = n_any = n_voted = 0
    for rows in zip(*revisions):
        finals = [row.get("revised", row["initial"]) for row in rows]
        truth = rows[0]["answer"]
        right = [evaluate.parse_reply(row, final) == truth for row, final in zip(rows, finals)]
        [(voted, _)] = Counter(finals).most_common(1)
        n_all += all(right)
        n_any += any(right)
        n_voted += right[finals.index(voted)]
    n = len(revisions[0])
    return Together(n_all / n, n_any / n, n_voted / n)


def print_row(name: str, numbers: list[float]):
    """Print a row of the table."""
    print(f"| {name} | {' | '.join(f'{number:.3f}' for number in numbers)} |", flush=True)


def main():
    """Print a row for each file of prompts, and their mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("wordings", type=Path, help="a list of files of prompts, in JSON")
    add("output", type=Path, help="directory to write to")
    add("--model", type=Path, default=Path("shapes/model"), help="directory of the model")
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    runs = {"its own": []}
    for number, wording in enumerate(common.read_json(args.wordings), start=1):
        file = args.output / f"prompts{number}.json"
        common.write_json(file, wording)
        runs[f"{number}"] = ["--prompts", file]

    scores = {}
    revisions = []
    for name, options in common.progress(runs.items(), unit="wording"):
        out = args.output / name.replace(" ", "_")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run_stages(args.model, out, options)
        scores[name] = score(out)
        revisions.append(common.read_jsonl(out / "pairs.jsonl"))

    print(f"| {' | '.join(COLUMNS)} |")
    print("|" + "---|" * len(COLUMNS))
    for name, numbers in scores.items():
        print_row(name, numbers)
    others = [numbers for name, numbers in scores.items() if name != "its own"]
    print_row("mean of the others", [sum(column) / len(others) for column in zip(*others)])
    together = score_together(revisions)
    print(
        f"\nafter revision, over {len(revisions)} wordings: right in all {together.in_all:.3f}, "
        f"in any {together.in_any:.3f}, by vote {together.by_vote:.3f}"
    )


if __name__ == "__main__":
    main()
