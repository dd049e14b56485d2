r"""Stage 1: unlabeled videos in, questions and initial answers out.

The model itself writes spatial and temporal questions about each video, then
answers them: no label, no other model. What it is asked is in
prompts/default.py, or in a file of yours (--prompts).

    python generate.py --model shapes/model --input runs/shapes/round1 \
        --output runs/mine/round1/responses.jsonl
    python generate.py --model shapes/model --input video.mp4 \
        --ask "which way does the red circle move?"
    python generate.py --prompts list    # the default prompts, to edit

reads    video files, folders of frames, or directories of them
writes   id, video, kind, question, initial. A row that fails stays in the file
         with its reason under `dropped`, and later stages skip it:
         unreadable_video, bad_question, duplicate_question, truncated
"""

import argparse
import hashlib
import itertools
import os
import random
import shlex
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LogitsProcessor, TopPLogitsWarper

import common
import media
import outputs
import prompts
import vlm

QUESTION_TOKENS = 64  # a longer one is not a question, it has run away
QUESTION_TOP_P = 0.9  # questions are sampled at temperature 1 within this nucleus


# ------------------------------------------------------------------------------
# Which videos


class Draw(NamedTuple):
    """Videos that were drawn from a pool."""

    root: Path  # absolute, common to all of them
    names: list[str]  # their paths relative to it, sorted
    pool: dict  # {"n": number of videos in the pool, "fingerprint": of their paths below the root}


def draw_videos(args) -> Draw:
    """Draw videos from the pool of all that --input has, without those of --without.

    The pool has one order, decided by --pool-seed alone: of it --skip videos are left out, and the
    next --limit are taken. So two draws that do not overlap in it have no video in common.
    """
    order = order_pool(args.input, args.pool_seed, list_videos_of(args.without or []))
    taken = order[args.skip :][: args.limit]
    if not taken:
        raise common.InputError(
            f"--skip {args.skip}: there are only {len(order)} videos in the pool"
        )
    if args.limit and len(taken) < args.limit:
        print(f"--limit {args.limit}: there are only {len(taken)} videos for it")
    if args.skip:
        print(
            f"videos {args.skip + 1} to {args.skip + len(taken)} of the pool's {len(order)}; the "
            "draws of two outputs are disjoint if `pool` is the same in their meta.json"
        )
    root = Path(os.path.commonpath([file.parent for file in order]))
    names = sorted(file.relative_to(root).as_posix() for file in taken)
    return Draw(root, names, describe_pool(root, order))


def order_pool(inputs: list, seed: int, without: frozenset[Path] = frozenset()) -> list[Path]:
    """Find the videos among files and directories, which are searched to any depth -> their paths.

    They are in random order, in which the inputs take turns: every stretch of it has as many of
    each input as the inputs' sizes allow.

    Args:
        without: absolute paths of videos that are left out, as if they were not there
    """
    shuffled = []  # for each input its files, in random order
    for number, path in enumerate(map(Path, inputs)):
        files = [file for file in find_input(path) if file not in without]
        shuffle = random.Random(f"{seed}/{number}")
        shuffled.append(shuffle.sample(files, len(files)))

    in_turn = []  # the first file of each, the second of each, ...
    for turn in itertools.zip_longest(*shuffled):
        in_turn += [file for file in turn if file is not None]
    if not in_turn:
        raise common.InputError("--without has all videos of --input: there is no other")
    distinct = {}  # a file may be below two inputs, or be found through a link as well
    for file in in_turn:
        distinct.setdefault(os.path.realpath(file), file)
    return list(distinct.values())


def describe_pool(root: Path, files: list[Path]) -> dict:
    """Describe a pool of videos for meta.json, so that one that has changed is noticed."""
    names = sorted(file.relative_to(root).as_posix() for file in files)
    return {"n": len(files), "fingerprint": common.fingerprint(*names)}


