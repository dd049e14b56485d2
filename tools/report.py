"""Print results as tables: a run of the loop, or runs of evaluate.py.

    python -m tools.report runs/loop
    python -m tools.report runs/base/mvbench runs/round4/mvbench ...

The first command reads, below the run's directory, base/eval/ and round*/:
responses.jsonl, critiques.jsonl, pairs.jsonl, model/, eval/; one column a
round. If critique.py and refine.py were run on eval/predictions.jsonl (to
eval/critiques.jsonl and eval/pairs.jsonl), critic and revisions are scored
against the truth, too.

The second takes directories that evaluate.py wrote, shows them beside the
paper's published scores, and compares every two runs on the same benchmark by
McNemar's paired test, over the questions that both have answered. The test
takes questions for independent; those about the same video are not quite, so a
p close to the threshold says less than it seems.
"""

import argparse
import itertools
import math
from pathlib import Path

import common
import evaluate

# VideoSAVi (arXiv 2412.00624), Table 1: 32 frames, InternVL2.5-8B, percent
BENCHMARKS = ("tempcompass", "perceptiontest", "nextqa", "mvbench", "egoschema", "longvideobench")
PUBLISHED = {
    "InternVL2.5": (68.3, 62.2, 77.0, 69.8, 52.0, 57.8),
    "+ SFT": (68.5, 63.0, 77.5, 70.2, 53.0, 58.0),
    "+ SFT+": (68.7, 64.5, 78.3, 71.6, 54.5, 58.1),
    "+ Hound-DPO": (66.8, 61.0, 74.8, 64.2, 48.5, 54.3),
    "+ TPO": (68.2, 62.0, 77.2, 68.8, 52.8, 58.1),
    "VideoSAVi": (69.1, 66.1, 80.6, 74.0, 58.8, 59.8),
}
# What a round of the loop writes, of which the table has the seconds
TIMED = {
    "responses": "responses.jsonl",
    "critiques": "critiques.jsonl",
    "pairs": "pairs.jsonl",
    "model": "model",
    "eval": "eval/predictions.jsonl",
}

# ------------------------------------------------------------------------------
# A run of the loop


def report_loop(run: Path):
    """Print a run of the loop, one column a round, and the share of the gap that it closed."""
    directories = []
    for directory in [run / "base", *sorted(run.glob("round*"))]:
        if (directory / "eval" / "results.json").exists():
            directories.append(directory)
    if not directories:
        raise common.InputError(
            f"{run}: neither results.json (of evaluate.py) nor base/eval/results.json "
            "or round*/eval/results.json (of the loop)"
        )

    columns = [describe_round(directory) for directory in directories]
    print_table([directory.name for directory in directories], columns)
    for directory in directories:
        if finished := read_finished(directory / "pairs.jsonl"):
            print(f"{directory.name}/pairs.jsonl: {finished['account']}")

    first = columns[0]
    last = columns[-1]
    if len(columns) > 1 and "accuracy of revisions" in first:
        fewer = 1 - ratio(last["wrong answers"], first["wrong answers"])
        print(
            f"\nshare of the closable gap: {closed_gap(columns):.0%}; "
            f"wrong answers: {fewer:.0%} fewer than the base"
        )


def describe_round(directory: Path) -> dict:
    """Describe base/ or round<n>/ -> {row of the table: value}; what is missing has no row."""
    results = common.read_json(directory / "eval" / "results.json")
    low, high = results["interval"]
    column = {"accuracy": f"{results['accuracy']:.3f}", "95% interval": f"{low:.3f}-{high:.3f}"}
    for task, figure in results["by_task"].items():
        column[f"  {task}"] = f"{figure['accuracy']:.3f}"
    column["wrong answers"] = results["n_wrong"]
    for error, n in results["errors"].items():
        column[f"  {error}"] = n

    critiques = directory / "eval" / "critiques.jsonl"
    if critiques.exists():
        precision, recall = score_critic(common.read_jsonl(critiques))
        column["critic's precision"] = f"{precision:.2f}"
        column["critic's recall"] = f"{recall:.2f}"
    revisions = directory / "eval" / "pairs.jsonl"
    if revisions.exists():
        accuracy = score_revisions(common.read_jsonl(revisions))
        column["accuracy of revisions"] = f"{accuracy:.3f}"

    pairs = directory / "pairs.jsonl"
    if pairs.exists():
        rows = common.read_jsonl(pairs)
        column["pairs"] = sum("dropped" not in row for row in rows)
        column["dropped"] = len(rows) - column["pairs"]
    for name, output in TIMED.items():
        if finished := read_finished(directory / output):
            column[f"seconds, {name}"] = finished["seconds"]
    return column


