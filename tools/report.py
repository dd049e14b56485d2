"""Print results as tables: a run of the loop, runs of evaluate.py, or named errors.

    python -m tools.report runs/loop
    python -m tools.report runs/base/mvbench runs/round4/mvbench ...
    python -m tools.report runs/fixed/round1.jsonl runs/fixed/round4.jsonl ...

The first command reads, below the run's directory, base/eval/ and round*/:
responses.jsonl, critiques.jsonl, pairs.jsonl, model/, eval/, as far as they are
there; one column a round. Without a benchmark it shows what the rounds made:
questions, pairs, drops by reason, lengths, the last step of the training. If
critique.py and refine.py were run on eval/predictions.jsonl (to
eval/critiques.jsonl and eval/pairs.jsonl), critic and revisions are scored
against the truth, too. Pairs that were judged by hand, in judged.jsonl beside
pairs.jsonl (tools.page), are counted.

The second takes directories that evaluate.py wrote, shows them beside the
paper's published scores, and compares every two runs on the same benchmark by
McNemar's paired test, over the questions that both have answered. The test
takes questions for independent; those about the same video are not quite, so a
p close to the threshold says less than it seems.

The third takes critiques that one critic wrote of several rounds' answers, and
counts the errors by type, beside the paper's Table 2 (docs/paper-tables.md).
"""

import argparse
import itertools
import math
import shlex
from pathlib import Path

import benchmarks
import common
import evaluate
from tools import report_errors, report_judged, report_rounds

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
BASELINES = (
    "The paper's baselines lie below OpenGVLab's own figures for that model (MVBench 69.8 against\n"
    "72.0; LongVideoBench 57.8 against 60.0, the best of four numbers of frames): measure a gain\n"
    "against your own base run."
)
NEEDED = ("score", "partial", "benchmark", "arguments")  # keys of a results.json

# ------------------------------------------------------------------------------
# A run of the loop


def report_loop(run: Path, everything: bool = False):
    """Print a run of the loop, one column a round, and the share of the gap that it closed.

    everything: also for the tiny world's benchmark all that a round made
    """
    directories = report_rounds.find_rounds(run)
    if (run / "base" / "eval" / "results.json").exists():
        directories.insert(0, run / "base")
    if not directories and report_rounds.has_begun(run):
        directories = [run]  # one round of a run
    if not directories:
        raise common.InputError(
            f"{run}: neither results.json (of evaluate.py) nor base/eval/results.json or round*/ "
            "with responses.jsonl, critiques.jsonl, pairs.jsonl, model/ or eval/ (of the loop)"
        )

    scores = [read_scores(directory) for directory in directories]
    is_brief = not everything and any("n_wrong" in results for results in scores)
    columns = []
    for directory, results in zip(directories, scores):
        columns.append(describe_scores(directory, results) if results else {})
        if is_brief:
            columns[-1] |= report_rounds.count_rows(directory)
            columns[-1] |= report_rounds.list_seconds(directory)
        else:
            columns[-1] |= report_rounds.describe_round(directory)
    print_table([directory.name for directory in directories], columns)
    for line in report_rounds.list_accounts(directories):
        print(line)
    for line in report_judged.list_judged(directories):
        print(line)
    print_what_scores_are(scores)
    print_gap(columns)
    print_other_scores(run)


def read_scores(directory: Path) -> dict:
    """Read eval/results.json of base/ or round<n>/; {} if there is none."""
    path = directory / "eval" / "results.json"
    if not path.exists():
        return {}
    common.read_keys(path, *NEEDED)  # or an InputError
    return common.read_json(path)


def describe_scores(directory: Path, results: dict) -> dict:
    """Describe how base/ or round<n>/ was scored -> {row of the table: value}."""
    if "n_wrong" in results:
        column = describe_accuracy(results)
    else:
        column = describe_public(results)
    critiques = directory / "eval" / "critiques.jsonl"
    if critiques.exists():
        precision, recall = score_critic(common.read_jsonl(critiques))
        column["critic's precision"] = f"{precision:.2f}"
        column["critic's recall"] = f"{recall:.2f}"
    revisions = directory / "eval" / "pairs.jsonl"
    if revisions.exists():
        accuracy = score_revisions(common.read_jsonl(revisions))
        column["accuracy of revisions"] = f"{accuracy:.3f}"
    return column


def describe_accuracy(results: dict) -> dict:
    """Describe a score in the tiny world, whose errors are known by type."""
    low, high = results["interval"]
    column = {"accuracy": f"{results['accuracy']:.3f}", "95% interval": f"{low:.3f}-{high:.3f}"}
    for task, figure in results["by_task"].items():
        column[f"  {task}"] = f"{figure['accuracy']:.3f}"
    column["wrong answers"] = results["n_wrong"]
    for error, n in results["errors"].items():
        column[f"  {error}"] = n
    return column


