"""A control of lesson 6: the same pairs, but which side is chosen is drawn by lot.

python -m course.shuffle runs/loop/round1/pairs.jsonl runs/lesson6/shuffled.jsonl
"""

import argparse
import shutil
from pathlib import Path

import common
from tools.study_variants import shuffle_preferences


def main():
    """Write the pairs with about half of them swapped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument("pairs", type=Path, help="pairs.jsonl of a round")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the lot")
    args = parser.parse_args()
    rows = shuffle_preferences(common.read_jsonl(args.pairs, ("id", "video")), args.seed)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(common.meta_path(args.pairs), common.meta_path(args.output))  # where its videos are
    common.write_jsonl(args.output, rows)


if __name__ == "__main__":
    common.run(main)