def find_input(path: Path) -> list[Path]:
    """List the videos of one input, and print what was passed over.

    The paths are absolute. They are those below the input, also where they are links.

    Raises:
        InputError: if there is none, or one cannot be named
    """
    try:
        path.stat()
        own_name = path.name not in ("", "..")
        path = path.parent.resolve() / path.name if own_name else path.resolve()
        files = [path]
        if path.is_dir():
            files, passed_over = media.find_videos(path)
            if passed_over:
                counts = ", ".join(f"{what} {n}" for what, n in passed_over.most_common())
                print(f"{path}: videos {len(files)}; passed over: {counts}")
    except OSError as error:
        raise common.InputError(f"--input {path}: {error.strerror.lower()}") from error
    if not files:
        suffixes = " ".join(media.VIDEO_SUFFIXES)
        raise common.InputError(
            f"--input {path}: no video below it (looked for {suffixes} and folders of frames)"
        )
    for file in files:
        is_utf8 = not any("\ud800" <= letter <= "\udfff" for letter in str(file))
        if not is_utf8:
            raise common.InputError(
                f"--input {str(file)!r}: a name that is not UTF-8 cannot be written to JSONL; "
                "rename the file"
            )
    return files


def list_videos_of(outputs: list[Path]) -> frozenset[Path]:
    """List the videos of earlier runs of this stage, all shards included, as absolute paths."""
    videos = set()
    for output in outputs:
        path = common.meta_path(output)
        if not path.exists():
            raise common.InputError(
                f"--without {output}: there is no {path.name} beside it; name an output of "
                "generate.py (not shards that were joined, but one of them)"
            )
        root, names = common.read_keys(path, "root", "videos")
        videos.update(Path(root, name) for name in names)
    return frozenset(videos)


def keep_draw(args, draw: Draw) -> Draw:
    """Give the draw that an output was begun with, if it is of the same command.

    A pool in which videos have arrived or gone is drawn from in another order. An output that
    exists keeps its own videos all the same; that they are not those of now is printed.
    """
    path = common.meta_path(args.output)
    if args.overwrite or not args.output.exists() or not path.exists():
        return draw
    meta = common.read_json(path)
    pool = meta.get("pool")
    if not pool or pool == draw.pool or not (args.limit or args.skip):
        return draw
    if not is_same_draw(args, meta):
        return draw  # another command, which Output refuses by name
    if not all(Path(meta["root"], name).exists() for name in meta["videos"]):
        return draw
    print(
        f"{args.output}: the pool had {pool['n']} videos when it was begun, and has "
        f"{draw.pool['n']} now; it keeps those that were drawn then"
    )
    return Draw(Path(meta["root"]), meta["videos"], pool)


def is_same_draw(args, meta: dict) -> bool:
    """Say whether an output was begun with the options that decide which videos are drawn."""
    before = meta["arguments"]
    for option in ("limit", "skip", "pool_seed"):
        if before.get(option) != getattr(args, option):
            return False
    for option in ("input", "without"):  # paths, which may be typed in another way
        then = [Path(meta["directory"], path).resolve() for path in before.get(option) or ()]
        now = [Path(path).resolve() for path in getattr(args, option) or ()]
        if then != now:
            return False
    return True


def refuse_new_videos(args, meta: dict):
    """Raise InputError if the output is of the same command, but more videos are there by now.

    It names the command that asks about those alone. With --limit or --skip nothing is said here:
    `keep_draw` has done it.
    """
    path = common.meta_path(args.output)
    if args.overwrite or args.limit or args.skip or not args.output.exists() or not path.exists():
        return
    content, finished = common.read_keys(path, "content", "finished")
    differing = {key for key, value in meta["content"].items() if content.get(key) != value}
    if differing != {"inputs"}:
        return
    then = list_videos_of([args.output])
    now = {Path(meta["root"], name) for name in meta["videos"]}
    new = now - then
    if not new or new == now:  # if all are new, it is another input
        return

    second = args.output.with_name(f"{args.output.stem}.new{args.output.suffix}")
    more = shlex.join(["--without", str(args.output), "--output", str(second)])
    command = f"{common.command('--shard')} {more}"  # without a shard: it may have none of them
    message = (
        f"{args.output} was made before {len(new)} videos arrived, such as {min(new)}. This asks "
        f"about those alone: {command} (critique.py and refine.py then run on each file)"
    )
    if not finished:
        message += f"; and then, with --without {second} added, this command resumes"
    raise common.InputError(f"{message}; or --overwrite starts anew")


# ------------------------------------------------------------------------------
# Sampling


