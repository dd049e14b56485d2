"""What tools.study measures and shows: figures of a round, and tables.

All figures of a study are {(base, variant, seed): rounds}. base is the seed of
the base, seed is the loop's. rounds[0] are the figures of the base, rounds[n]
those of round n, each {name: number}.
"""

import functools
import math
import re
import statistics
from pathlib import Path

import numpy as np

import common
import evaluate
from shapes import world
from tools import report

# What is new to the loop in a benchmark -> its directory
BENCHMARKS = {"loop's own videos": "seen", "new videos": "dev", "new combinations": "hard"}

TYPES = ("cause", "count", "motion", "objects", "order", "relation")  # of questions
LOGPS = (
    "logps/chosen, first steps",
    "logps/chosen, last steps",
    "logps/rejected, first steps",
    "logps/rejected, last steps",
)
LENGTHS = ("lengths/chosen", "lengths/rejected")

# Figures with a table of their own, by variant and round -> decimal places
DIGITS = {
    # of the model as critic of its own answers to dev, whichever critic the loop had
    "critic's precision": 2,
    "critic's recall": 2,
    # of the base as critic of the same answers
    "the base's precision": 2,
    "the base's recall": 2,
    "pairs": 0,
    "pairs inverted": 2,
    "pairs judged": 2,
    "errors by truth": 0,
    "errors the base names": 0,
    "errors the model names": 0,
    "words an answer": 1,
}

# ------------------------------------------------------------------------------
# The figures of a round


def measure(out: Path) -> dict[str, float]:
    """Compute the figures of a base or of a round, {name: number}, from the files that it wrote.

    Args:
        out: directory of the round; a base has no pairs to measure, but revisions of its answers
    """
    figures = measure_scores(out) | measure_critics(out / "dev")
    revisions = out / "dev" / "pairs.jsonl"
    if revisions.exists():
        rows = common.read_jsonl(revisions)
        figures["accuracy of revisions"] = report.score_revisions(rows)
        for type in TYPES:
            of_type = [row for row in rows if row["task"] == type]
            figures[f"accuracy of revisions, {type}"] = report.score_revisions(of_type)

    trained_on = out / "edited.jsonl"
    if trained_on.exists():
        figures |= measure_pairs(common.read_jsonl(trained_on))
        figures |= measure_training(common.read_jsonl(out / "model" / "metrics.jsonl"))
    return figures


def measure_scores(out: Path) -> dict[str, float]:
    """Measure the answers to dev, in all and by type of question, and to the other benchmarks."""
    accuracy, n_wrong, by_task = common.read_keys(
        out / "dev" / "results.json", "accuracy", "n_wrong", "by_task"
    )
    figures = {"accuracy": accuracy, "errors by truth": n_wrong}
    for type in TYPES:
        figures[f"accuracy, {type}"] = by_task[type]["accuracy"]
    for name, benchmark in BENCHMARKS.items():
        results = out / benchmark / "results.json"
        if results.exists():
            [accuracy] = common.read_keys(results, "accuracy")
            figures[f"on {name}"] = accuracy
    return figures


def measure_critics(dev: Path) -> dict[str, float]:
    """Measure the model and the base as critics of the model's answers to dev."""
    own = common.read_jsonl(dev / "critiques.jsonl")
    by_base = common.read_jsonl(dev / "by_base.jsonl")
    precision, recall = report.score_critic(own)
    base_precision, base_recall = report.score_critic(by_base)
    return {
        "errors the model names": sum(bool(row["error_types"]) for row in own),
        "errors the base names": sum(bool(row["error_types"]) for row in by_base),
        "critic's precision": precision,
        "critic's recall": recall,
        "the base's precision": base_precision,
        "the base's recall": base_recall,
        "words an answer": statistics.mean(len(row["initial"].split()) for row in own),
    }


