"""What is still wrong after the loop? Answers to the tiny world's benchmark, beside the base's.

    python -m tools.misread runs/loop/base/eval/pairs.jsonl runs/loop/round4/eval/predictions.jsonl

Two tables. The first looks at lists of objects: does an answer (or its revision,
where a row has one) leave a shape out, add one, or get the kind of a shape
wrong, such as a circle for a square of the same color?

The second takes the wrong answers of all files but the first, and counts them by
whether the first file, of the base with its revisions, has the same questions
right: at first, after the revision, both times, or never.
"""

import argparse
import re
from collections import Counter
from pathlib import Path

import common
import evaluate
from shapes import world
from tools import report

SHAPE = re.compile(rf"({'|'.join(world.COLORS)}) ({'|'.join(world.KINDS)})")

BY_BASE = {  # was the base right at first, is its revision right
    (True, True): "the base has it right",
    (True, False): "its revision spoils it",
    (False, True): "right after its revision alone",
    (False, False): "wrong both times",
}


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
    lists = [row for row in rows if row["task"] == "objects"]
    mistakes = Counter()
    n_wrong = 0
    for row in lists:
        found = find_mistakes(row["options"][row["answer"]], row.get("revised", row["initial"]))
        mistakes.update(found)
        n_wrong += bool(found)
    return {"lists of objects": len(lists), "wrong lists": n_wrong} | dict(sorted(mistakes.items()))


def is_right(row: dict, said: str) -> bool:
    """Tell whether what is said answers a benchmark's question."""
    return evaluate.parse_reply(row, said) == row["answer"]


def count_lost(rows: list[dict], base_rows: list[dict]) -> dict[str, int]:
    """Count the wrong answers, by what the base said to the same questions.

    Args:
        rows: of which the answer counts, or the revision where there is one
        base_rows: with `initial` and, where the base's critic found an error, `revised`
    """
    of_base = {row["id"]: row for row in base_rows}
    counts = {"wrong answers": 0} | dict.fromkeys(BY_BASE.values(), 0)
    for row in rows:
        if row["id"] not in of_base or is_right(row, row.get("revised", row["initial"])):
            continue
        counts["wrong answers"] += 1
        base = of_base[row["id"]]
        at_first = is_right(base, base["initial"])
        revised = is_right(base, base.get("revised", base["initial"]))
        counts[BY_BASE[at_first, revised]] += 1
    return counts


def main():
    """Print both tables, with a column for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument(
        "answers", nargs="+", type=Path, help="predictions.jsonl or pairs.jsonl of a benchmark"
    )
    files = parser.parse_args().answers
    names = ["/".join(file.parts[-3:]) for file in files]
    of_files = []
    for file in files:
        rows = common.read_jsonl(file, ("id", "task", "options", "answer"))
        of_files.append([row for row in rows if "initial" in row])  # not of an unreadable video
    report.print_table(names, [count_mistakes(rows) for rows in of_files])
    if len(files) > 1:
        print()
        first, *others = of_files
        report.print_table(names[1:], [count_lost(rows, first) for rows in others])


if __name__ == "__main__":
    common.run(main)
