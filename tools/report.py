"""Results as tables: a run of the loop round by round, or runs of evaluate.py side by side.

    python -m tools.report runs/loop
    python -m tools.report runs/base/mvbench runs/round4/mvbench runs/base/egoschema ...

The first reads, below the run's directory, base/eval/ and round*/: responses.jsonl, critiques.jsonl, pairs.jsonl, model/, eval/. Where
critique.py and refine.py were run on eval/predictions.jsonl (eval/critiques.jsonl, eval/pairs.jsonl), critic and revisions are scored by truth too.

The second takes directories that evaluate.py wrote, shows them with the paper's published scores, and compares every two runs on one benchmark
by McNemar's paired test over the questions that both have answered. The test takes questions for independent; those about one video are not
quite, so a p near the edge says less than it seems.
"""

import argparse
import itertools
import json
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
STAGES = ("responses.jsonl", "critiques.jsonl", "pairs.jsonl", "model")


def ratio(part, whole):
    return part / whole if whole else float("nan")


def score_critic(rows):
    """Precision and recall of 'the critic finds an error', by truth; rows: eval/critiques.jsonl. An unreadable verdict finds none."""
    found = [row for row in rows if row.get("error_types")]
    wrong = [row for row in rows if not row["correct"]]
    hits = sum(not row["correct"] for row in found)
    return ratio(hits, len(found)), ratio(hits, len(wrong))


def score_revisions(rows):
    """Accuracy of the answers after revision, by truth; rows: eval/pairs.jsonl. Where the critic found nothing the answer stays."""
    return ratio(
        sum(
            evaluate.parse_reply(row, row.get("revised", row["initial"])) == row["answer"]
            for row in rows
        ),
        len(rows),
    )


def describe_round(directory):
    """{row of the table: value} of base/ or round<n>/; a row whose files are not there is left out."""
    results = json.loads((directory / "eval" / "results.json").read_text())
    column = {
        "accuracy": f"{results['accuracy']:.3f}",
        "95% interval": "{:.3f}-{:.3f}".format(*results["interval"]),
    }
    column |= {f"  {task}": f"{part['accuracy']:.3f}" for task, part in results["by_task"].items()}
    column |= {"wrong answers": results["n_wrong"]} | {
        f"  {error}": n for error, n in results["errors"].items()
    }
    if (directory / "eval" / "critiques.jsonl").exists():
        precision, recall = score_critic(common.read_jsonl(directory / "eval" / "critiques.jsonl"))
        column |= {"critic's precision": f"{precision:.2f}", "critic's recall": f"{recall:.2f}"}
    if (directory / "eval" / "pairs.jsonl").exists():
        column["accuracy of revisions"] = (
            f"{score_revisions(common.read_jsonl(directory / 'eval' / 'pairs.jsonl')):.3f}"
        )
    if (directory / "pairs.jsonl").exists():
        rows = common.read_jsonl(directory / "pairs.jsonl")
        column["pairs"] = sum("dropped" not in row for row in rows)
        column["dropped"] = len(rows) - column["pairs"]
    for name in (*STAGES, "eval/predictions.jsonl"):
        meta = common.meta_path(directory / name)
        if meta.exists() and (finished := json.loads(meta.read_text())["finished"]):
            column[f"seconds, {name.split('/')[0].split('.')[0]}"] = finished["seconds"]
    return column


def closed_gap(columns):
    """Share of the closable gap that the last round closed: (accuracy after - before) / (accuracy of the base's revisions - before)."""
    before, after, revised = (
        float(column)
        for column in (
            columns[0]["accuracy"],
            columns[-1]["accuracy"],
            columns[0]["accuracy of revisions"],
        )
    )
    return (after - before) / (revised - before)


def print_table(names, columns):
    rows = list(
        dict.fromkeys(key for column in columns[::-1] for key in column)
    )  # a round's column has more rows than the base's
    first, texts = (
        max(26, *map(len, rows)),
        [*names, *(value for column in columns for value in column.values())],
    )
    width = max(14, *(len(f"  {text}") for text in texts))
    print(" " * first + "".join(f"{name:>{width}}" for name in names))
    for row in rows:
        print(f"{row:{first}}" + "".join(f"{column.get(row, ''):>{width}}" for column in columns))


def report_loop(run):
    directories = [
        path
        for path in [run / "base", *sorted(run.glob("round*"))]
        if (path / "eval" / "results.json").exists()
    ]
    if not directories:
        raise common.InputError(
            f"{run}: neither results.json (of evaluate.py) nor base/eval/results.json or round*/eval/results.json (of the loop)"
        )
    columns = [describe_round(directory) for directory in directories]
    print_table([directory.name for directory in directories], columns)
    for meta in (common.meta_path(directory / "pairs.jsonl") for directory in directories):
        if meta.exists() and (finished := json.loads(meta.read_text())["finished"]):
            print(f"{meta.parent.name}/pairs.jsonl: {finished['account']}")
    if len(columns) > 1 and "accuracy of revisions" in columns[0]:
        fewer = 1 - ratio(columns[-1]["wrong answers"], columns[0]["wrong answers"])
        print(
            f"\nshare of the closable gap: {closed_gap(columns):.0%}; wrong answers: {fewer:.0%} fewer than the base"
        )


