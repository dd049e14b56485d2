r"""Stage 5: score a model on a benchmark.

    python evaluate.py --benchmark shapes --model shapes/model \
        --input runs/shapes/dev --output runs/mine/base/eval
    python evaluate.py --benchmark mvbench --model DIR --input MVBench \
        --output runs/real/base/mvbench
    python evaluate.py --benchmark list    # what each needs, and from where

This is the only stage that sees the truth. The benchmark of the tiny world,
shapes, is in this file, as the example; each public benchmark is a file in
benchmarks/, and so is one of your own. The public ones ask, and read replies,
as lmms-eval does (EvolvingLMMs-Lab/lmms-eval, 75571cfe, model internvl2, 32
frames): its prompts and parsers differ from one benchmark to the next.

--output is a directory:

    predictions.jsonl   one row per question: the item (benchmarks.make_item
                        says its keys), run and n_questions (see mark_run),
                        prompt, initial (the reply), parsed (index of an
                        option, or null), correct
    results.json        the score and its 95% interval, bootstrapped over
                        videos; the accuracy, also by task and by tag; n of N
                        questions, n_unparsed, n_empty
    submission.json     with --full: {id: index of the chosen option}

A reply that is empty or cannot be parsed counts as wrong. Every figure is over
n of N questions: those whose video is missing or cannot be read are left out.
predictions.jsonl has the keys of the record, so critique.py and refine.py can
read it like responses.jsonl.
"""

import importlib
import inspect
import math
import os
import random
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import benchmarks
import common
import outputs
import prompts
import vlm

RESAMPLES = 1000  # of the bootstrap

# ------------------------------------------------------------------------------
# shapes, the benchmark of the tiny world: free answers, compared with the truth


def load_shapes(directory: Path) -> Iterator[dict]:
    """Yield the items of the tiny world's benchmark, whose answers are free text.

        questions.json    [{"video": ..., "question": ..., "answer": ...}, ...]
        videos/*.mp4

    From python -m shapes.world. Results are also broken down by the kind of question, spatial or
    temporal, and by the type of error that a wrong answer is.
    """
    path = directory / "questions.json"
    for where, row in benchmarks.numbered(common.read_json(path), path):
        video, task, kind, question, answer, error_type = benchmarks.need(
            row, where, "video", "type", "kind", "question", "answer", "error_type"
        )
        yield benchmarks.make_item(
            where,
            benchmark="shapes",
            task=task,
            id=f"{video}/{task}",
            video=f"videos/{video}",
            question=question,
            options=[answer],
            answer=0,
            tags={"kind": kind, "error_type": error_type},
        )


def parse_shapes(item: dict, reply: str) -> int | None:
    """Compare a reply with the only option, the true answer: 0 if they agree, else None.

    Things may be listed in any order; all else must agree word by word.
    """
    compared = listed if item["task"] == "objects" else plain
    return 0 if compared(reply) == compared(item["options"][0]) else None


def plain(text: str) -> list[str]:
    """Split a text into its words, in lower case, without punctuation."""
    letters = [letter if letter.isalnum() else " " for letter in text.lower()]
    return "".join(letters).split()


def listed(text: str) -> set[str]:
    """Collect the things that a text lists.

    "A red circle and a blue square." -> {"a red circle", "a blue square"}
    """
    things = [" ".join(plain(part)) for part in text.replace(" and ", ", ").split(",")]
    return {thing for thing in things if thing}


def name_errors(item: dict, reply: str) -> list[str]:
    """Name the error types of a reply to a shapes question: [] if it is right.

    In a wrong list, what it adds and what it leaves out are two types of error.
    """
    if parse_shapes(item, reply) == item["answer"]:
        return []
    if item["task"] != "objects":
        return [item["tags"]["error_type"]]

    said = listed(reply)
    true = listed(item["options"][item["answer"]])
    errors = []
    if said - true:
        errors.append("object_hallucination")
    if true - said:
        errors.append("detail_omission")
    return errors


# Without a prompt of its own: it asks as generate.py does
SHAPES = benchmarks.Benchmark(load_shapes, None, parse_shapes, max_new_tokens=32)

# ------------------------------------------------------------------------------
# Any benchmark


