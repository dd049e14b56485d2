"""Prints the figures of the base model's card: answers, critiques and revisions by type of question, scored by truth.

python evaluate.py --benchmark shapes --model shapes/model --input runs/shapes/dev --output runs/card
python critique.py --model shapes/model --input runs/card/predictions.jsonl --output runs/card/critiques.jsonl
python refine.py --model shapes/model --input runs/card/critiques.jsonl --output runs/card/pairs.jsonl
python -m shapes.card runs/card
"""

import argparse
from pathlib import Path

import common
from shapes import pretrain
from tools import report


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directory", type=Path, help="of evaluate.py, with critiques.jsonl and pairs.jsonl in it"
    )
    args = parser.parse_args()
    critiques, revisions = (
        common.read_jsonl(args.directory / name) for name in ("critiques.jsonl", "pairs.jsonl")
    )
    groups = {
        task: lambda row, task=task: row["task"] == task
        for task in sorted({row["task"] for row in critiques})
    }
    groups |= {
        "biased questions": lambda row: pretrain.is_biased(row | {"type": row["task"]}),
        "other questions": lambda row: not pretrain.is_biased(row | {"type": row["task"]}),
        "all": lambda row: True,
    }
    print(
        "| questions | n | answers right | critic's precision | critic's recall | right after revision |\n|---|---|---|---|---|---|"
    )
    for name, member in groups.items():
        judged, revised = (
            [row for row in critiques if member(row)],
            [row for row in revisions if member(row)],
        )
        precision, recall = report.score_critic(judged)
        right = sum(row["correct"] for row in judged) / len(judged)
        print(
            f"| {name} | {len(judged)} | {right:.3f} | {precision:.3f} | {recall:.3f} | {report.score_revisions(revised):.3f} |"
        )


if __name__ == "__main__":
    common.run(main)
