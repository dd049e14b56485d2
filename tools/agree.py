r"""Drop the rows on which several views of a video disagree: self-consistency, by views.

    python -m tools.shift --input runs/mine/pairs.jsonl --output runs/right3 --right 3
    python -m tools.answer --model DIR --input runs/mine/pairs.jsonl \
        --videos runs/right3 --output runs/mine/right3/responses.jsonl
        (then critique.py and refine.py, down to runs/mine/right3/pairs.jsonl)
    python -m tools.agree runs/mine/pairs.jsonl runs/mine/right3/pairs.jsonl
    python dpo.py --model DIR --input runs/mine/agreed.jsonl runs/mine/right3/agreed.jsonl \
        --with-unchanged --nll-weight 1 --tune all --output runs/mine/model

reads    outputs of refine.py about the same questions, each with its own view of
         the videos
writes   agreed.jsonl beside each of them: its rows. Where another view ends with
         another answer, or with none, a row is dropped as views_disagree

A view ends with its revision, or with its answer where that was left as it was.
What a model says of one view alone is more often wrong than what it says of all
("self-consistency", arXiv 2203.11171, has the idea, for several samples). Case
and full stops aside, answers must be the same word for word, so this is for
short ones. No view sees the truth.
"""

import argparse
from pathlib import Path

import common
import dpo
import outputs
import refine

NAME = "agreed.jsonl"
REQUIRED = ("id", "video", "question", "chosen")


def agree(views: list[list[dict]]) -> list[list[dict]]:
    """Drop the rows that end otherwise in another view.

    Args:
        views: rows of refine.py, about the same questions

    Returns:
        the views, all their rows in their order
    """
    ends = []  # of each view
    for rows in views:
        ends.append({row["id"]: find_end(row) for row in rows})
    agreed = []
    for rows in views:
        agreed.append([drop_if_alone(row, ends) for row in rows])
    return agreed


def find_end(row: dict) -> list[str] | None:
    """Find the answer that a row ends with -> its words; None if it has none."""
    row = dpo.take_unchanged(row)
    return None if "dropped" in row else refine.words(row["chosen"])


def drop_if_alone(row: dict, ends: list[dict]) -> dict:
    """Drop a row if a view ends otherwise; one that has no answer itself stays as it is.

    ends: {id: words, or None} of each view
    """
    end = find_end(row)
    if end is None or all(view.get(row["id"]) == end for view in ends):
        return row
    kept = {key: value for key, value in row.items() if key not in dpo.SIDES}
    return kept | {"dropped": "views_disagree"}


def check_questions(paths: list[Path], views: list[list[dict]]):
    """Raise InputError unless a row has the same question in all views."""
    first = {row["id"]: row.get("question") for row in views[0]}
    for path, rows in zip(paths, views):
        for row in rows:
            if row.get("question") != first.get(row["id"], row.get("question")):
                raise common.InputError(
                    f"{path}, {row['id']}: its question is another one than in {paths[0]}; views "
                    "are of the same questions (python -m tools.answer asks them again)"
                )


def write_agreed(paths: list[Path]):
    """Write agreed.jsonl beside each view.

    Args:
        paths: outputs of refine.py, each in a directory of its own

    Raises:
        InputError: for one that is unfinished, or about other questions
    """
    metas, views = [], []
    for path in paths:
        _, groups = common.read_input(path, path.parent, REQUIRED)  # no video is looked at here
        views.append([row for _, group in groups for row in group])
        metas.append(common.read_json(common.meta_path(path)))
    check_questions(paths, views)
    for path, meta, rows in zip(paths, metas, agree(views)):
        target = path.with_name(NAME)
        finished = meta["finished"] | outputs.account_for(rows, "pairs")
        common.write_json(common.meta_path(target), meta | {"finished": finished})
        common.write_jsonl(target, rows)  # last: what is there is whole
        n_left = sum(find_end(row) is not None for row in rows)
        print(f"{target}: {finished['account']}; with those left unchanged {n_left} rows agree")


def main():
    """Write agreed.jsonl beside each view."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument("views", type=Path, nargs="+", metavar="FILE", help="pairs.jsonl of a view")
    paths = parser.parse_args().views
    targets = {path.with_name(NAME).resolve() for path in paths}
    if len(targets) < max(2, len(paths)):
        parser.error("give at least two views, each in a directory of its own")
    for target in targets:
        if target.exists():
            raise common.InputError(f"{target} exists already; remove it first")
    write_agreed(paths)


if __name__ == "__main__":
    common.run(main)
