"""The errors that a critic named, counted by type: as the paper's Table 2 does.

The files are critiques.jsonl of one critic, which read the answers of several
rounds to the same questions. What a critic does not see it does not count.
"""

from collections import Counter
from pathlib import Path

import common
import prompts

# VideoSAVi (arXiv 2412.00624), Table 2: after each of four iterations
PUBLISHED = {
    "factual_inaccuracy": (45, 29, 20, 12),
    "temporal_ordering": (38, 22, 15, 8),
    "spatial_relationship": (42, 31, 18, 9),
    "object_hallucination": (29, 18, 11, 6),
    "causal_reasoning": (25, 14, 6, 4),
    "detail_omission": (21, 16, 4, 2),
    "errors": (200, 130, 74, 41),
}
ITERATIONS = ("Iter1", "Iter2", "Iter3", "Iter4")
REQUIRED = ("id", "critique", "error_types")


def describe_files(paths: list[Path]) -> dict[str, dict]:
    """Describe critiques files -> {short name: column of the table}, the published ones last."""
    critiques = [read_critiques(path) for path in paths]
    names = []
    for path in paths:
        names += [name for name in read_error_types(path) if name not in names]
    for rows in critiques:
        for row in rows:
            names += [name for name in row["error_types"] or () if name not in names]

    columns = {}
    for name, rows in zip(shorten(paths), critiques):
        columns[name] = count_errors(rows, names)
    for number, iteration in enumerate(ITERATIONS):
        column = {name: PUBLISHED[name][number] for name in (*names, "errors") if name in PUBLISHED}
        columns[f"paper, {iteration}"] = column | {"answers": "not known"}
    return columns


def read_critiques(path: Path) -> list[dict]:
    """Read the rows of a critiques file that have a critique; InputError if it is unfinished."""
    meta = common.meta_path(path)
    if meta.exists():
        stage, finished = common.read_keys(meta, "stage", "finished")
        if not finished:
            raise common.InputError(
                f"{path} is unfinished; the command that began it resumes it: {stage}"
            )
    rows = common.read_jsonl(path, REQUIRED)
    return [row for row in rows if "error_types" in row]


def read_error_types(path: Path) -> list[str]:
    """Read which error types a file's critic was asked for; the default's if it does not say."""
    return [*prompts.recorded(path).get("error_types", prompts.ERROR_TYPES)]


def count_errors(rows: list[dict], names: list[str]) -> dict:
    """Count the errors of each type; an answer may have several, of different types.

    Args:
        rows: with `error_types`: a list, or None where the verdict is unreadable
        names: of the error types, in the order of the table's rows
    """
    counts = Counter(name for row in rows for name in row["error_types"] or ())
    column = {name: counts[name] for name in names}
    column["errors"] = counts.total()
    column["answers"] = len(rows)
    column["  with an error"] = sum(bool(row["error_types"]) for row in rows)
    column["  verdict unreadable"] = sum(row["error_types"] is None for row in rows)
    return column


def shorten(paths: list[Path]) -> list[str]:
    """Shorten paths to the parts by which they differ, without .jsonl.

    runs/a/round1/fixed.jsonl, runs/a/round2/fixed.jsonl -> round1, round2
    """
    for path in paths:
        if paths.count(path) > 1:
            raise common.InputError(f"{path}: it is named twice")
    parts = [path.with_suffix("").parts for path in paths]
    if len(set(parts)) < len(parts):
        parts = [path.parts for path in paths]
    if len(parts) == 1:
        return [parts[0][-1]]
    first = 0
    shortest = min(map(len, parts))
    while first < shortest - 1 and len({part[first] for part in parts}) == 1:
        first += 1
    parts = [part[first:] for part in parts]
    while min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    return ["/".join(part) for part in parts]


# ------------------------------------------------------------------------------
# Whether the counts can be compared


def list_doubts(paths: list[Path]) -> list[str]:
    """Say in a line each why the counts of these files cannot be compared; [] if they can."""
    doubts = []
    asked = []
    for path in paths:
        asked.append({(row["id"], row.get("question")) for row in read_critiques(path)})
    if any(questions != asked[0] for questions in asked):
        n_common = len(set.intersection(*asked))
        doubts.append(
            f"not the same questions: {n_common} are in all of the files; compare counts only "
            "over the same ones"
        )
    critics = []
    for path in paths:
        meta = common.meta_path(path)
        content = common.read_json(meta).get("content", {}) if meta.exists() else {}
        critics.append((content.get("model"), content.get("prompts")))
        if not critics[-1][0]:
            doubts.append(f"{path}: no meta.json says which critic made it")
    known = {critic for critic in critics if critic[0]}
    if len({model for model, _ in known}) > 1:
        doubts.append("not one critic: the files were made by different models")
    elif len(known) > 1:
        doubts.append("not one critic: the files were made with different prompts")
    return doubts
