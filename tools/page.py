"""Show a run of the loop as a page: its figures, and each pair beside the frames of its video.

    python -m tools.page runs/loop               # writes runs/loop/page.html
    python -m tools.page runs/loop --tokens 8    # also where training moved probability
    python -m tools.page runs/loop --judge 20    # also 20 pairs of each round, to be judged by hand

The page is one file, which opens from disk and needs no network. It reads what
the stages wrote so far, also while they run: rounds, training, scores, as far
as they are there. The frames are those that the model saw; --rows says about
how many rows, drawn at random, the page has them.

Judgements are kept in the browser, and downloaded as judged.jsonl. Beside the
pairs.jsonl of their round python -m tools.report counts them.
"""

import argparse
import base64
import gzip
import json
import random
import re
from pathlib import Path

import common
from tools import page_frames, page_tokens, report, report_rounds

TEMPLATE = Path(__file__).with_name("page.html")
GLOSSARY = Path(__file__).parent.parent / "docs" / "dpo.md"
# Columns of metrics.jsonl that are plotted
PLOTTED = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "lengths/chosen",
    "lengths/rejected",
    "grad_norm",
)
# Keys of a row that the page shows, in the order in which it has them
SHOWN = ("id", "strip", "kind", "question", "initial", "critique", "error_types", "revised")
PATHS = ("input", "output", "videos", "model", "prompts", "critic_model", "without")


def main():
    """Write the page of a run."""
    args = parse_args()
    directories = list_directories(args.run)
    rounds = [directory for directory in directories if directory.name != "base"]
    draw = random.Random(args.seed)

    rows = {directory.name: read_rows(directory) for directory in rounds}
    answers = {directory.name: read_answers(directory) for directory in directories}
    to_judge = {name: draw_pairs(of_round, args.judge, draw) for name, of_round in rows.items()}
    to_show = draw_rows(directories, rows, answers, args.rows, draw)
    for directory in rounds:
        to_show[directory] += to_judge[directory.name]
    strips, why_none = page_frames.make_strips(to_show)

    page = {
        "run": describe_run(args.run, directories),
        "accuracy": list_accuracies(directories),
        "training": list_training(rounds),
        "packed": page_tokens.draw_packed(rounds),
        "tokens": page_tokens.compare(rounds, args.tokens, draw),
        "why_no_frames": why_none,
    }
    details = {
        "keys": SHOWN,
        "rows": {name: [shorten(row) for row in of_round] for name, of_round in rows.items()},
        "answers": merge_answers(answers),
        "strips": strips,
        "judge": {name: list_to_judge(pairs, draw) for name, pairs in to_judge.items()},
    }
    path = args.run / "page.html"
    common.replace(path, fill(page, details))
    print(path)


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="directory of the run, or of one of its rounds")
    add("--rows", type=common.at_least(0), default=100, metavar="N", help="rows with frames")
    add(
        "--tokens",
        type=common.at_least(0),
        default=0,
        metavar="N",
        help="pairs of each round whose tokens are coloured by how far training moved their "
        "log-probs; loads the models",
    )
    add(
        "--judge",
        type=common.at_least(0),
        default=0,
        metavar="N",
        help="pairs of each round to be judged by hand",
    )
    add("--seed", type=int, default=0, help="of what is drawn")
    args = parser.parse_args()
    if not args.run.is_dir():
        raise common.InputError(f"{args.run}: no such directory")
    return args


def list_directories(run: Path) -> list[Path]:
    """List base/ and round*/ of a run, or a round alone, as far as they are there."""
    directories = report_rounds.find_rounds(run)
    if report_rounds.has_begun(run / "base"):
        directories.insert(0, run / "base")
    if not directories and report_rounds.has_begun(run):
        directories = [run]
    if not directories:
        raise common.InputError(
            f"{run}: neither base/ nor round*/ with something that a stage wrote "
            "(responses.jsonl, critiques.jsonl, pairs.jsonl, model/ or eval/)"
        )
    return directories