class Noise(LogitsProcessor):
    """Sample within the top-p nucleus, as an argmax over noisy logits (the Gumbel-max trick).

    argmax(logits / temperature + Gumbel noise) falls on a token with its softmax probability. The
    noise of a row depends on (seed, row id, step) alone: so a run that is resumed, sharded or in
    another order draws what an undisturbed one draws.
    """

    def __init__(self, seed, row_ids: list[str], temperature: float, top_p: float):
        self.temperature = temperature
        self.nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        self.generators = []
        for row_id in row_ids:
            digest = hashlib.sha256(f"{seed}/{row_id}".encode()).digest()
            number = int.from_bytes(digest[:8], "big") >> 1  # 63 bits
            self.generators.append(torch.Generator().manual_seed(number))

    def __call__(self, input_ids, scores):
        """Add noise to one step's scores, (B, vocabulary)."""
        scores = scores.float() / self.temperature
        if self.nucleus:
            scores = self.nucleus(input_ids, scores)
        draws = []
        for generator in self.generators:
            draws.append(torch.empty(scores.shape[-1]).exponential_(generator=generator))
        return scores - torch.stack(draws).log().to(scores.device)  # -log(Exp(1)) is Gumbel


# ------------------------------------------------------------------------------
# Questions and answers


def count_questions(args, questions: dict[str, dict]) -> dict[str, int]:
    """Give the number of questions of each kind: as an option says, else as the prompts say."""
    counts = {kind: entry["number"] for kind, entry in questions.items()}
    for kind in prompts.DEFAULT.questions:  # each has an option
        if getattr(args, kind) is not None:
            counts[kind] = getattr(args, kind)
    return counts


def new_rows(name: str, asked: list[tuple]) -> list[dict]:
    """Make the rows of one video, before anything is asked.

    asked: what prompts.list_questions returns
    """
    rows = []
    for kind, number, _ in asked:
        rows.append({"id": f"{name}/{kind}/{number}", "video": name, "kind": kind})
    return rows


def judge_question(text: str, whole: bool, earlier: set[str]) -> str | None:
    """Say why a question is dropped; None if it is kept.

    Args:
        whole: whether it ended by itself, and was not cut off
        earlier: the video's questions before it, in lower case
    """
    is_question = text.endswith("?") and "\n" not in text
    if not whole or not is_question or not 3 <= len(text.split()) <= 60:
        return "bad_question"
    if text.lower() in earlier:
        return "duplicate_question"
    return None


def write_questions(model, tokenizer, shown: vlm.Shown, asked: list[tuple], args):
    """Add `question` to all rows about some videos, decoded as one batch; `dropped` to bad ones.

    Args:
        asked: what prompts.list_questions returns, from which new_rows made the rows
    """
    texts = {f"{kind}/{number}": prompt for kind, number, prompt in asked}

    def ask(row):
        return texts[row["id"].removeprefix(f"{row['video']}/")]

    row_ids = [f"{row['id']}/question" for row in shown.to_ask()]
    noise = Noise(args.seed, row_ids, 1.0, QUESTION_TOP_P)
    earlier = {}  # questions by video
    for row, (text, whole) in vlm.reply(model, tokenizer, shown, ask, QUESTION_TOKENS, noise):
        asked_before = earlier.setdefault(row["video"], set())
        row["question"] = text
        reason = judge_question(text, whole, asked_before)
        if reason:
            row["dropped"] = reason
        asked_before.add(text.lower())


def write_answers(model, tokenizer, shown: vlm.Shown, prompt: str, args):
    """Add `initial` to rows about some videos, decoded as one batch; `dropped` if it was cut off.

    Args:
        prompt: that asks a question, with its field {question}
    """

    def ask(row):
        return prompts.fill(prompt, question=row["question"])

    noise = None  # greedy
    if args.temperature:
        row_ids = [row["id"] for row in shown.to_ask()]
        noise = Noise(args.seed, row_ids, args.temperature, args.top_p)
    replies = vlm.reply(model, tokenizer, shown, ask, args.max_new_tokens, noise)
    for row, (text, whole) in replies:
        row["initial"] = text
        if not whole:
            row["dropped"] = "truncated"


def answer_one(args):
    """Print the answer to --ask."""
    wording = prompts.choose(args, [])
    texts = [("--ask", args.ask), *prompts.list_texts(wording, args.prompts)]
    vlm.check_model(args.model, texts, args.frame_tokens)
    [file, *_] = order_pool(args.input[:1], args.pool_seed)
    model, tokenizer = vlm.load(args)

    # One row, in which watch_each says if the video cannot be read
    [(rows, video)] = vlm.watch_each(
        model, tokenizer, [(file.name, [{"video": file.name}])], file.parent, args
    )
    if video is None:
        raise common.InputError(rows[0]["error"])
    prompt = prompts.fill(wording.answer, question=args.ask)
    [[(text, _)]] = vlm.decode(model, tokenizer, [video], [[prompt]], args.max_new_tokens)
    print(text)


