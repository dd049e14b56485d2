"""The record of tools.study: a row of figures for each round, in JSONL.

With it a study can be made in parts, on several days and machines, and the
tables of docs/study.md can be printed without it: docs/study.jsonl is one.
"""

from pathlib import Path
from typing import NamedTuple

import common
from tools.study_variants import ONE_ROUND, VARIANTS

NAMES = ["base", *VARIANTS, *ONE_ROUND]  # of what the rows are about, in their order


class Run(NamedTuple):
    """The rounds of one variant, from one base and with one loop seed."""

    base: int  # seed of the base
    variant: str
    seed: int  # of the loop


class Key(NamedTuple):
    """What a row of the record is about."""

    base: int
    variant: str  # or what has one round alone; "base" for the base itself
    seed: int  # of the loop; 0 for the base
    round: int  # 0 for the base


def read_record(path: Path) -> dict[Key, dict]:
    """Read a record -> {what: figures}; empty where there is none yet.

    Raises:
        InputError: for a variant that there is not (any more), or a run whose base is missing
    """
    record = {}
    if path.exists():
        for row in common.read_jsonl(path, Key._fields):
            record[Key(*(row.pop(name) for name in Key._fields))] = row
    for key in record:
        if key.variant not in NAMES:
            raise common.InputError(f"{path}: {key.variant!r} is none of {', '.join(NAMES)}")
        if Key(key.base, "base", 0, 0) not in record:
            raise common.InputError(f"{path}: the row of base {key.base} itself is missing")
    return record


def write_record(path: Path, record: dict[Key, dict]):
    """Write a record: bases first, then as the variants are listed."""
    keys = sorted(record, key=lambda key: key._replace(variant=NAMES.index(key.variant)))
    rows = []
    for key in keys:
        figures = {name: round(value, 4) for name, value in record[key].items()}
        rows.append(key._asdict() | figures)
    common.write_jsonl(path, rows)


def list_figures(record: dict[Key, dict]) -> dict[Run, list[dict]]:
    """List the figures of all runs -> {run: [figures of its base, of round 1, of round 2, ...]}."""
    figures = {}
    for key in record:
        if key.variant in VARIANTS:
            run = Run(*key[:3])
            if run not in figures:
                figures[run] = [record[Key(run.base, "base", 0, 0)]]
            figures[run].append(record[key])
    return figures


def list_one_round(record: dict[Key, dict]) -> dict[tuple[int, str], list[dict]]:
    """List the figures of what has one round alone -> {(base, name): [figures of each seed]}."""
    figures = {}
    for key in record:
        if key.variant in ONE_ROUND:
            figures.setdefault((key.base, key.variant), []).append(record[key])
    return figures