def find_benchmark(name: str) -> benchmarks.Benchmark:
    """Find a benchmark by its name: shapes, or a file in benchmarks/."""
    if name == "shapes":
        return SHAPES
    return importlib.import_module(f"benchmarks.{name}").BENCHMARK


def load_items(benchmark: str, directory, full: bool = False) -> list[dict]:
    """Load the items of a benchmark, whether or not their videos are there.

    Args:
        full: also the items without a public answer, whose answer is None

    Returns:
        items, see benchmarks.make_item

    Raises:
        InputError: names the file, row and key that are at fault
    """
    loaded = list(find_benchmark(benchmark).load(Path(directory)))
    items = [item for item in loaded if full or item["answer"] is not None]
    if not loaded:
        raise common.InputError(f"{directory}: no question")
    if not items:
        raise common.InputError(
            f"{directory}: no question with a public answer (--benchmark list says where they are "
            f"read from); --full asks all {len(loaded)}"
        )

    for item in items:
        if item["benchmark"] != benchmark:  # its file was copied from another one
            raise common.InputError(
                f"benchmarks/{benchmark}.py: make_item is told benchmark={item['benchmark']!r}"
            )
    [(id, times)] = Counter(item["id"] for item in items).most_common(1)
    if times > 1:
        raise common.InputError(f"{directory}: duplicate id {id!r}, of {times} questions")
    return items


def render_prompt(item: dict, answer: str = prompts.DEFAULT.answer) -> str:
    """Render the prompt of an item, which follows the frames.

    answer: prompt that asks a question of a benchmark without a prompt of its own
    """
    render = find_benchmark(item["benchmark"]).render
    if render is None:
        return prompts.fill(answer, question=item["question"])
    return render(item)


def parse_reply(item: dict, reply: str) -> int | None:
    """Parse a reply -> index of the option that it stands for, or None.

    Some parsers read a letter that no option has: then the index is past the options, so wrong.
    """
    return find_benchmark(item["benchmark"]).parse(item, reply)


# ------------------------------------------------------------------------------
# Scores


def score(rows: list[dict]) -> dict:
    """Compute the figures of results.json from the rows of predictions.jsonl.

    These are the benchmark's own score with its interval, and the accuracy: of all rows, and by
    task and by tag.
    """
    scored = [row for row in rows if "dropped" not in row]
    if not scored:
        raise common.InputError("no video could be read, so there is nothing to score")

    benchmark = find_benchmark(rows[0]["benchmark"])
    n_tasks = len(benchmarks.group_by(scored, "task"))
    drops = Counter(row.get("dropped") for row in rows)
    results = {
        "score": round(benchmark.score(scored), 4),
        "score_is": benchmark.score_is.replace("{n_tasks}", f"{n_tasks}"),
        "accuracy": round(benchmarks.accuracy(scored), 4),
        "interval": interval(scored, benchmark.score),  # of the score
        **count(rows),
        "n_videos": len(common.group_by_video(scored)),
        "n_missing": drops["missing_video"],
        "n_unreadable": drops["unreadable_video"],
    }
    for name in ("task", *rows[0]["tags"]):
        groups = benchmarks.group_by(rows, name)
        results[f"by_{name}"] = {f"{value}": measure(group) for value, group in groups.items()}

    if benchmark is SHAPES:
        errors = Counter(error for row in scored for error in row["true_errors"])
        results["n_wrong"] = sum(not row["correct"] for row in scored)
        names = [*prompts.ERROR_TYPES, *errors]  # also a type that has another name there
        results["errors"] = {name: errors[name] for name in names}
    return results


def interval(rows: list[dict], statistic: Callable[[list[dict]], float]) -> list[float]:
    """Bootstrap a statistic's 95% interval -> [low, high].

    Videos are drawn, not questions, since the questions about one video are not independent.
    """
    videos = [group for _, group in common.group_by_video(rows)]
    draw = random.Random(0)
    values = []
    for _ in range(RESAMPLES):
        resample = []
        for group in draw.choices(videos, k=len(videos)):
            resample += group
        values.append(statistic(resample))
    values.sort()
    low = values[int(0.025 * RESAMPLES)]
    high = values[int(0.975 * RESAMPLES)]
    return [round(low, 4), round(high, 4)]


