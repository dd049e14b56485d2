"""What tools.report says of pairs that were judged by hand, on the page that tools.page writes.

On videos of one's own nobody knows how many pairs are right. judged.jsonl, beside pairs.jsonl, has
{"id": ..., "better": "chosen", "rejected" or null (cannot tell)} for some of them.
"""

from collections import defaultdict
from pathlib import Path

import common
import evaluate

VERDICTS = ("chosen", "rejected", None)


def list_judged(directories: list[Path]) -> list[str]:
    """Say of each round whose pairs were judged how many are right, and by error type."""
    lines = []
    for directory in directories:
        path = directory / "judged.jsonl"
        if path.exists():
            lines += describe(directory.name, read_judged(path, directory / "pairs.jsonl"))
    return lines


def read_judged(path: Path, pairs_path: Path) -> list[dict]:
    """Read judgements -> the pairs that were judged, each with `better`.

    Raises:
        InputError: names the line that is no judgement, or is about no pair of this round
    """
    pairs = {row["id"]: row for row in common.read_jsonl(pairs_path) if "chosen" in row}
    judged = []
    for number, row in enumerate(common.read_jsonl(path, ("id",)), 1):
        if row.get("better", "") not in VERDICTS:
            raise common.InputError(
                f'{path}, line {number}: `better` is "chosen", "rejected" or null; tools.page '
                "writes it"
            )
        if row["id"] not in pairs:
            raise common.InputError(
                f"{path}, line {number}: {row['id']!r} is no pair in {pairs_path}; is it another "
                "round's?"
            )
        judged.append(pairs[row["id"]] | {"better": row["better"]})
    return judged


def describe(name: str, judged: list[dict]) -> list[str]:
    """Describe the judged pairs of a round, in a line for all and one for each error type."""
    lines = [f"{name}, judged by hand: {count(judged)}"]
    by_type = defaultdict(list)
    for row in judged:
        for error in row.get("error_types") or ("no error type",):
            by_type[error].append(row)
    for error, rows in sorted(by_type.items()):
        lines.append(f"  {error}: {count(rows)}")
    return lines


def count(judged: list[dict]) -> str:
    """Count judgements, and give the share in which chosen is better, of those that can tell.

    The 95% interval is bootstrapped over videos.
    """
    verdicts = [row["better"] for row in judged]
    counts = (
        f"{len(judged)} pairs, chosen is better in {verdicts.count('chosen')}, rejected in "
        f"{verdicts.count('rejected')}, cannot tell {verdicts.count(None)}"
    )
    told = [row for row in judged if row["better"]]
    if not told:
        return counts
    low, high = evaluate.interval(told, share)
    return f"{counts}; share {share(told):.2f} (95% interval {low:.2f}-{high:.2f})"


def share(rows: list[dict]) -> float:
    """Give the share of rows in which chosen is better."""
    return sum(row["better"] == "chosen" for row in rows) / len(rows)