# ------------------------------------------------------------------------------
# The stage


def parse_args():
    """Parse the command line; --output is needed, or --ask, or --prompts list alone."""
    parser = common.make_parser(
        __doc__,
        "responses.jsonl",
        "video files, folders of frames, and directories of them",
        several_inputs=True,
        videos=False,
        retry=True,
        required=(),
    )
    which = parser.add_argument_group("which videos")
    which.add_argument(
        "--skip",
        type=common.at_least(0),
        default=0,
        metavar="N",
        help="pass over the first N videos of the pool's order, of which --limit takes the next: "
        "--skip 1000 --limit 1000 has none of --limit 1000",
    )
    which.add_argument(
        "--pool-seed",
        type=common.seed_number,
        default=0,
        metavar="SEED",
        help="of the pool's order: the same for all draws that are not to overlap",
    )
    which.add_argument(
        "--without",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="leave out the videos of these earlier outputs of generate.py",
    )
    asking = parser.add_argument_group("questions and answers")
    for kind in prompts.DEFAULT.questions:
        asking.add_argument(
            f"--{kind}",
            type=common.at_least(0, 1000),
            metavar="N",
            help=f"{kind} questions about each video (default: as the prompts say, which is "
            f"{prompts.DEFAULT.questions[kind]['number']} unless --prompts has another number)",
        )
    asking.add_argument(
        "--max-new-tokens",
        type=common.at_least(1),
        default=256,
        metavar="N",
        help="of an answer; a longer one is cut off, and its row dropped as truncated",
    )
    asking.add_argument(
        "--ask",
        metavar="QUESTION",
        help="only print the answer (greedy) to this question about the first input; of a "
        "directory, one video is drawn",
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--temperature",
        type=temperature,
        default=1.0,
        help="of the initial answers; 0 is greedy",
    )
    sampling.add_argument(
        "--top-p",
        type=common.number_between(0, 1, above=True),
        default=1.0,
        help="of the initial answers",
    )
    sampling.add_argument(
        "--seed",
        type=common.seed_number,
        default=0,
        help="of questions and answers",
    )
    prompts.add_option(parser)
    common.add_batches(parser)
    args = parser.parse_args()
    if args.prompts == "list":
        return args
    if not (args.model and args.input and (args.output or args.ask)):
        parser.error("--model, --input and --output are needed, or --ask in place of --output")
    return args


def temperature(text: str) -> float:
    """Read the option --temperature: an argparse type.

    Logits that are divided by less than 0.001 lose their differences.
    """
    value = common.number_between(0)(text)
    if 0 < value < 0.001:
        raise argparse.ArgumentTypeError(
            f"{text} is too low, it must be 0, which is greedy, or 0.001 or more"
        )
    return value


def main():
    """Write questions about every video, and answers to them."""
    args = parse_args()
    if args.prompts == "list":
        print(prompts.show(prompts.DEFAULT))
        return
    if args.ask:
        answer_one(args)
        return

    wording = prompts.choose(args, [])
    asked = prompts.list_questions(wording.questions, count_questions(args, wording.questions))
    if not asked:
        raise common.InputError(
            "--spatial 0 and --temporal 0: then there is nothing to ask about a video"
        )
    draw = keep_draw(args, draw_videos(args))
    vlm.check_model(args.model, prompts.list_texts(wording, args.prompts), args.frame_tokens)
    asked_with = [asked, wording.answer]
    meta = common.make_meta(args, asked_with, wording._asdict(), draw.root, draw.names)
    meta |= {"videos": draw.names, "pool": draw.pool}
    refuse_new_videos(args, meta)
    names = common.take_shard(draw.names, args)
    groups = [(name, new_rows(name, asked)) for name in names]
    again = ("unreadable_video",) if args.retry_unreadable else ()
    out = outputs.Output(args.output, args, meta, groups, again)
    if out.finished:
        return

    model, tokenizer = vlm.load(args)
    for shown in vlm.watch(model, tokenizer, out.left, draw.root, args):
        write_questions(model, tokenizer, shown, asked, args)
        write_answers(model, tokenizer, shown, wording.answer, args)
        out.write(shown.rows)
    out.finish("answers")


if __name__ == "__main__":
    common.run(main)
