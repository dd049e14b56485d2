"""What a round of the loop made, as a column of tools.report's table.

It reads responses.jsonl, critiques.jsonl, pairs.jsonl and model/ of a round,
as far as they are there: without a benchmark they are all that there is to see.
"""

import statistics
from collections import Counter
from pathlib import Path

import common

# What a round of the loop writes, of which the table has the seconds
TIMED = {
    "responses": "responses.jsonl",
    "critiques": "critiques.jsonl",
    "pairs": "pairs.jsonl",
    "model": "model",
    "eval": "eval/predictions.jsonl",
}
# The stages' files of rows, in their order. A later file has all that an earlier one has
ROWS = ("responses.jsonl", "critiques.jsonl", "pairs.jsonl")
# Texts whose lengths are shown -> name of their row
TEXTS = {
    "initial": "words, answers",
    "revised": "words, revisions",
    "chosen": "words, chosen",
    "rejected": "words, rejected",
}
# Columns of metrics.jsonl that are shown, of the last step -> how many digits
METRICS = {
    "rewards/margins": ".3f",
    "rewards/accuracies": ".2f",
    "loss": ".4f",
    "logps/chosen": ".2f",
    "logps/rejected": ".2f",
}


def find_rounds(run: Path) -> list[Path]:
    """List the rounds of a run that have begun, in the order of their numbers."""
    rounds = [path for path in run.glob("round*") if has_begun(path)]
    # round10 comes after round9; what has no number comes last
    return sorted(rounds, key=lambda path: (read_number(path), path.name))


def has_begun(directory: Path) -> bool:
    """Say whether a directory has something that a stage wrote into a round."""
    outputs = (*TIMED.values(), "eval/results.json")
    return any((directory / output).exists() for output in outputs)


def read_number(directory: Path) -> float:
    """Read the number in a round's name; infinity if there is none."""
    digits = directory.name.removeprefix("round")
    return int(digits) if digits.isdecimal() else float("inf")


def describe_round(directory: Path) -> dict:
    """Describe what a round made -> {row of the table: value}; what is missing has no row."""
    files = {}
    for name in ROWS:
        if (directory / name).exists():
            files[name] = common.read_jsonl(directory / name, ("id", "video"), incomplete=True)
    column = {}
    if files:
        column |= count_questions(files)
        column |= count_critiques(files)
        column |= count_pairs(files)
        column |= measure_lengths([*files.values()][-1])
    column |= describe_training(directory / "model")
    column |= list_seconds(directory)
    return column


def count_questions(files: dict) -> dict:
    """Count videos and questions.

    files: {name, out of ROWS: its rows}, in the order of the stages
    """
    rows = next(iter(files.values()))
    column = {"videos": len({row["video"] for row in rows}), "questions": len(rows)}
    if "responses.jsonl" in files:  # in later files other rows are dropped, too
        column["  kept"] = count_kept(rows)
    return column


def count_kept(rows: list[dict]) -> int:
    """Count the rows that are not dropped."""
    return sum("dropped" not in row for row in rows)


def count_critiques(files: dict) -> dict:
    """Count the critiques: those without a verdict that can be read, and those that find an error.

    files: see count_questions
    """
    rows = files.get("critiques.jsonl") or files.get("pairs.jsonl") or []
    verdicts = [row.get("error_types") for row in rows if "critique" in row]
    if not verdicts:
        return {}
    return {
        "critiques": len(verdicts),
        "  unreadable": with_share(verdicts.count(None), len(verdicts)),
        "  an error is found": with_share(sum(map(bool, verdicts)), len(verdicts)),
    }


def with_share(n: int, whole: int) -> str:
    """Format a number with its share of a whole that is not 0: '3 (12%)'."""
    return f"{n} ({n / whole:.0%})"


def count_pairs(files: dict) -> dict:
    """Count the pairs, and the rows that were dropped so far, by reason.

    files: see count_questions
    """
    column = {}
    if "pairs.jsonl" in files:
        column["pairs"] = count_kept(files["pairs.jsonl"])
    last = [*files.values()][-1]
    drops = Counter(row["dropped"] for row in last if "dropped" in row)
    column["dropped"] = drops.total()
    for reason, n in drops.most_common():
        column[f"  {reason}"] = n
    return column


def measure_lengths(rows: list[dict]) -> dict:
    """Average the words of the texts that rows have; a text that no row has gets no row."""
    column = {}
    for key, name in TEXTS.items():
        lengths = [len(row[key].split()) for row in rows if key in row]
        if lengths:
            column[name] = f"{statistics.mean(lengths):.1f}"
    return column


def describe_training(model: Path) -> dict:
    """Describe a training by its last step: {row of the table: value}.

    Raises:
        InputError: if metrics.jsonl is damaged
    """
    path = model / "metrics.jsonl"
    if not path.exists():
        return {}
    steps = common.read_jsonl(path, incomplete=True)
    if not steps:
        return {}
    for key in ("step", *METRICS):
        value = steps[-1].get(key)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise common.InputError(
                f"{path}, line {len(steps)}: {key!r} is {value!r}, not a number; dpo.py writes it"
            )

    column = {"last step of training": f"{steps[-1].get('step', len(steps))}"}
    if is_unfinished(model):
        column["last step of training"] += " so far"
    for key, digits in METRICS.items():
        if steps[-1].get(key) is not None:
            column[f"  {key}"] = f"{steps[-1][key]:{digits}}"
    return column


def list_seconds(directory: Path) -> dict:
    """List how long each stage took, if it is finished: {row of the table: seconds}."""
    column = {}
    for name, output in TIMED.items():
        finished = read_finished(directory / output)
        if finished:
            column[f"seconds, {name}"] = finished["seconds"]
    return column


def count_rows(directory: Path) -> dict:
    """Count pairs and drops alone: {row of the table: number}."""
    path = directory / "pairs.jsonl"
    if not path.exists():
        return {}
    rows = common.read_jsonl(path, incomplete=True)
    n_pairs = count_kept(rows)
    return {"pairs": n_pairs, "dropped": len(rows) - n_pairs}


def list_accounts(directories: list[Path]) -> list[str]:
    """Say of each round what became of its rows, and what is not finished: a line each."""
    lines = []
    for directory in directories:
        for output in TIMED.values():
            path = directory / output
            name = f"{directory.name}/{output}"
            if is_unfinished(path):
                lines.append(f"{name}: unfinished; the command that began it resumes it")
            elif output == "pairs.jsonl" and (finished := read_finished(path)):
                lines.append(f"{name}: {finished['account']}")
    return lines


def is_unfinished(output: Path) -> bool:
    """Say whether an output was begun and is not finished, as far as its meta.json tells."""
    return common.meta_path(output).exists() and read_finished(output) is None


def read_finished(output: Path) -> dict | None:
    """Read what an output's meta.json says of its end; None if it is missing or unfinished."""
    path = common.meta_path(output)
    if not path.exists():
        return None
    [finished] = common.read_keys(path, "finished")
    return finished