# ---------------------------------------------------------------- runs of evaluate.py
def percent(figure, key="accuracy"):
    return "-" if figure[key] is None else f"{100 * figure[key]:.1f}"


def describe_results(results):
    """{row of the table: text} of a results.json, percent."""
    column = {
        "model": "/".join(Path(f"{results['model']}").parts[-2:]),
        "frames": results["arguments"].get("frames") or "the model's",
        "score": percent(results, "score"),
        "95% interval": "{:.1f}-{:.1f}".format(*(100 * end for end in results["interval"])),
        "score is": results["score_is"],
        "questions": f"{results['n']}/{results['N']}" + " partial" * results["partial"],
        "unparsed replies": results["n_unparsed"],
        "  of them empty": results["n_empty"],
        "unparsed count as": results["unparsed"],
    }
    for name, parts in results.items():
        if name.startswith("by_") and len(parts) > 1:
            column |= {
                f"{name[3:]} {value}": f"{percent(part)} {part['n']}/{part['N']}"
                for value, part in parts.items()
            }
    return {row: f"{text}" for row, text in column.items()}


def mcnemar(only_one, only_other):
    """Exact two-sided p of McNemar's test: of n questions that one run alone has right, each is as likely the one's as the other's."""
    n, least = only_one + only_other, min(only_one, only_other)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)


def compare(one, other):
    """Two runs' predictions -> a line on the questions that both have answered. InputError where a question is not the same in both."""
    ones, others = (
        {row["id"]: row for row in rows if row.get("correct") is not None} for rows in (one, other)
    )
    shared = [id for id in ones if id in others]
    for id in shared:
        if any(ones[id][key] != others[id][key] for key in ("question", "options", "answer")):
            raise common.InputError(f"the question {id} is not the same in both runs")
    pairs = [(ones[id]["correct"], others[id]["correct"]) for id in shared]
    only_one, only_other = pairs.count((True, False)), pairs.count((False, True))
    return (
        f"{len(shared)} questions in both; right in both {pairs.count((True, True))}, in the first alone {only_one}, in the second alone "
        f"{only_other}, in none {pairs.count((False, False))}; McNemar's p = {mcnemar(only_one, only_other):.4f}"
    )


def report_results(runs):
    """runs: {name: results.json}; those without a score (EgoSchema's full set without a public answer) are passed over, with a word."""
    for name in [name for name, results in runs.items() if results["score"] is None]:
        print(f"{name}: no score, since no answer is public")
        runs.pop(name)
    columns = dict.fromkeys(BENCHMARKS) | dict.fromkeys(
        results["benchmark"] for results in runs.values()
    )
    published = (
        {"published": {}}
        | {name: dict(zip(BENCHMARKS, map(str, scores))) for name, scores in PUBLISHED.items()}
        | {"measured": {}}
    )
    measured = {
        name: {results["benchmark"]: percent(results, "score") + "*" * results["partial"]}
        for name, results in runs.items()
    }
    lines = {**published, **measured}
    print_table(
        list(columns),
        [{name: line.get(benchmark, "") for name, line in lines.items()} for benchmark in columns],
    )
    if any(results["partial"] for results in runs.values()):
        print("* over a part of the questions, see below")
    if any(results["benchmark"] == "tempcompass" for results in runs.values()):
        print(
            "tempcompass: measured over three tasks, without a judge; what the published scores are over is not known"
        )
    for benchmark in columns:
        names = [name for name, results in runs.items() if results["benchmark"] == benchmark]
        if names:
            print(f"\n{benchmark}, percent")
            print_table(names, [describe_results(runs[name]) for name in names])
        for one, other in itertools.combinations(names, 2):
            print(
                f"{one} and {other}: "
                + compare(
                    *(common.read_jsonl(Path(name) / "predictions.jsonl") for name in (one, other))
                )
            )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="run",
        help="directory of a run of the loop, or directories of evaluate.py",
    )
    args = parser.parse_args()
    if len(args.runs) == 1 and not (args.runs[0] / "results.json").exists():
        report_loop(args.runs[0])
    else:
        for run in args.runs:
            common.read_json(
                run / "results.json", "score", "partial", "benchmark", "arguments"
            )  # or an error that names the file and the key
        report_results({f"{run}": common.read_json(run / "results.json") for run in args.runs})


if __name__ == "__main__":
    common.run(main)
