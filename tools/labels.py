"""Is it right, what a round learns? A round's pairs in the tiny world, by truth.

    python -m tools.labels runs/loop/round1/pairs.jsonl runs/loop/round2/pairs.jsonl

For each file of refine.py: how many answers were right at first, and how many
of those that the critique and the revision end with. They are the revision of a
pair, and the answer itself where no error was found in it or the revision
repeats it: all that dpo.py --with-unchanged learns. Then the latter by type of
question, and how many of the pairs are inverted: they prefer a wrong answer to a
right one.

A question that the world would not ask itself has no known answer, and is not
judged. Videos of all worlds have the same names: with another --seed than that
of their world the shares are wrong. No stage sees any of this.
"""

import argparse
from collections import Counter
from pathlib import Path

import common
import dpo
from tools import report
from tools.study_tables import TYPES, is_inverted, is_right, true_items


def judge(rows: list[dict], seed: int) -> dict[str, int | str]:
    """Count the answers of pairs.jsonl that are right, at first and in the end.

    Args:
        rows: of refine.py, about videos of the rounds
        seed: of the world

    Returns:
        {name: number of rows, share of right ones among those that can be judged, or how many of
        the judged pairs are inverted}
    """
    n_judged = Counter()
    n_right = Counter()
    n_right_at_first = 0
    n_pairs = 0
    n_pairs_judged = Counter()
    n_inverted = Counter()
    learned = [row for row in map(dpo.take_unchanged, rows) if "dropped" not in row]
    for row in learned:
        is_pair = row["chosen"] != row["rejected"]
        n_pairs += is_pair
        item = true_items(row["video"], seed).get(row["question"])
        if item is None:
            continue
        n_judged[item["type"]] += 1
        n_right[item["type"]] += is_right(item, row["chosen"])
        n_right_at_first += is_right(item, row["rejected"])
        n_pairs_judged[item["type"]] += is_pair
        n_inverted[item["type"]] += is_inverted(row, seed)

    total = n_judged.total()
    figures = {"answers": len(learned), "pairs among them": n_pairs, "can be judged": total}
    figures["right at first"] = f"{report.ratio(n_right_at_first, total):.3f}"
    figures["right in the end"] = f"{report.ratio(n_right.total(), total):.3f}"
    for type in TYPES:
        figures[f"  {type}"] = f"{report.ratio(n_right[type], n_judged[type]):.3f}"
    figures["pairs inverted"] = f"{n_inverted.total()} of {n_pairs_judged.total()}"
    for type in TYPES:
        figures[f"  inverted, {type}"] = f"{n_inverted[type]} of {n_pairs_judged[type]}"
    return figures


def main():
    """Print a column for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument("pairs", nargs="+", type=Path, help="pairs.jsonl, of videos of the rounds")
    parser.add_argument(
        "--seed", type=common.seed_number, default=0, help="of the world that the videos are of"
    )
    args = parser.parse_args()
    columns = []
    for path in args.pairs:
        rows = common.read_jsonl(path, dpo.REQUIRED)
        if any("benchmark" in row for row in rows):
            raise common.InputError(f"{path} has answers to a benchmark: tools.report scores these")
        columns.append(judge(rows, args.seed))
    report.print_table(["/".join(path.parts[-3:]) for path in args.pairs], columns)


if __name__ == "__main__":
    common.run(main)