def describe_public(results: dict) -> dict:
    """Describe a score on any other benchmark, under the benchmark's name."""
    name = results["benchmark"]
    if results["score"] is None:
        return {name: "no public answer"}
    return {
        name: show_score(results),
        f"{name} 95% interval": show_interval(results),
        f"{name} questions": count_asked(results),
        f"{name} unparsed replies": results["n_unparsed"],
    }


def print_what_scores_are(scores: list[dict]):
    """Print what the scores on other benchmarks than the tiny world's are, a line each."""
    lines = []
    for results in scores:
        if results and "n_wrong" not in results and results["score"] is not None:
            unit = ", percent" if is_share(results) else ""
            lines.append(f"{results['benchmark']}: {results['score_is']}{unit}")
    for line in dict.fromkeys(lines):
        print(line)


def print_gap(columns: list[dict]):
    """Print the share of the closable gap that the last scored round closed, and of the errors."""
    scored = [column for column in columns if "wrong answers" in column]
    if len(scored) < 2 or "accuracy of revisions" not in scored[0]:
        return
    share = closed_gap(scored)
    if share is None:
        said = "no closable gap: the base's revisions are not better than its answers"
    else:
        said = f"share of the closable gap: {share:.0%}"
    before = scored[0]["wrong answers"]
    if before:
        fewer = 1 - scored[-1]["wrong answers"] / before
        said += f"; wrong answers: {fewer:.0%} fewer than the base"
    print(f"\n{said}")


def print_other_scores(run: Path):
    """Print the command that shows what base/ and the rounds scored elsewhere than in eval/."""
    paths = sorted(run.glob("*/*/results.json"))
    others = [str(path.parent) for path in paths if path.parent.name != "eval"]
    if others:
        print(f"\nother scores: python -m tools.report {shlex.join(others)}")


def score_critic(rows: list[dict]) -> tuple[float, float]:
    """Score "the critic finds an error" against the truth; an unreadable verdict finds none.

    Args:
        rows: of eval/critiques.jsonl; those about a video that cannot be read, or without a public
            answer, are passed over

    Returns:
        precision: share of wrong answers among those in which the critic finds an error
        recall: share of the wrong answers in which the critic finds an error
    """
    known = [row for row in rows if row.get("correct") is not None]
    found = [row for row in known if row.get("error_types")]
    n_wrong = sum(not row["correct"] for row in known)
    n_hits = sum(not row["correct"] for row in found)
    return ratio(n_hits, len(found)), ratio(n_hits, n_wrong)


def score_revisions(rows: list[dict]) -> float:
    """Compute the accuracy after revision; an answer that was not revised stays as it was.

    Args:
        rows: of eval/pairs.jsonl; those without an answer, or without a public one, are passed over
    """
    known = [row for row in rows if "initial" in row and row["answer"] is not None]
    n_right = 0
    for row in known:
        n_right += is_revision_right(row)
    return ratio(n_right, len(known))


def is_revision_right(row: dict) -> bool:
    """Tell whether an answer is right after its revision; one that has none stays as it was."""
    answer = row.get("revised", row["initial"])
    return evaluate.parse_reply(row, answer) == row["answer"]


def ratio(part: float, whole: float) -> float:
    """Divide; a part of nothing is not a number."""
    return part / whole if whole else float("nan")


def closed_gap(columns: list[dict]) -> float | None:
    """Compute the share of the closable gap that the last round closed; None if there is no gap.

    The base's own revisions show how far its answers could be corrected: with accuracies,
    (last round - base) / (base's revisions - base).
    """
    before = float(columns[0]["accuracy"])
    after = float(columns[-1]["accuracy"])
    revised = float(columns[0]["accuracy of revisions"])
    if not revised > before:
        return None
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
    listed = list(dict.fromkeys([*BENCHMARKS, *measured]))
    print_table(listed, [list_scores(benchmark, scored) for benchmark in listed])
    print(BASELINES)
    if any(results["partial"] for results in scored.values()):
        print("* over a part of the questions, see below")
    if "tempcompass" in measured:
        print(
            "tempcompass: measured over three tasks, without a judge; "
            "what the published scores are over is not known"
        )

    for benchmark in listed:
        names = [name for name, results in scored.items() if results["benchmark"] == benchmark]
        if names:
            is_percent = all(is_share(scored[name]) for name in names)
            print(
                f"\n{benchmark}, percent" if is_percent else f"\n{benchmark}, its parts in percent"
            )
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
            column[name] = show_score(results)
            if results["partial"]:
                column[name] += "*"
    return column


def describe_frames(arguments: dict) -> str:
    """Say how many frames of a video were shown, and of how many tokens if that was asked for."""
    frames = str(arguments.get("frames") or "the model's")
    bounds = arguments.get("frame_tokens")
    return f"{frames}, {bounds[0]}-{bounds[1]} tokens" if bounds else frames