def read_finished(output: Path) -> dict | None:
    """Read what an output's meta.json says of its end; None if it is missing or unfinished."""
    path = common.meta_path(output)
    if not path.exists():
        return None
    [finished] = common.read_keys(path, "finished")
    return finished


def score_critic(rows: list[dict]) -> tuple[float, float]:
    """Score "the critic finds an error" against the truth; an unreadable verdict finds none.

    Args:
        rows: of eval/critiques.jsonl

    Returns:
        precision: share of wrong answers among those in which the critic finds an error
        recall: share of the wrong answers in which the critic finds an error
    """
    found = [row for row in rows if row.get("error_types")]
    n_wrong = sum(not row["correct"] for row in rows)
    n_hits = sum(not row["correct"] for row in found)
    return ratio(n_hits, len(found)), ratio(n_hits, n_wrong)


def score_revisions(rows: list[dict]) -> float:
    """Compute the accuracy after revision; an answer that was not revised stays as it was.

    Args:
        rows: of eval/pairs.jsonl
    """
    n_right = 0
    for row in rows:
        answer = row.get("revised", row["initial"])
        n_right += evaluate.parse_reply(row, answer) == row["answer"]
    return ratio(n_right, len(rows))


def ratio(part: float, whole: float) -> float:
    """Divide; a part of nothing is not a number."""
    return part / whole if whole else float("nan")


def closed_gap(columns: list[dict]) -> float:
    """Compute the share of the closable gap that the last round closed.

    The base's own revisions show how far its answers could be corrected: with accuracies,
    (last round - base) / (base's revisions - base).
    """
    before = float(columns[0]["accuracy"])
    after = float(columns[-1]["accuracy"])
    revised = float(columns[0]["accuracy of revisions"])
    return (after - before) / (revised - before)


# ------------------------------------------------------------------------------
# Runs of evaluate.py


def report_results(runs: dict[str, dict]):
    """Print runs beside the published scores, then benchmark by benchmark, and compare them.

    Args:
        runs: {name: its results.json}. Runs without a score, such as EgoSchema's full set without
            a public answer, are skipped with a message
    """
    scored = {}
    for name, results in runs.items():
        if results["score"] is None:
            print(f"{name}: no score, since no answer is public")
        else:
            scored[name] = results

    measured = [results["benchmark"] for results in scored.values()]
    benchmarks = list(dict.fromkeys([*BENCHMARKS, *measured]))
    print_table(benchmarks, [list_scores(benchmark, scored) for benchmark in benchmarks])
    if any(results["partial"] for results in scored.values()):
        print("* over a part of the questions, see below")
    if "tempcompass" in measured:
        print(
            "tempcompass: measured over three tasks, without a judge; "
            "what the published scores are over is not known"
        )

    for benchmark in benchmarks:
        names = [name for name, results in scored.items() if results["benchmark"] == benchmark]
        if names:
            print(f"\n{benchmark}, percent")
            print_table(names, [describe_results(scored[name]) for name in names])
        for one, other in itertools.combinations(names, 2):
            rows = common.read_jsonl(Path(one) / "predictions.jsonl")
            other_rows = common.read_jsonl(Path(other) / "predictions.jsonl")
            print(f"{one} and {other}: {compare(rows, other_rows)}")


def list_scores(benchmark: str, runs: dict[str, dict]) -> dict[str, str]:
    """List the published and the measured scores on a benchmark -> {row of the table: score}."""
    column = {"published": ""}
    for model, scores in PUBLISHED.items():
        published = dict(zip(BENCHMARKS, scores))
        column[model] = str(published.get(benchmark, ""))
    column["measured"] = ""
    for name, results in runs.items():
        column[name] = ""
        if results["benchmark"] == benchmark:
            column[name] = percent(results["score"])
            if results["partial"]:
                column[name] += "*"
    return column


