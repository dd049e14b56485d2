"""What tools.study measures and shows: figures of a round, tables, plot.

All figures of a study are {(base, variant, seed): rounds}. base is the seed of
the base, seed is the loop's. rounds[0] are the figures of the base, rounds[n]
those of round n, each {name: number}.
"""

import functools
import math
import re
import statistics
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot

import common
import evaluate
from shapes import world
from tools import report

# What is new to the loop in a benchmark -> its directory
BENCHMARKS = {"loop's own videos": "seen", "new videos": "dev", "new combinations": "hard"}

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
    figures = measure_answers(out / "dev")
    for name, benchmark in BENCHMARKS.items():
        results = out / benchmark / "results.json"
        if results.exists():
            [accuracy] = common.read_keys(results, "accuracy")
            figures[f"on {name}"] = accuracy

    revisions = out / "dev" / "pairs.jsonl"
    if revisions.exists():
        figures["accuracy of revisions"] = report.score_revisions(common.read_jsonl(revisions))

    trained_on = out / "edited.jsonl"
    if trained_on.exists():
        figures |= measure_pairs(common.read_jsonl(trained_on))
        figures |= measure_training(common.read_jsonl(out / "model" / "metrics.jsonl"))
    return figures


def measure_answers(dev: Path) -> dict[str, float]:
    """Measure the answers to dev, and the model and the base as critics of them."""
    accuracy, n_wrong = common.read_keys(dev / "results.json", "accuracy", "n_wrong")
    own = common.read_jsonl(dev / "critiques.jsonl")
    by_base = common.read_jsonl(dev / "by_base.jsonl")
    precision, recall = report.score_critic(own)
    base_precision, base_recall = report.score_critic(by_base)
    return {
        "accuracy": accuracy,
        "errors by truth": n_wrong,
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


def is_inverted(pair: dict) -> bool | None:
    """Tell whether a pair prefers a wrong answer to a right one, by truth.

    Returns:
        None where the world has no answer to its question
    """
    item = true_items(pair["video"]).get(pair["question"])
    if item is None:
        return None
    return is_right(item, pair["rejected"]) and not is_right(item, pair["chosen"])


@functools.cache
def true_items(video: str) -> dict[str, dict]:
    """Find the truth of a video of the rounds, such as round1_0007.mp4 -> {question: item}."""
    split, index = re.search(r"(\w+)_(\d+)\.mp4$", video).groups()
    scene = world.make_scene(0, split, int(index))
    by_question = {}
    for items in world.all_questions(scene).values():
        for item in items:
            by_question[item["question"]] = item
    return by_question


def is_right(item: dict, answer: str) -> bool:
    """Tell whether an answer says the same as the world's, as evaluate.py reads it."""
    question = {"task": item["type"], "options": [item["answer"]]}
    return evaluate.parse_shapes(question, answer) == 0  # the only option


# ------------------------------------------------------------------------------
# Tables


def print_tables(figures: dict, one_round: dict[str, list[tuple]], bases):
    """Print all tables of a study, in Markdown.

    Args:
        figures: {(base, variant, seed): rounds}, as above
        one_round: {name: [(rows trained on, accuracy) of each seed]} of what has one round alone
        bases: the seeds of the bases
    """
    print_accuracy(figures)
    print_one_round(figures, one_round)
    for name, digits in DIGITS.items():
        print_figure(figures, name, digits)
    numbers = round_numbers(figures)
    for n in (numbers[1], numbers[-1]):
        print_training(figures, n)
    print_benchmarks(figures)
    print_bases(figures, bases)


def print_accuracy(figures):
    """Print the accuracy on dev by variant and round."""
    n_seeds = len({seed for _, _, seed in figures})
    rows = []
    for variant in list_variants(figures):
        rows.append([variant, *by_round(figures, variant, "accuracy")])
    print_rows(
        "accuracy on dev (n = 900, 150 videos), "
        f"mean and standard deviation over {n_seeds} loop seeds",
        ["", *round_heads(figures)],
        rows,
    )


def print_one_round(figures, one_round):
    """Print, for one round of training, how many rows it had and the accuracy that came out."""
    trained = {}
    for variant in ("dpo", "sft", "sft-all"):
        n_rows = select(figures, variant, 1, "pairs")
        accuracies = select(figures, variant, 1, "accuracy")
        trained[variant] = list(zip(n_rows, accuracies))

    rows = []
    for name, seeds in (trained | one_round).items():
        n_rows, accuracies = zip(*seeds)
        rows.append([name, spread(n_rows, 0), spread(accuracies, 3)])
    title = "one round: rows that are trained on, accuracy on dev"
    print_rows(title, ["", "rows", "accuracy"], rows)


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
    rows = [["base", *by_benchmark(figures, "dpo", 0)]]
    for variant in list_variants(figures):
        rows.append([variant, *by_benchmark(figures, variant, last)])
    title = "accuracy after the last round, by what is new to the loop"
    print_rows(title, ["", *BENCHMARKS], rows)


def print_bases(figures, bases):
    """Print the loop's accuracy on dev by base and round, and that of each base's revisions."""
    rows = []
    for base in bases:
        revisions = spread(select(figures, "dpo", 0, "accuracy of revisions", base))
        rows.append([f"{base}", *by_round(figures, "dpo", "accuracy", base=base), revisions])
    heads = ["base of seed", *round_heads(figures), "the base's revisions"]
    print_rows("the loop by base, accuracy on dev", heads, rows)


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


def list_variants(figures) -> list[str]:
    """List the variants of a study, in order."""
    return list(dict.fromkeys(variant for _, variant, _ in figures))


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


# ------------------------------------------------------------------------------
# The plot


def plot(figures: dict, path: Path):
    """Plot accuracy by variant, the critic's precision and recall, and errors counted three ways.

    All by round, for the shipped base; the bars are standard deviations over the loop seeds.
    """
    matplotlib.use("Agg")  # no window
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 5), layout="constrained")
    plot_accuracy(left, figures)
    plot_critics(middle, figures)
    plot_errors(right, figures)
    for axes in (left, middle, right):
        axes.set(xlabel="round", xticks=round_numbers(figures))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    print(f"\nplot: {path}")


