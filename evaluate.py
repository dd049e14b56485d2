"""Stage 5: scores a model on a benchmark.

    python evaluate.py --benchmark shapes --model shapes/model --input runs/shapes/dev --output runs/mine/base/eval

This is the only stage that sees the truth. `--output` is a directory:

    predictions.jsonl   a row a question: the item (see load_items), initial (the reply), correct, true_errors
    results.json        accuracy and n, in all and by type of question; errors by the six types; 95% interval, bootstrapped over videos

predictions.jsonl has the keys of the record, so that critique.py and refine.py run on it as on responses.jsonl.
"""
import random
from pathlib import Path

import common

BENCHMARKS = ("shapes",)
MAX_NEW_TOKENS = {"shapes": 32}
RESAMPLES = 1000  # of the bootstrap

# ---------------------------------------------------------------- benchmarks: items, prompt, parser

def load_items(benchmark, directory):
    """The questions of a benchmark -> list of items (dicts).

    An item: id, benchmark, task (the type of question), video (path below the directory), question, options (list of texts), answer
    (index of the right one), tags (what scores are broken down by). A row of predictions.jsonl is an item with its reply.
    """
    path = Path(directory) / "questions.json"
    items = []
    for number, row in enumerate(common.read_json(path)):
        missing = [key for key in ("video", "type", "kind", "question", "answer", "error_type") if key not in row]
        if missing:
            raise common.InputError(f"{path}, item {number}: no key {missing[0]!r}")
        items.append({"id": f"{row['video']}/{row['type']}", "benchmark": benchmark, "task": row["type"], "video": f"videos/{row['video']}",
                      "question": row["question"], "options": [row["answer"]], "answer": 0,
                      "tags": {"kind": row["kind"], "error_type": row["error_type"]}})
    return items

def render_prompt(item):
    """The task text of an item, without the frames."""
    return common.ANSWER_PROMPT.format(question=item["question"])

def plain(text):
    """What is compared: words in lower case, in order, without punctuation."""
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()

def listed(text):
    """The things that 'a red circle, a blue square and a white triangle.' names, as a set."""
    return {" ".join(plain(part)) for part in text.replace(" and ", ", ").split(",") if plain(part)}

def parse_reply(item, reply):
    """Index of the option that a reply stands for, or None.

    shapes is free-form: its only option is the true answer. Lists may come in any order; all else must agree word by word.
    """
    same = listed if item["task"] == "objects" else plain
    return next((index for index, option in enumerate(item["options"]) if same(option) == same(reply)), None)

def name_errors(item, reply):
    """The error types of a reply: [] where it is right. A wrong list is told apart by what it adds and what it leaves out."""
    if parse_reply(item, reply) == item["answer"]:
        return []
    if item["task"] != "objects":
        return [item["tags"]["error_type"]]
    said, true = listed(reply), listed(item["options"][item["answer"]])
    return [error for error, wrong in (("object_hallucination", said - true), ("detail_omission", true - said)) if wrong]

# ---------------------------------------------------------------- scores

def interval(rows):
    """95% interval of the accuracy, bootstrapped over videos, since the questions about one share it -> [low, high]."""
    videos = [[row["correct"] for row in rows] for _, rows in common.group_by_video(rows)]
    draw = random.Random(0)
    means = []
    for _ in range(RESAMPLES):
        sample = [correct for video in draw.choices(videos, k=len(videos)) for correct in video]
        means.append(sum(sample) / len(sample))
    means.sort()
    return [round(means[int(RESAMPLES * share)], 4) for share in (0.025, 0.975)]

def score(rows):
    """Predictions -> the figures of results.json. Questions about unreadable videos are left out, and counted."""
    scored = [row for row in rows if "dropped" not in row]
    if not scored:
        raise common.InputError("no video could be read, so there is nothing to score")
    mean = lambda part: {"accuracy": round(sum(row["correct"] for row in part) / len(part), 4), "n": len(part)}
    by_task = {task: mean([row for row in scored if row["task"] == task]) for task in sorted({row["task"] for row in scored})}
    errors = {error: sum(error in row["true_errors"] for row in scored) for error in common.ERROR_TYPES}
    return {**mean(scored), "interval": interval(scored), "n_videos": len(common.group_by_video(scored)), "n_unreadable": len(rows) - len(scored),
            "by_task": by_task, "n_wrong": sum(not row["correct"] for row in scored), "errors": errors}

# ---------------------------------------------------------------- the stage

def write_replies(model, tokenizer, video, rows, args):
    """Adds initial (the reply, greedy), correct and true_errors to the rows of one video, decoded as one batch."""
    replies = common.decode(model, tokenizer, video, [render_prompt(row) for row in rows], MAX_NEW_TOKENS[args.benchmark])
    for row, (reply, _) in zip(rows, replies):
        errors = name_errors(row, reply)
        row |= {"initial": reply, "correct": not errors, "true_errors": errors}

def main():
    parser = common.make_parser(__doc__, "directory of the results; run again, it goes on where it stopped")
    parser.add_argument("--benchmark", required=True, choices=BENCHMARKS)
    parser.add_argument("--input", required=True, help="directory of the benchmark")
    args = parser.parse_args()

    root = Path(args.input).resolve()
    groups = common.take_shard(common.group_by_video(load_items(args.benchmark, root)), args.shard)[: args.limit]
    meta = common.make_meta(args, [common.ANSWER_PROMPT], root, groups)
    out = common.Output(args.output / "predictions.jsonl", args, meta, groups)
    if out.finished:
        return
    model, tokenizer = common.load(args)
    for rows, video in common.watch_each(model, tokenizer, out.left, root, args):
        if video:
            write_replies(model, tokenizer, video, rows, args)
        out.write(rows)
    results = score(out.rows)
    common.write_json(args.output / "results.json", results | {"benchmark": args.benchmark, "model": args.model, "seed": args.seed})
    out.finish("replies")  # last, so that what is called finished has its scores
    print(f"accuracy {results['accuracy']:.3f} {results['interval']}, n = {results['n']} questions about {results['n_videos']} videos")

if __name__ == "__main__":
    common.run(main)
