"""The plot of a study: accuracy, critic and errors by round.

It is the only part of tools.study that needs matplotlib (requirements-dev.txt).
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot

from tools.study_tables import list_variants, round_numbers, select


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
        width = 3 if variant == "paper" else 1.2
        plot_curve(axes, figures, variant, "accuracy", label=variant, linewidth=width)
    [revisions] = select(figures, "paper", 0, "accuracy of revisions")
    axes.axhline(revisions, color="grey", linestyle=":", label="the base's revisions")


def plot_critics(axes, figures):
    """Plot precision and recall of the model as critic, for three variants."""
    axes.set(title="the model as critic of its own answers to dev")
    for measured, style in (("precision", "-"), ("recall", "--")):
        for variant, color in (("paper", "C0"), ("replay", "C1"), ("sft-all", "C2")):
            if variant not in list_variants(figures):
                continue
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
    axes.set(title="paper: errors on dev, counted three ways")
    colors = {
        "errors by truth": "black",
        "errors the base names": "C0",
        "errors the model names": "C3",
    }
    for name, color in colors.items():
        plot_curve(axes, figures, "paper", name, label=name, color=color)


def plot_curve(axes, figures, variant, name, label, **style):
    """Draw a figure of a variant by round: its mean over the loop seeds, with error bars."""
    numbers = round_numbers(figures)
    curves = []  # one a seed
    for key, rounds in figures.items():
        if key[:2] == (0, variant):
            curves.append([rounds[n][name] for n in numbers])
    values = np.array(curves)  # (seeds, rounds)
    means = values.mean(axis=0)
    deviations = values.std(axis=0, ddof=min(1, len(curves) - 1))
    axes.errorbar(numbers, means, deviations, label=label, capsize=3, **style)