def plot_accuracy(axes, figures):
    """Plot the accuracy on dev of each variant, and that of the base's revisions."""
    axes.set(title="accuracy on dev")
    for variant in list_variants(figures):
        width = 3 if variant == "dpo" else 1.2
        plot_curve(axes, figures, variant, "accuracy", label=variant, linewidth=width)
    [revisions] = select(figures, "dpo", 0, "accuracy of revisions")
    axes.axhline(revisions, color="grey", linestyle=":", label="the base's revisions")


def plot_critics(axes, figures):
    """Plot precision and recall of the model as critic, for the loop and cross-entropy."""
    axes.set(title="the model as critic of its own answers to dev")
    for measured, style in (("precision", "-"), ("recall", "--")):
        for variant, color in (("dpo", "C0"), ("sft", "C1"), ("sft-all", "C2")):
            plot_curve(
                axes,
                figures,
                variant,
                f"critic's {measured}",
                label=f"{variant}: {measured}",
                color=color,
                linestyle=style,
            )


def plot_errors(axes, figures):
    """Plot the loop's errors on dev as truth, the base and the model count them."""
    axes.set(title="dpo: errors on dev, of 900, counted three ways")
    colors = {
        "errors by truth": "black",
        "errors the base names": "C0",
        "errors the model names": "C3",
    }
    for name, color in colors.items():
        plot_curve(axes, figures, "dpo", name, label=name, color=color)


def plot_curve(axes, figures, variant, name, label, **style):
    """Draw a figure of a variant by round: its mean over the loop seeds, with error bars."""
    numbers = round_numbers(figures)
    curves = []  # one a seed
    for key, rounds in figures.items():
        if key[:2] == (0, variant):
            curves.append([rounds[n][name] for n in numbers])
    values = np.array(curves)  # (seeds, rounds)
    means = values.mean(axis=0)
    deviations = values.std(axis=0, ddof=1)
    axes.errorbar(numbers, means, deviations, label=label, capsize=3, **style)
