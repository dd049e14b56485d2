"""Which shapes does a model misread? Its lists of objects, beside what is in the videos.

    python -m tools.misread runs/loop/base/eval/pairs.jsonl runs/loop/round4/eval/predictions.jsonl

Reads answers to a benchmark of the tiny world, or their revisions where rows
have one, and counts what is wrong in those that list objects. The kind of a
shape is misread where a list has the right color with another kind. What is
misread after training as before, and when the base looks twice, is no habit: it
is what the model cannot see.
"""

import argparse
import re
from collections import Counter
from pathlib import Path

import common
from shapes import world
from tools import report

SHAPE = re.compile(rf"({'|'.join(world.COLORS)}) ({'|'.join(world.KINDS)})")


def find_mistakes(truth: str, said: str) -> list[str]:
    """Find what a list of objects gets wrong.

    >>> find_mistakes("a red square and a blue circle.", "a red circle and a white circle.")
    ['left out', 'square read as circle', 'added']
    """
    true, named = set(SHAPE.findall(truth)), set(SHAPE.findall(said))
    added = sorted(named - true)
    mistakes = []
    for color, kind in sorted(true - named):
        misread = next((shape for shape in added if shape[0] == color), None)
        if misread:
            added.remove(misread)
            mistakes.append(f"{kind} read as {misread[1]}")
        else:
            mistakes.append("left out")
    return mistakes + ["added"] * len(added)


def count_mistakes(rows: list[dict]) -> dict[str, int]:
    """Count, over the rows of a benchmark that ask for a list of objects, what is wrong in it."""
    lists = [row for row in rows if row.get("task") == "objects"]
    mistakes = Counter()
    n_wrong = 0
    for row in lists:
        found = find_mistakes(row["options"][row["answer"]], row.get("revised", row["initial"]))
        mistakes.update(found)
        n_wrong += bool(found)
    return {"lists of objects": len(lists), "wrong": n_wrong} | dict(sorted(mistakes.items()))


def main():
    """Print a column of counts for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument(
        "answers", nargs="+", type=Path, help="predictions.jsonl or pairs.jsonl of a benchmark"
    )
    files = parser.parse_args().answers
    columns = []
    for file in files:
        rows = common.read_jsonl(file, ("task", "options", "answer", "initial"))
        columns.append(count_mistakes(rows))
    report.print_table(["/".join(file.parts[-3:]) for file in files], columns)


if __name__ == "__main__":
    common.run(main)
