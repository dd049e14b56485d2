"""A run's results, round by round, as one table.

    python -m tools.report runs/loop

reads, below the run's directory, base/eval/ and round*/: responses.jsonl, critiques.jsonl, pairs.jsonl, model/, eval/. Where critique.py
and refine.py were run on eval/predictions.jsonl (eval/critiques.jsonl, eval/pairs.jsonl), critic and revisions are scored by truth as well.
"""
import argparse
import json
from pathlib import Path

import common
import evaluate

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
    return ratio(sum(evaluate.parse_reply(row, row.get("revised", row["initial"])) == row["answer"] for row in rows), len(rows))

def describe_round(directory):
    """{row of the table: value} of base/ or round<n>/; a row whose files are not there is left out."""
    results = json.loads((directory / "eval" / "results.json").read_text())
    column = {"accuracy": f"{results['accuracy']:.3f}", "95% interval": "{:.3f}-{:.3f}".format(*results["interval"])}
    column |= {f"  {task}": f"{part['accuracy']:.3f}" for task, part in results["by_task"].items()}
    column |= {"wrong answers": results["n_wrong"]} | {f"  {error}": n for error, n in results["errors"].items()}
    if (directory / "eval" / "critiques.jsonl").exists():
        precision, recall = score_critic(common.read_jsonl(directory / "eval" / "critiques.jsonl"))
        column |= {"critic's precision": f"{precision:.2f}", "critic's recall": f"{recall:.2f}"}
    if (directory / "eval" / "pairs.jsonl").exists():
        column["accuracy of revisions"] = f"{score_revisions(common.read_jsonl(directory / 'eval' / 'pairs.jsonl')):.3f}"
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
    before, after, revised = (float(column) for column in (columns[0]["accuracy"], columns[-1]["accuracy"], columns[0]["accuracy of revisions"]))
    return (after - before) / (revised - before)

def print_table(names, columns):
    rows = list(dict.fromkeys(key for column in columns[::-1] for key in column))  # a round's column has more rows than the base's
    print(f"{'':26}" + "".join(f"{name:>14}" for name in names))
    for row in rows:
        print(f"{row:26}" + "".join(f"{column.get(row, ''):>14}" for column in columns))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a run, such as runs/loop")
    args = parser.parse_args()
    directories = [path for path in [args.run / "base", *sorted(args.run.glob("round*"))] if (path / "eval" / "results.json").exists()]
    if not directories:
        raise common.InputError(f"{args.run}: no base/eval/results.json or round*/eval/results.json")
    columns = [describe_round(directory) for directory in directories]
    print_table([directory.name for directory in directories], columns)
    for meta in (common.meta_path(directory / "pairs.jsonl") for directory in directories):
        if meta.exists() and (finished := json.loads(meta.read_text())["finished"]):
            print(f"{meta.parent.name}/pairs.jsonl: {finished['account']}")
    if len(columns) > 1 and "accuracy of revisions" in columns[0]:
        fewer = 1 - ratio(columns[-1]["wrong answers"], columns[0]["wrong answers"])
        print(f"\nshare of the closable gap: {closed_gap(columns):.0%}; wrong answers: {fewer:.0%} fewer than the base")

if __name__ == "__main__":
    common.run(main)