def count(rows: list[dict]) -> dict:
    """Count the n of N rows that are not dropped, and the unparsed and empty replies among them.

    A reply in free text (to a question with one option) is right or wrong, but never unparsed.
    """
    scored = [row for row in rows if "dropped" not in row]
    unparsed = [row for row in scored if row["parsed"] is None and len(row["options"]) > 1]
    return {
        "n": len(scored),
        "N": len(rows),
        "n_unparsed": len(unparsed),
        "n_empty": sum(not row["initial"] for row in scored),
    }


def measure(rows: list[dict]) -> dict:
    """Compute the accuracy, with its interval, of rows with one task or tag; null if n is 0."""
    scored = [row for row in rows if "dropped" not in row]
    if not scored:
        return {"accuracy": None, "interval": None, **count(rows)}
    return {
        "accuracy": round(benchmarks.accuracy(scored), 4),
        "interval": interval(scored, benchmarks.accuracy),
        **count(rows),
    }


# ------------------------------------------------------------------------------
# The stage


def drop_missing(items: list[dict], root: Path, partial: bool):
    """Drop the items whose video is missing; print how many items and videos each task has.

    Raises:
        InputError: if a video is missing, unless partial
    """
    for item in items:
        if not os.path.exists(root / item["video"]):  # False also where it may not be looked
            item["dropped"] = "missing_video"

    for task, group in benchmarks.group_by(items, "task").items():
        videos = {item["video"] for item in group}
        missing = {item["video"] for item in group if "dropped" in item}
        line = f"{task:26} {len(group):5} items, {len(videos):5} videos, {len(missing):4} missing"
        if missing:
            line += f", such as {min(missing)}"
        print(line)

    if all("dropped" in item for item in items):
        raise common.InputError(f"{root}: none of the videos is there, so there is nothing to ask")
    if not partial and any("dropped" in item for item in items):
        raise common.InputError(
            f"videos are missing in {root}; --partial leaves their questions out, and says n/N "
            "with every figure"
        )


def mark_run(groups: list, n_questions: int, content: dict):
    """Note in every row which run it is of, so that joined shards can be told apart, and counted.

    The rows get `run`, a fingerprint of what makes the replies comparable, and `n_questions`: how
    many questions the whole run has, without --limit and --shard.

    content: of meta.json
    """
    made_by = [content[key] for key in ("benchmark", "model", "prompts", "frames", "dtype")]
    if content["frame_tokens"]:
        made_by.append(content["frame_tokens"])
    run = common.fingerprint(*made_by)
    for _, rows in groups:
        for row in rows:
            row["run"] = run
            row["n_questions"] = n_questions


def check_one_run(path: Path, rows: list[dict]):
    """Raise InputError if rows of different runs were joined."""
    first = rows[0]
    for row in rows:
        for key in ("run", "n_questions"):
            if row.get(key) != first.get(key):
                raise common.InputError(
                    f"{path}: rows of different runs, {first['id']} and {row['id']}: `{key}` is "
                    f"{first.get(key)} and {row.get(key)}. Join the shards of one run, which have "
                    "the same model, questions, --frames and --dtype"
                )


def list_prompts(items: list[dict], root: Path, answer: str) -> list[tuple[str, str]]:
    """List the prompts of all items with where they are from, for vlm.check_model."""
    listed = []
    for item in items:
        listed.append((f"{root}, question {item['id']!r}", render_prompt(item, answer)))
    return listed


def has_own_prompts(args) -> bool:
    """Say whether the benchmark asks in words of its own, which are those of no other stage."""
    return find_benchmark(args.benchmark).render is not None


def tell_how_it_asks(args):
    """Print a line if the benchmark has words of its own, so that --prompts changes nothing."""
    if args.prompts and has_own_prompts(args):
        print(f"{args.benchmark} asks in its own words, which --prompts does not change")


def what_was_asked(groups: list) -> list[dict]:
    """Give the items as they are wherever the videos are, for the fingerprint of the input.

    So an output of before is taken over when videos have arrived that were missing.
    """
    depends_on_files = ("video", "start", "end", "dropped")
    asked = []
    for _, rows in groups:
        for row in rows:
            asked.append({key: row[key] for key in row if key not in depends_on_files})
    return asked