def describe_results(results: dict) -> dict[str, str]:
    """Describe a results.json -> {row of the table: text}; the accuracy of parts in percent."""
    column = {
        "model": "/".join(Path(str(results["model"])).parts[-2:]),
        "frames": describe_frames(results["arguments"]),
        "score": show_score(results),
        "95% interval": show_interval(results),
        "score is": results["score_is"],
        "questions": count_asked(results),
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


def count_asked(results: dict) -> str:
    """Format the n of N questions that a score is over."""
    partial = " partial" if results["partial"] else ""
    return f"{results['n']}/{results['N']}{partial}"


def show_score(results: dict) -> str:
    """Format a score: in percent if it is a share of right replies, else as it is."""
    return percent(results["score"]) if is_share(results) else f"{results['score']:.3f}"


def show_interval(results: dict) -> str:
    """Format the interval of a score, as the score itself."""
    low, high = results["interval"]
    if is_share(results):
        return f"{percent(low)}-{percent(high)}"
    return f"{low:.3f} to {high:.3f}"  # they may be negative


def is_share(results: dict) -> bool:
    """Say whether a score is a share of right replies, or a mean of such shares.

    A benchmark of one's own may have any other score; so may one whose file is not here.
    """
    try:
        score = evaluate.find_benchmark(results["benchmark"]).score
    except ImportError:
        return False
    return score in (benchmarks.accuracy, benchmarks.mean_over_tasks)


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
    n_reworded = 0
    for id, row in ones.items():
        if id not in others:
            continue
        for key in ("question", "options", "answer"):
            if row[key] != others[id][key]:
                raise common.InputError(f"the question {id} is not the same in both runs")
        outcomes.append((row["correct"], others[id]["correct"]))
        n_reworded += row.get("prompt") != others[id].get("prompt")

    only_one = outcomes.count((True, False))
    only_other = outcomes.count((False, True))
    return (
        f"{len(outcomes)} questions in both; right in both {outcomes.count((True, True))}, "
        f"in the first alone {only_one}, in the second alone {only_other}, "
        f"in none {outcomes.count((False, False))}; "
        f"McNemar's p = {mcnemar(only_one, only_other):.4f}"
        + (f"; {n_reworded} of them were asked in other words" if n_reworded else "")
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
# Files of critiques


def report_errors_named(paths: list[Path]):
    """Print how many errors of each type a critic named, beside the paper's Table 2."""
    columns = report_errors.describe_files(paths)
    print_table([*columns], [*columns.values()])
    print(
        "paper, Iter1 to Iter4: its Table 2. Who counted them, and in how many answers, is not\n"
        "known: compare how counts fall, not counts. A critic does not count what it does not see."
    )
    for doubt in report_errors.list_doubts(paths):
        print(doubt)


# ------------------------------------------------------------------------------
# The command


def main():
    """Print the tables of what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="directory of a run of the loop; directories that evaluate.py wrote; or files of "
        "critiques",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="of a run in the tiny world also what the table leaves out: critiques, lengths, "
        "training (other runs have it anyway)",
    )
    args = parser.parse_args()
    for path in args.runs:
        if not path.exists():
            raise common.InputError(f"{path}: no such file or directory")
    are_files = [path.is_file() for path in args.runs]
    if all(are_files):
        report_errors_named(args.runs)
        return
    if any(are_files):
        raise common.InputError(
            "directories of runs or files of critiques are expected, not both: see --help"
        )
    if len(args.runs) == 1 and not (args.runs[0] / "results.json").exists():
        report_loop(args.runs[0], args.all)
        return

    runs = {}
    for run in args.runs:
        path = run / "results.json"
        common.read_keys(path, *NEEDED)  # or an InputError
        runs[str(run)] = common.read_json(path)
    report_results(runs)


def print_table(names: list[str], columns: list[dict]):
    """Print columns side by side, each with its name above it.

    A column is {row's name: value}. Rows that a column lacks are left empty.
    """
    rows = merge_rows(columns)
    texts = list(names)
    for column in columns:
        texts += [str(value) for value in column.values()]

    first_width = max(26, *map(len, rows))
    width = max(14, 2 + max(map(len, texts)))
    print(" " * first_width + "".join(f"{name:>{width}}" for name in names))
    for row in rows:
        cells = [f"{column.get(row, ''):>{width}}" for column in columns]
        print(f"{row:{first_width}}" + "".join(cells))


def merge_rows(columns: list[dict]) -> list[str]:
    """Merge the names of the columns' rows: a row stands after the one before it in its column.

    >>> merge_rows([{"score": 1}, {"score": 1, "pairs": 1, "loss": 1}, {"pairs": 1, "words": 1}])
    ['score', 'pairs', 'words', 'loss']
    """
    rows = []
    for column in sorted(columns, key=len, reverse=True):  # the longest gives the order
        place = 0
        for name in column:
            if name not in rows:
                rows.insert(place, name)
            place = rows.index(name) + 1
    return rows


if __name__ == "__main__":
    common.run(main)
