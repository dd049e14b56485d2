"""Draw a run of the loop: accuracy round by round, and what the training saw.

    python -m tools.plot runs/loop docs

reads    base/eval/, round*/eval/ (results.json, pairs.jsonl) and
         round*/model/metrics.jsonl
writes   loop.png: accuracy with its 95% interval, and the accuracy of the
         base's own revisions, which is what the loop can close
         training.png: loss, margins, rewards and log-probs, step by step
"""

import argparse
from pathlib import Path

import matplotlib

import common
from tools import report
from tools.report_rounds import find_rounds

matplotlib.use("Agg")
from matplotlib import pyplot

# One plot each: title, and the columns of metrics.jsonl that it shows
PANELS = {
    "loss": ("loss",),
    "rewards/margins": ("rewards/margins",),
    "rewards, of chosen and rejected": ("rewards/chosen", "rewards/rejected"),
    "log-probs, of chosen and rejected": ("logps/chosen", "logps/rejected"),
}


def main():
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument("run", type=Path, help="directory of the run, such as runs/loop")
    parser.add_argument("output", type=Path, help="directory of the pictures")
    args = parser.parse_args()

    rounds = find_rounds(args.run)
    if not rounds:
        raise common.InputError(f"{args.run}: no round*/ in it, so it is not a run of the loop")
    args.output.mkdir(parents=True, exist_ok=True)
    draw_accuracy([args.run / "base", *rounds], args.output / "loop.png")
    metrics = [common.read_jsonl(path / "model" / "metrics.jsonl") for path in rounds]
    draw_training(metrics, args.output / "training.png")


def draw_accuracy(directories: list[Path], path: Path):
    """Draw the accuracy of the base and of each round, with its interval."""
    accuracies = []
    errors = []  # distances of the interval's ends, below and above
    for directory in directories:
        accuracy, (low, high) = common.read_keys(
            directory / "eval" / "results.json", "accuracy", "interval"
        )
        accuracies.append(100 * accuracy)
        errors.append((100 * (accuracy - low), 100 * (high - accuracy)))
    revised = common.read_jsonl(directories[0] / "eval" / "pairs.jsonl")
    ceiling = 100 * report.score_revisions(revised)

    figure, axes = pyplot.subplots(figsize=(6.4, 3.4), layout="constrained")
    steps = range(len(directories))
    axes.errorbar(steps, accuracies, list(zip(*errors)), marker="o", capsize=4, linewidth=2)
    for step, accuracy in zip(steps, accuracies):
        axes.annotate(
            f"{accuracy:.0f}%", (step, accuracy), (8, -14), textcoords="offset points", fontsize=11
        )
    axes.axhline(ceiling, color="grey", linestyle=":")
    axes.annotate(
        f"the base's own revisions: {ceiling:.0f}%",
        (steps[-1], ceiling),
        (0, 5),
        textcoords="offset points",
        ha="right",
        color="dimgrey",
    )
    axes.set(ylabel="answers that are right, %", ylim=(min(accuracies) - 10, 100))
    axes.set_xticks(steps, ["base", *(f"round {step}" for step in steps[1:])])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def draw_training(metrics: list[list[dict]], path: Path):
    """Draw the columns of metrics.jsonl over the steps of all rounds, one round after the other."""
    figure, all_axes = pyplot.subplots(2, 2, figsize=(11, 6), layout="constrained")
    starts = [0]
    for rows in metrics:
        starts.append(starts[-1] + len(rows))

    for axes, (title, keys) in zip(all_axes.flat, PANELS.items()):
        for number, key in enumerate(keys):
            label = key.split("/")[-1]
            for start, rows in zip(starts, metrics):
                steps = [start + row["step"] for row in rows]
                values = [row[key] for row in rows]
                axes.plot(steps, values, color=f"C{number}", label=label)
                label = None  # one entry in the legend for all rounds
        for start in starts[1:-1]:
            axes.axvline(start + 0.5, color="grey", linewidth=0.8, linestyle=":")
        axes.set(title=title, xlabel="step, round after round")
        axes.grid(alpha=0.3)
        if len(keys) > 1:
            axes.legend()
    save(figure, path)


def save(figure, path: Path):
    """Write a picture and say where."""
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    common.run(main)