def measure_pairs(rows: list[dict]) -> dict[str, float]:
    """Count the pairs that are trained on, and the share of them that truth finds inverted."""
    pairs = [row for row in rows if "dropped" not in row]
    # Cross-entropy on all revisions has also pairs of one answer
    different = [pair for pair in pairs if pair["chosen"] != pair["rejected"]]
    verdicts = [is_inverted(pair) for pair in different]
    judged = [verdict for verdict in verdicts if verdict is not None]
    return {
        "pairs": len(pairs),
        "pairs inverted": report.ratio(sum(judged), len(judged)),
        "pairs judged": report.ratio(len(judged), len(different)),
    }


def measure_training(steps: list[dict]) -> dict[str, float]:
    """Average the log-probs over the first and over the last tenth of the steps, lengths over all.

    Args:
        steps: rows of metrics.jsonl
    """
    n = max(1, len(steps) // 10)
    ends = {"first": steps[:n], "last": steps[-n:]}
    figures = {}
    for name in ("logps/chosen", "logps/rejected"):
        for end, tenth in ends.items():
            figures[f"{name}, {end} steps"] = statistics.mean(step[name] for step in tenth)
    for name in LENGTHS:
        figures[name] = statistics.mean(step[name] for step in steps)
    return figures


# ------------------------------------------------------------------------------
# Truth


def is_inverted(pair: dict, seed: int = 0) -> bool | None:
    """Tell whether a pair prefers a wrong answer to a right one, by truth.

    Args:
        seed: of the world

    Returns:
        None where the world has no answer to its question
    """
    item = true_items(pair["video"], seed).get(pair["question"])
    if item is None:
        return None
    return is_right(item, pair["rejected"]) and not is_right(item, pair["chosen"])


def true_scene(video: str, seed: int = 0) -> list[world.Shape]:
    """Make the scene of a video of the rounds again, such as round1_0007.mp4.

    Args:
        seed: of the world

    Raises:
        InputError: if the world has no such name
    """
    found = re.search(r"(\w+)_(\d+)\.mp4$", video)
    if not found or found[1] not in world.SPLITS:
        raise common.InputError(f"{video}: not a video of the tiny world, such as round1_0007.mp4")
    split, index = found.groups()
    return world.make_scene(seed, split, int(index))


@functools.cache
def true_items(video: str, seed: int = 0) -> dict[str, dict]:
    """Find the truth of a video of the rounds of a world -> {question: item}."""
    by_question = {}
    for items in world.all_questions(true_scene(video, seed)).values():
        for item in items:
            by_question[item["question"]] = item
    return by_question


def is_right(item: dict, answer: str) -> bool:
    """Tell whether an answer says the same as the world's, as evaluate.py reads it."""
    question = {"task": item["type"], "options": [item["answer"]]}
    return evaluate.parse_shapes(question, answer) == 0  # the only option


# ------------------------------------------------------------------------------
# Tables


def print_tables(figures: dict, one_round: dict[tuple[int, str], list[dict]]):
    """Print all tables of a study, in Markdown; those behind "one round" are of the shipped base.

    Args:
        figures: {(base, variant, seed): rounds}, as above
        one_round: {(base, name): [figures of each seed]} of what has one round alone
    """
    bases = list_bases(figures)
    for base in bases:
        print_accuracy(figures, base)
    print_comparison(figures)
    print_one_round(figures, one_round)
    if 0 not in bases:
        return
    for name, digits in DIGITS.items():
        print_figure(figures, name, digits)
    numbers = round_numbers(figures)
    for n in (numbers[1], numbers[-1]):
        print_training(figures, n)
    print_benchmarks(figures)
    print_types(figures, one_round)


def print_accuracy(figures, base):
    """Print the accuracy on dev by variant and round, and that of the base's own revisions."""
    n_seeds = len({seed for of, _, seed in figures if of == base})
    rows = []
    for variant in list_variants(figures, base):
        rows.append([variant, *by_round(figures, variant, "accuracy", base=base)])
    [revisions] = select(figures, "paper", 0, "accuracy of revisions", base)
    print_rows(
        f"base {base}, whose own revisions are at {revisions:.3f}: accuracy on dev (n = 900, "
        f"150 videos), mean and standard deviation over {n_seeds} loop seeds",
        ["", *round_heads(figures)],
        rows,
    )


def print_comparison(figures):
    """Print by variant how much better it ends than the paper's loop, and than its teacher."""
    rows = []
    bases = list_bases(figures)
    for base in bases if len(bases) == 1 else [*bases, None]:
        for variant in list_variants(figures, base):
            rows.append(compare(figures, variant, base))
    print_rows(
        "accuracy on dev after the last round: mean and standard error of differences",
        ["base", "", "runs", "to the paper's loop", "to the base's revisions", "largest fall"],
        rows,
    )


def compare(figures, variant, base) -> list[str]:
    """Compare the end of a variant with that of the paper's loop, and with its teacher.

    The former is paired: runs of the same base and loop seed are compared. The teacher is the base
    that revises its own answers.

    base: None for all bases that the variant was run on
    """
    runs = select_runs(figures, variant, base)
    to_paper = []
    to_teacher = []
    for key in runs:
        papers = (key[0], "paper", key[2])
        to_paper.append(last(figures, key) - last(figures, papers))
        to_teacher.append(last(figures, key) - figures[key][0]["accuracy of revisions"])
    return [
        "all" if base is None else f"{base}",
        variant,
        f"{len(runs)}",
        mean_and_error(to_paper),
        mean_and_error(to_teacher),
        f"{largest_fall(figures, variant, base):.3f}",
    ]


def select_runs(figures, variant, base) -> list[tuple]:
    """Select the runs of a variant, on one base or on all (None)."""
    return [key for key in figures if key[1] == variant and base in (key[0], None)]


def last(figures, key) -> float:
    """Give the accuracy after the last round of a run."""
    return figures[key][-1]["accuracy"]


def mean_and_error(values: list[float]) -> str:
    """Format the mean of differences and its standard error.

    >>> mean_and_error([0.01, 0.02, 0.03])  # deviation 0.01, over the root of 3
    '+0.020 +- 0.006'
    """
    mean = f"{statistics.mean(values):+.3f}"
    if len(values) == 1:
        return mean
    return f"{mean} +- {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def largest_fall(figures, variant, base) -> float:
    """Give the largest fall of the mean accuracy from one round to the next; 0 if there is none."""
    curves = [
        [each["accuracy"] for each in figures[key]] for key in select_runs(figures, variant, base)
    ]
    means = np.mean(curves, axis=0)  # (rounds + 1,)
    return max(0.0, -np.diff(means).min())


def print_one_round(figures, one_round):
    """Print, for one round of training, how many rows it had and the accuracy that came out."""
    rows = []
    for base in list_bases(figures):
        [teacher] = select(figures, "paper", 0, "accuracy of revisions", base)
        trainings = list_first_rounds(figures, base)
        trainings |= {name: seeds for (of, name), seeds in one_round.items() if of == base}
        for name, seeds in trainings.items():
            accuracies = [each["accuracy"] for each in seeds]
            cells = [f"{base}", name, f"{len(seeds)}"]
            cells += [spread([each["pairs"] for each in seeds], 0), spread(accuracies)]
            rows.append([*cells, mean_and_error([each - teacher for each in accuracies])])
    title = "one round: loop seeds, rows that are trained on, accuracy on dev"
    heads = ["base", "", "seeds", "rows", "accuracy", "to the base's revisions"]
    print_rows(title, heads, rows)


def list_first_rounds(figures, base) -> dict[str, list[dict]]:
    """List the figures of first rounds on other rows -> {name: [figures of each seed]}."""
    found = {}
    for (of, variant, _), rounds in figures.items():
        if of == base and variant in ("paper", "sft", "sft-all"):
            found.setdefault(variant, []).append(rounds[1])
    return found


def print_figure(figures, name, digits):
    """Print a figure by variant and round; empty where a round has none, as the base no pairs."""
    rows = []
    for variant in list_variants(figures):
        rows.append([variant, *by_round(figures, variant, name, digits)])
    print_rows(name, ["", *round_heads(figures)], rows)


def print_training(figures, n):
    """Print log-probs and lengths of the pairs in round n, by variant."""
    names = [*LOGPS, *LENGTHS]
    rows = []
    for variant in list_variants(figures):
        cells = [spread(select(figures, variant, n, name), 1) for name in names]
        rows.append([variant, *cells])
    print_rows(f"log-probs and tokens of the pairs, round {n}", ["", *names], rows)


def print_benchmarks(figures):
    """Print the accuracy after the last round, by variant and benchmark, below the base's."""
    last = round_numbers(figures)[-1]
    rows = [["base", *by_benchmark(figures, "paper", 0)]]
    for variant in list_variants(figures):
        rows.append([variant, *by_benchmark(figures, variant, last)])
    title = "accuracy after the last round, by what is new to the loop"
    print_rows(title, ["", *BENCHMARKS], rows)


def print_types(figures, one_round):
    """Print the accuracy by type of question, and on new combinations of color and shape.

    Of the variants it is that after the last round.
    """
    names = ["accuracy", *(f"accuracy, {type}" for type in TYPES), "on new combinations"]
    last_round = round_numbers(figures)[-1]
    rows = [["base"], ["the base's revisions"]]
    for name in names:
        revised = name.replace("accuracy", "accuracy of revisions")
        rows[0].append(spread(select(figures, "paper", 0, name)))
        rows[1].append(spread(select(figures, "paper", 0, revised)) if revised != name else "")
    for variant in list_variants(figures):
        cells = [spread(select(figures, variant, last_round, name)) for name in names]
        rows.append([variant, *cells])
    for (base, training), seeds in one_round.items():
        if base == 0:
            cells = [spread([each[name] for each in seeds]) for name in names]
            rows.append([training, *cells])
    title = "accuracy by type of question (dev), and on new combinations (hard)"
    print_rows(title, ["", "all", *TYPES, "hard"], rows)


def by_round(figures, variant, name, digits=3, base=0) -> list[str]:
    """Format a figure of a variant by round, the base's first; "" where a round has none."""
    cells = []
    for n in round_numbers(figures):
        if has_figure(figures, variant, n, name, base):
            cells.append(spread(select(figures, variant, n, name, base), digits))
        else:
            cells.append("")
    return cells


def by_benchmark(figures, variant, n) -> list[str]:
    """Format the accuracies of a variant after round n: a cell for each benchmark."""
    return [spread(select(figures, variant, n, f"on {name}")) for name in BENCHMARKS]


def select(figures, variant, n, name, base=0) -> list[float]:
    """Select a figure of round n: a value for each seed, but one alone for the base (n = 0)."""
    values = []
    for key, rounds in figures.items():
        if key[:2] == (base, variant):
            values.append(rounds[n][name])
    return values[:1] if n == 0 else values  # the base has no loop seed


def has_figure(figures, variant, n, name, base=0) -> bool:
    """Tell whether a figure exists in round n, by the first seed of the variant."""
    for key, rounds in figures.items():
        if key[:2] == (base, variant):
            return name in rounds[n]
    return False


def list_bases(figures) -> list[int]:
    """List the seeds of a study's bases, in order."""
    return list(dict.fromkeys(base for base, _, _ in figures))


def list_variants(figures, base=0) -> list[str]:
    """List the variants that were run on a base, or on any (None), in order."""
    return list(dict.fromkeys(variant for of, variant, _ in figures if base in (of, None)))


def round_numbers(figures) -> range:
    """Number the columns of a study: 0 for the base, then its rounds."""
    rounds = next(iter(figures.values()))
    return range(len(rounds))


def round_heads(figures) -> list[str]:
    """Name the columns of a study."""
    return ["base"] + [f"round {n}" for n in round_numbers(figures)[1:]]


def spread(values, digits: int = 3) -> str:
    """Format mean and standard deviation, skipping NaN (no pair, nothing found).

    >>> spread([0.8, 0.9, float("nan")])
    '0.850 +- 0.071'
    """
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "nan"
    mean = f"{statistics.mean(known):.{digits}f}"
    if len(known) == 1:
        return mean
    return f"{mean} +- {statistics.stdev(known):.{digits}f}"


def print_rows(title: str, heads: list[str], rows: list[list[str]]):
    """Print a table in Markdown below its title."""
    print(f"\n{title}\n")
    print(f"| {' | '.join(heads)} |")
    print(f"{'|---' * len(heads)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