def segment(item: dict) -> tuple[float, float]:
    """Give the seconds of the video that an item shows, as a key for sorting: (start, end)."""
    start = item["start"] or 0.0
    end = math.inf if item["end"] is None else item["end"]
    return start, end


def write_replies(model, tokenizer, shown: vlm.Shown, answer: str, args):
    """Reply to the rows about some videos, greedily and as one batch; judge the replies.

    The rows get `prompt`, `initial` (the reply), and what `judge` adds.

    answer: see render_prompt
    """

    def ask(row):
        return render_prompt(row, answer)

    max_new_tokens = find_benchmark(args.benchmark).max_new_tokens
    for row, (reply, _) in vlm.reply(model, tokenizer, shown, ask, max_new_tokens):
        row["prompt"] = ask(row)
        row["initial"] = reply
        judge(row, args)


def judge(row: dict, args):
    """Add `parsed` and `correct` to a row with a reply, for shapes also `true_errors`.

    correct is None if the answer is not public.
    """
    row["parsed"] = parse_reply(row, row["initial"])
    if row["answer"] is None:
        row["correct"] = None
    else:
        row["correct"] = choose(row, args) == row["answer"]
    if row["benchmark"] == "shapes":
        row["true_errors"] = name_errors(row, row["initial"])


def choose(row: dict, args) -> int | None:
    """Give the index of the option that a reply counts as.

    That of an unparsed reply is None, or with --unparsed random one that is drawn.
    """
    if row["parsed"] is not None or args.unparsed == "wrong":
        return row["parsed"]
    draw = random.Random(f"{args.seed}/{row['id']}")
    return draw.randrange(len(row["options"]))


def write_results(rows: list[dict], meta: dict, args):
    """Write results.json and print the score; if answers are not public, write submission.json.

    meta: what meta.json says about the run, or {} (shards that were joined have none)
    """
    begun_with = meta.get("arguments", {})
    public = [row for row in rows if row["answer"] is not None]
    results = score(public) if public else {"score": None, "n": 0, "N": 0}
    n_questions = rows[0].get("n_questions")  # rows that evaluate.py did not write may lack it
    are_all_here = len(rows) == n_questions
    results |= {
        "n_questions": n_questions,
        "partial": results["n"] < results["N"] or not are_all_here,
        "benchmark": args.benchmark,
        "model": begun_with.get("model"),
        "seed": args.seed,
        "unparsed": args.unparsed,
        "arguments": begun_with,
        "versions": meta.get("versions"),
        "commit": meta.get("commit"),
    }
    common.write_json(args.output / "results.json", results)
    if public:
        print_score(results)
    if not are_all_here:
        print(f"PARTIAL: {len(rows)} of {n_questions or 'an unknown number of'} questions are here")
    if len(public) < len(rows):
        write_submission(rows, args)


def print_score(results: dict):
    """Print the score, what it is of, and how many replies were not understood."""
    partial = " (PARTIAL)" if results["partial"] else ""
    print(
        f"{results['benchmark']}: score {results['score']:.3f} {results['interval']} "
        f"({results['score_is']}), {results['n']}/{results['N']} questions, "
        f"{results['n_videos']} videos{partial}; "
        f"{results['n_unparsed']} replies unparsed, {results['n_empty']} empty"
    )


def write_submission(rows: list[dict], args):
    """Write submission.json: the chosen option of every question that has one."""
    path = args.output / "submission.json"
    choices = {row["id"]: choose(row, args) for row in rows if "dropped" not in row}
    submission = {id: index for id, index in choices.items() if index is not None}
    common.write_json(path, submission)
    print(
        f"{path}: left out are {len(rows) - len(choices)} questions without a video and "
        f"{len(choices) - len(submission)} unparsed replies "
        "(--rescore --unparsed random draws for those)"
    )


def rescore(args):
    """Judge predictions.jsonl again, in place, and write results.json: no model, no video."""
    if common.process().rank:
        return
    path = args.output / "predictions.jsonl"
    meta_path = common.meta_path(path)
    meta = common.read_json(meta_path) if meta_path.exists() else {}
    if meta and not meta["finished"]:
        raise common.InputError(
            f"{path} is unfinished; the command that began it resumes it, and then scores it"
        )
    rows = common.read_jsonl(path, ("id", "video", "initial"))
    if not rows:
        raise common.InputError(f"{path} has no rows, so there is nothing to score")
    check_one_run(path, rows)
    for row in rows:
        if row.get("benchmark") != args.benchmark:
            raise common.InputError(f"{path}: {row['id']} is not a question of {args.benchmark}")
        if "dropped" not in row:
            judge(row, args)
    common.write_jsonl(path, rows)
    write_results(rows, meta, args)