def fill(page: dict, details: dict) -> str:
    """Fill the template: what is seen first is JSON, the rest is compressed.

    In a script `<` could end it, so that JSON's other spelling of this letter is taken.
    """
    template = TEMPLATE.read_text(encoding="utf-8")
    seen_first = json.dumps(page, ensure_ascii=False).replace("<", "\\u003c")
    compressed = gzip.compress(json.dumps(details, ensure_ascii=False).encode(), mtime=0)
    filled = {"PAGE": seen_first, "DETAILS": base64.b64encode(compressed).decode()}
    return re.sub("@(PAGE|DETAILS)@", lambda found: filled[found[1]], template)


# ------------------------------------------------------------------------------
# Figures


def describe_run(run: Path, directories: list[Path]) -> dict:
    """Describe the run: its name, how it was made, and the rows of tools.report's table."""
    columns = []
    for directory in directories:
        results = report.read_scores(directory)
        scores = report.describe_scores(directory, results) if results else {}
        columns.append(scores | report_rounds.describe_round(directory))
    table = []
    for name in report.merge_rows(columns):
        table.append([name, *(str(column.get(name, "")) for column in columns)])
    return {
        "name": run.resolve().name,
        "columns": [directory.name for directory in directories],
        "table": table,
        "made_by": [line for directory in directories for line in list_commands(directory)],
        "accounts": report_rounds.list_accounts(directories),
    }


def list_commands(directory: Path) -> list[list[str]]:
    """List how each output of a round was made: [its name, stage, model, options, commit].

    Of paths the page has only the last part.
    """
    commands = []
    for output in report_rounds.TIMED.values():
        meta_path = common.meta_path(directory / output)
        if not meta_path.exists():
            continue
        stage, arguments, commit = common.read_keys(meta_path, "stage", "arguments", "commit")
        given = {}
        for name, value in arguments.items():
            if name not in PATHS and value not in (None, False):
                given[name.replace("_", "-")] = value
        options = " ".join(f"--{name} {value}" for name, value in given.items())
        model = "/".join(Path(str(arguments.get("model"))).parts[-2:])
        made = [f"{directory.name}/{output}", stage, model, options, f"{commit or ''}"[:7]]
        commands.append(made)
    return commands


def list_accuracies(directories: list[Path]) -> dict:
    """List the scores with their intervals; `ceiling` is the accuracy of the base's revisions."""
    points = []
    for directory in directories:
        results = report.read_scores(directory)
        if results and results["score"] is not None:
            low, high = results["interval"]
            points.append(
                {"name": directory.name, "value": results["score"], "low": low, "high": high}
            )
    revised = directories[0] / "eval" / "pairs.jsonl"
    is_base = directories[0].name == "base"
    ceiling = None
    if is_base and revised.exists():
        ceiling = report.score_revisions(common.read_jsonl(revised, incomplete=True))
    return {"points": points, "ceiling": ceiling}


def list_training(rounds: list[Path]) -> list[dict]:
    """List the plots of the training: [{column, meaning, rounds: [[[step, value], ...], ...]}]."""
    meanings = read_glossary()
    metrics = []
    for directory in rounds:
        path = directory / "model" / "metrics.jsonl"
        steps = common.read_jsonl(path, incomplete=True) if path.exists() else []
        metrics.append((directory.name, steps))
    plots = []
    for column in PLOTTED:
        lines = []
        for name, steps in metrics:
            points = [[row["step"], row[column]] for row in steps if row.get(column) is not None]
            if points:
                lines.append({"name": name, "points": points})
        if lines:
            plots.append({"column": column, "meaning": meanings[column], "lines": lines})
    return plots


def read_glossary() -> dict[str, str]:
    """Read what each column of metrics.jsonl means from the table in docs/dpo.md."""
    text = GLOSSARY.read_text(encoding="utf-8")
    [table] = re.findall(r"\n\| column \| meaning \|\n(.*?)\n\n", text, re.DOTALL)
    meanings = {}
    for line in table.splitlines()[1:]:
        columns, meaning = line.strip("| ").split(" | ", 1)
        for column in re.findall("`(.*?)`", columns):
            meanings[column] = meaning.replace("`", "")
    return meanings


