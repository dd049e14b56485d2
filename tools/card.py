r"""Print the figures of the base model's card, by type of question.

    python evaluate.py --benchmark shapes --model shapes/model \
        --input runs/shapes/dev --output runs/card
    python critique.py --model shapes/model \
        --input runs/card/predictions.jsonl --output runs/card/critiques.jsonl
    python refine.py --model shapes/model \
        --input runs/card/critiques.jsonl --output runs/card/pairs.jsonl
    python -m tools.card runs/card

Answers, critiques and revisions are scored by the truth of the tiny world.
"""

import argparse
from pathlib import Path

import common
from shapes import gap
from tools import report

COLUMNS = (
    "questions",
    "n",
    "answers right",
    "critic's precision",
    "critic's recall",
    "right after revision",
)


def print_table(critiques: list[dict], revisions: list[dict]):
    """Print a line for each group of questions.

    Args:
        critiques: rows of critiques.jsonl
        revisions: rows of pairs.jsonl, about the same questions
    """
    print(f"| {' | '.join(COLUMNS)} |")
    print("|" + "---|" * len(COLUMNS))
    revisions_of = group(revisions)
    for name, rows in group(critiques).items():
        accuracy = sum(row["correct"] for row in rows) / len(rows)
        precision, recall = report.score_critic(rows)
        revised = report.score_revisions(revisions_of[name])
        print(
            f"| {name} | {len(rows)} | {accuracy:.3f} | {precision:.3f} | {recall:.3f} "
            f"| {revised:.3f} |"
        )


def group(rows: list[dict]) -> dict[str, list[dict]]:
    """Group rows by type, by whether the planted bias concerns them, and take them all."""
    groups = {}
    for task in sorted({row["task"] for row in rows}):
        groups[task] = [row for row in rows if row["task"] == task]
    groups["biased questions"] = [row for row in rows if is_biased(row)]
    groups["other questions"] = [row for row in rows if not is_biased(row)]
    groups["all"] = rows
    return groups


def is_biased(row: dict) -> bool:
    """Tell whether the question of a row triggers the planted language prior."""
    return gap.is_biased(row | {"type": row["task"]})


def main():
    """Print the table of the run that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument(
        "directory",
        type=Path,
        help="output of evaluate.py, with critiques.jsonl and pairs.jsonl in it",
    )
    args = parser.parse_args()
    critiques = common.read_jsonl(args.directory / "critiques.jsonl")
    revisions = common.read_jsonl(args.directory / "pairs.jsonl")
    print_table(critiques, revisions)


if __name__ == "__main__":
    common.run(main)