def describe(name: str) -> str:
    """Describe what a benchmark expects on disk, and its source: the docstring of its file."""
    if name == "shapes":
        documented = load_shapes
    else:
        documented = importlib.import_module(f"benchmarks.{name}")
    return f"{name}\n{textwrap.indent(inspect.getdoc(documented), '    ')}\n"


def parse_args():
    """Parse the command line, and refuse what does not go together."""
    names = ("shapes", *benchmarks.names())
    parser = common.make_parser(
        __doc__,
        "directory of the results",
        "directory of the benchmark",
        videos=False,
        retry=True,
        required=(),
    )
    prompts.add_option(parser)
    common.add_batches(parser)
    add = parser.add_argument_group("the benchmark").add_argument
    add(
        "--benchmark",
        required=True,
        choices=(*names, "list"),
        metavar="NAME",
        help=f"one of {', '.join(names)}; list: print what must be on disk for each, "
        "and its source",
    )
    add(
        "--partial",
        action="store_true",
        help="continue if videos are missing; every figure says n/N",
    )
    add(
        "--full",
        action="store_true",
        help="also ask what has no public answer, and write submission.json (egoschema)",
    )
    add(
        "--unparsed",
        choices=("wrong", "random"),
        default="wrong",
        help="what an unparsed reply counts as; random: an option is drawn, as lmms-eval does "
        "for some benchmarks",
    )
    add("--seed", type=common.seed_number, default=0, help="of --unparsed random")
    add(
        "--rescore",
        action="store_true",
        help="only score predictions.jsonl again; needs --benchmark and --output alone",
    )
    args = parser.parse_args()

    if args.benchmark == "list":
        return args
    if not args.output or not (args.rescore or (args.model and args.input)):
        parser.error("--model, --input and --output are needed; with --rescore --output alone")
    if args.unparsed == "random" and not find_benchmark(args.benchmark).draws_unparsed:
        drawn = [name for name in names if find_benchmark(name).draws_unparsed]
        parser.error(f"--unparsed random is for {', '.join(drawn)}")
    return args


def main():
    """Score a model on a benchmark."""
    args = parse_args()
    if args.benchmark == "list":
        for name in ("shapes", *benchmarks.names()):
            print(describe(name))
        return
    if args.rescore:
        rescore(args)
        return

    root = Path(args.input).resolve()
    items = load_items(args.benchmark, root, args.full)
    if args.full and all(item["answer"] is not None for item in items):
        raise common.InputError(f"--full: all answers of {args.benchmark} are public; leave it out")
    drop_missing(items, root, args.partial)
    groups = [(video, sorted(rows, key=segment)) for video, rows in common.group_by_video(items)]
    groups = groups[: args.limit]

    wording = prompts.choose(args, [])
    texts = list_prompts(items, root, wording.answer)
    vlm.check_model(args.model, texts, args.frame_tokens)
    asked = [prompt for _, prompt in texts]
    handed_on = {} if has_own_prompts(args) else wording._asdict()
    meta = common.make_meta(args, asked, handed_on, root, what_was_asked(groups))
    groups = common.take_shard(groups, args)
    mark_run(groups, len(items), meta["content"])
    again = ["missing_video"]  # videos that have arrived since
    if args.retry_unreadable:
        again.append("unreadable_video")
    out = outputs.Output(args.output / "predictions.jsonl", args, meta, groups, tuple(again))
    if out.finished:
        return
    tell_how_it_asks(args)
    model, tokenizer = vlm.load(args)
    for shown in vlm.watch(model, tokenizer, out.left, root, args):
        write_replies(model, tokenizer, shown, wording.answer, args)
        out.write(shown.rows)
    rows = out.collect()
    if rows:  # in the first process, if there are several
        write_results(rows, meta, args)
    out.finish("replies")  # last, so that what is called finished has its scores


if __name__ == "__main__":
    common.run(main)