# ------------------------------------------------------------------------------
# Rows


def read_rows(directory: Path) -> list[dict]:
    """Read the rows of a round, each as the last stage that has seen it left it."""
    rows = {}
    for name in report_rounds.ROWS:
        path = directory / name
        if path.exists():
            for row in common.read_jsonl(path, ("id", "video"), incomplete=True):
                check_pair(path, row)
                rows[row["id"]] = row
    return list(rows.values())


def check_pair(path: Path, row: dict):
    """Raise InputError if a row has a chosen answer, but not what belongs to it."""
    for key in ("question", "rejected") if "chosen" in row else ():
        if key not in row:
            raise common.InputError(f"{path}, row {row['id']!r}: no key {key!r} beside 'chosen'")


def shorten(row: dict) -> list:
    """Give what the page shows of a row: the values of SHOWN, and what became of it."""
    became = row.get("dropped") or ("pair" if "chosen" in row else "not finished")
    shown = row | {"strip": page_frames.name_strip(row)}
    return [*(shown.get(key) for key in SHOWN), became]


def read_answers(directory: Path) -> list[dict]:
    """Read the answers to the benchmark, of a model that was scored."""
    path = directory / "eval" / "predictions.jsonl"
    if not path.exists():
        return []
    return common.read_jsonl(path, ("id", "video"), incomplete=True)


def merge_answers(answers: dict[str, list[dict]]) -> dict:
    """Put the answers of all models to a question side by side.

    Returns:
        columns: names of the models
        questions: [[id, name of its strip, question, the right answer or "", [[reply, correct],
            ...]], ...]
    """
    scored = {name: rows for name, rows in answers.items() if rows}
    questions = {}
    for number, rows in enumerate(scored.values()):
        for row in rows:
            if "initial" not in row:  # its video cannot be read
                continue
            strip = page_frames.name_strip(row)
            about = [row["id"], strip, row.get("question"), show_answer(row)]
            question = questions.setdefault(row["id"], [*about, [None] * len(scored)])
            question[-1][number] = [row["initial"], row.get("correct")]
    return {"columns": [*scored], "questions": list(questions.values())}


def show_answer(row: dict) -> str:
    """Show the right answer to a benchmark's question, if it is public."""
    answer = row.get("answer")
    return "" if answer is None else row["options"][answer]


# ------------------------------------------------------------------------------
# What is drawn


def draw_rows(directories, rows: dict, answers: dict, n: int, draw) -> dict[Path, list[dict]]:
    """Draw about n rows whose frames are shown, the same number of each round and of the benchmark.

    The frames of a video stand beside all rows about it.
    """
    to_show = {directory: [] for directory in directories}
    parts = []
    for directory in directories:
        if rows.get(directory.name):
            parts.append((directory, rows[directory.name]))
    for directory in directories:
        if answers[directory.name]:  # of the first model that was scored
            parts.append((directory, answers[directory.name]))
            break
    for directory, of_part in parts:
        share = min(len(of_part), round(n / len(parts)))
        to_show[directory] += draw.sample(of_part, share)
    return to_show


def draw_pairs(rows: list[dict], n: int, draw) -> list[dict]:
    """Draw n pairs, or all of them if there are fewer."""
    pairs = [row for row in rows if "chosen" in row]
    return draw.sample(pairs, min(n, len(pairs)))


def list_to_judge(pairs: list[dict], draw) -> list[list]:
    """List pairs as they are judged.

    Returns:
        [[id, name of its strip, question, two answers, the number of chosen, fingerprint], ...]:
        a judgement is of these two answers, and of none that a later run gives the same id
    """
    listed = []
    for row in pairs:
        place = draw.randrange(2)  # of the chosen answer
        answers = [row["rejected"], row["rejected"]]
        answers[place] = row["chosen"]
        fingerprint = common.fingerprint(row["question"], row["chosen"], row["rejected"])
        strip = page_frames.name_strip(row)
        listed.append([row["id"], strip, row["question"], answers, place, fingerprint])
    return listed


if __name__ == "__main__":
    common.run(main)