def describe_results(results: dict) -> dict[str, str]:
    """Describe a results.json -> {row of the table: text}, in percent."""
    low, high = results["interval"]
    questions = f"{results['n']}/{results['N']}"
    if results["partial"]:
        questions += " partial"
    column = {
        "model": "/".join(Path(str(results["model"])).parts[-2:]),
        "frames": str(results["arguments"].get("frames") or "the model's"),
        "score": percent(results["score"]),
        "95% interval": f"{percent(low)}-{percent(high)}",
        "score is": results["score_is"],
        "questions": questions,
        "unparsed replies": str(results["n_unparsed"]),
        "  of them empty": str(results["n_empty"]),
        "unparsed count as": results["unparsed"],
    }
    for name, figures in results.items():
        if name.startswith("by_") and len(figures) > 1:
            for value, figure in figures.items():
                row = f"{name.removeprefix('by_')} {value}"
                column[row] = f"{percent(figure['accuracy'])} {figure['n']}/{figure['N']}"
    return column


def percent(share: float | None) -> str:
    """Format a share between 0 and 1, or a dash for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def compare(one: list[dict], other: list[dict]) -> str:
    """Compare the predictions of two runs over the questions that both have answered.

    Raises:
        InputError: if a question is not the same in both runs
    """
    ones = {row["id"]: row for row in one if row.get("correct") is not None}
    others = {row["id"]: row for row in other if row.get("correct") is not None}
    outcomes = []  # of each question in both runs: correct in the first, correct in the second
    for id, row in ones.items():
        if id not in others:
            continue
        for key in ("question", "options", "answer"):
            if row[key] != others[id][key]:
                raise common.InputError(f"the question {id} is not the same in both runs")
        outcomes.append((row["correct"], others[id]["correct"]))

    only_one = outcomes.count((True, False))
    only_other = outcomes.count((False, True))
    return (
        f"{len(outcomes)} questions in both; right in both {outcomes.count((True, True))}, "
        f"in the first alone {only_one}, in the second alone {only_other}, "
        f"in none {outcomes.count((False, False))}; "
        f"McNemar's p = {mcnemar(only_one, only_other):.4f}"
    )


def mcnemar(only_one: int, only_other: int) -> float:
    """Compute the exact two-sided p of McNemar's test.

    Under the null hypothesis each of the n questions that one run alone answers correctly is as
    likely to be the one run's as the other's: p = 2 * sum over k <= least of C(n, k) / 2^n.

    >>> mcnemar(1, 5)  # 2 * (1 + 6) / 64
    0.21875
    """
    n = only_one + only_other
    least = min(only_one, only_other)
    n_as_extreme = sum(math.comb(n, k) for k in range(least + 1))  # on one side, of 2^n
    return min(1.0, 2 * n_as_extreme / 2**n)


# ------------------------------------------------------------------------------
# The command


def main():
    """Print the tables of the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="directory of a run of the loop, or directories that evaluate.py wrote",
    )
    args = parser.parse_args()
    if len(args.runs) == 1 and not (args.runs[0] / "results.json").exists():
        report_loop(args.runs[0])
        return

    runs = {}
    for run in args.runs:
        path = run / "results.json"
        common.read_keys(path, "score", "partial", "benchmark", "arguments")  # or an InputError
        runs[str(run)] = common.read_json(path)
    report_results(runs)


def print_table(names: list[str], columns: list[dict]):
    """Print columns side by side, each with its name above it.

    A column is {row's name: value}. Rows that a column lacks are left empty. The last column
    decides the order of rows, since a round's column has more of them than the base's.
    """
    rows = []
    for column in reversed(columns):
        rows += [row for row in column if row not in rows]
    texts = list(names)
    for column in columns:
        texts += [str(value) for value in column.values()]

    first_width = max(26, *map(len, rows))
    width = max(14, 2 + max(map(len, texts)))
    print(" " * first_width + "".join(f"{name:>{width}}" for name in names))
    for row in rows:
        cells = [f"{column.get(row, ''):>{width}}" for column in columns]
        print(f"{row:{first_width}}" + "".join(cells))


if __name__ == "__main__":
    common.run(main)
