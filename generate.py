"""Stage 1: unlabeled videos in, questions and initial answers out.

The model itself writes spatial and temporal questions about each video, then answers them: no label, no other model.

    python generate.py --model shapes/model --input runs/shapes/round1 --output runs/mine/round1/responses.jsonl
    python generate.py --model shapes/model --input video.mp4 --ask "which way does the red circle move?"

reads    video files, folders of frames, or directories of them
writes   id, video, kind, question, initial (or dropped: unreadable_video, bad_question, duplicate_question, truncated)
"""

import hashlib
import os
import random
from pathlib import Path

import torch
from transformers import LogitsProcessor, TopPLogitsWarper

import common

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".gif"}

# One question a prompt, so that all questions of a video are decoded as one batch; the aspects take turns, so that they differ.
ASPECTS = {
    "spatial": (
        "where two objects are in relation to each other",
        "which objects there are and where each one is",
        "visual details such as number, color, shape or size",
    ),
    "temporal": (
        "the order in which things happen",
        "cause and effect: why something happens",
        "how something changes: its motion, place or state",
    ),
}
QUESTION_PROMPT = (
    "Write one question about this video. It should be about {aspect}. Name objects by how they look, ask only about "
    "what is really shown, and make sure that watching the video is needed to answer it. Reply with the question alone."
)
QUESTION_TOKENS = 64  # a longer one is no question but a runaway
QUESTION_TOP_P = 0.9  # questions are sampled at temperature 1 within this nucleus


def find_videos(directory):
    """Below a directory: video files, and folders of frames (with images, but no video, directly in them). Links are followed, once."""

    def stop(error):
        raise error

    found, seen = [], set()
    for folder, below, names in os.walk(directory, onerror=stop, followlinks=True):
        if os.path.realpath(folder) in seen:
            below.clear()
            continue
        seen.add(os.path.realpath(folder))
        suffixes = {name: Path(name).suffix.lower() for name in names}
        videos = [Path(folder, name) for name in names if suffixes[name] in VIDEO_SUFFIXES]
        found += videos or [Path(folder)] * any(
            suffix in common.IMAGE_SUFFIXES for suffix in suffixes.values()
        )
    return sorted(found)


def sample_videos(inputs, limit, seed):
    """The videos among files and directories (searched below) -> (their common root, paths relative to it, sorted).

    limit: only so many, drawn by seed as evenly over the inputs as their sizes allow.
    """
    found = []
    for number, path in enumerate(map(Path, inputs)):
        if not path.exists():
            raise common.InputError(f"--input {path}: no such file or directory")
        files = [path] if path.is_file() else find_videos(path)
        if not files:
            raise common.InputError(
                f"--input {path}: no video below it (looked for {' '.join(sorted(VIDEO_SUFFIXES))} and folders of frames)"
            )
        for file in files:
            if any("\ud800" <= letter <= "\udfff" for letter in str(file)):
                raise common.InputError(
                    f"--input {str(file)!r}: a name that cannot be written to JSONL in UTF-8; rename it"
                )
        found.append(
            [file.resolve() for file in random.Random(f"{seed}/{number}").sample(files, len(files))]
        )
    turns = [
        file
        for turn in range(max(map(len, found)))
        for files in found
        for file in files[turn : turn + 1]
    ]
    root = Path(os.path.commonpath([file.parent for file in turns]))
    return root, sorted(
        file.relative_to(root).as_posix() for file in list(dict.fromkeys(turns))[:limit]
    )


class Noise(LogitsProcessor):
    """Sampling at a temperature within the top-p nucleus, as an argmax over noised logits (the Gumbel-max trick).

    The noise of a row depends on (seed, row id, step) alone: so a resumed, sharded or reordered run draws what an undisturbed one draws.
    """

    def __init__(self, seed, row_ids, temperature, top_p):
        self.temperature = temperature
        self.nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        seeds = [hashlib.sha256(f"{seed}/{row_id}".encode()).digest() for row_id in row_ids]
        self.generators = [
            torch.Generator().manual_seed(int.from_bytes(s[:8], "big") >> 1) for s in seeds
        ]

    def __call__(self, input_ids, scores):  # scores (B, V); called once a step
        scores = scores.float() / self.temperature
        if self.nucleus:
            scores = self.nucleus(input_ids, scores)
        gumbel = torch.stack(
            [torch.empty(scores.shape[-1]).exponential_(generator=g) for g in self.generators]
        )
        return scores - gumbel.log().to(scores.device)


def question_prompts(n_spatial, n_temporal):
    """[(kind, number, prompt), ...]: the aspects of each kind in turn."""
    return [
        (kind, n, QUESTION_PROMPT.format(aspect=ASPECTS[kind][n % len(ASPECTS[kind])]))
        for kind, count in (("spatial", n_spatial), ("temporal", n_temporal))
        for n in range(count)
    ]


def judge_question(text, whole, earlier):
    """Why a question is dropped, or None. whole: it ended by itself; earlier: the video's questions before it, in lower case."""
    if not whole or "\n" in text or not text.endswith("?") or not 3 <= len(text.split()) <= 60:
        return "bad_question"
    return "duplicate_question" if text.lower() in earlier else None


def new_rows(name, args):
    """The rows of one video, before anything is asked."""
    return [
        {"id": f"{name}/{kind}/{n}", "video": name, "kind": kind}
        for kind, n, _ in question_prompts(args.spatial, args.temporal)
    ]


def write_questions(model, tokenizer, video, rows, args):
    """Adds question to all rows of one video, decoded as one batch; and dropped, where it is no question or stands twice."""
    prompts = [prompt for _, _, prompt in question_prompts(args.spatial, args.temporal)]
    noise = Noise(args.seed, [row["id"] + "/question" for row in rows], 1.0, QUESTION_TOP_P)
    earlier = set()
    for row, (text, whole) in zip(
        rows, common.decode(model, tokenizer, video, prompts, QUESTION_TOKENS, noise)
    ):
        row["question"] = text
        reason = judge_question(text, whole, earlier)
        if reason:
            row["dropped"] = reason
        earlier.add(text.lower())


def write_answers(model, tokenizer, video, rows, args):
    """Adds initial to the rows of one video that are still in, decoded as one batch; and dropped, where the answer has no end."""
    noise = (
        Noise(args.seed, [row["id"] for row in rows], args.temperature, args.top_p)
        if args.temperature
        else None
    )
    prompts = [common.ANSWER_PROMPT.format(question=row["question"]) for row in rows]
    for row, (text, whole) in zip(
        rows, common.decode(model, tokenizer, video, prompts, args.max_new_tokens, noise)
    ):
        row["initial"] = text
        if not whole:
            row["dropped"] = "truncated"


def answer_one(model, tokenizer, args):
    """Prints the answer to --ask, and says which of its words the model has never seen."""
    words = args.ask.replace("?", " ").replace(",", " ").split()
    unknown = (
        [word for word in words if tokenizer.unk_token_id in tokenizer.encode(word)]
        if tokenizer.unk_token
        else []
    )
    if unknown:
        print(f"(this model has never seen: {', '.join(unknown)})")
    root, names = sample_videos(args.input[:1], 1, args.seed)
    [(rows, video)] = common.watch_each(model, tokenizer, [(names[0], [{}])], root, args)
    if video is None:
        raise common.InputError(rows[0]["error"])
    print(
        common.decode(
            model,
            tokenizer,
            video,
            [common.ANSWER_PROMPT.format(question=args.ask)],
            args.max_new_tokens,
        )[0][0]
    )


def main():
    parser = common.make_parser(
        __doc__, "responses.jsonl; run again, it goes on where it stopped", needs_output=False
    )
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        help="video files, folders of frames, and directories of them",
    )
    parser.add_argument(
        "--ask",
        metavar="QUESTION",
        help="only print the answer to this question about the first input (greedy)",
    )
    parser.add_argument("--spatial", type=int, default=3, help="spatial questions a video")
    parser.add_argument("--temporal", type=int, default=3, help="temporal questions a video")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of the initial answers; 0 is greedy"
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="of the initial answers")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        help="of an answer; a longer one is dropped as truncated",
    )
    args = parser.parse_args()
    if args.ask:
        return answer_one(*common.load(args), args)
    if not args.output:
        parser.error("--output is needed, or --ask")

    root, paths = sample_videos(args.input, args.limit, args.seed)
    groups = [(name, new_rows(name, args)) for name in common.take_shard(paths, args.shard)]
    meta = common.make_meta(args, [QUESTION_PROMPT, ASPECTS, common.ANSWER_PROMPT], root, groups)
    out = common.Output(args.output, args, meta, groups)
    if out.finished:
        return None
    model, tokenizer = common.load(args)
    for rows, video in common.watch_each(model, tokenizer, out.left, root, args):
        if video:
            write_questions(model, tokenizer, video, rows, args)
            good = [row for row in rows if "dropped" not in row]
            if good:
                write_answers(model, tokenizer, video, good, args)
        out.write(rows)
    out.finish("answers")


if __name__ == "__main__":
    common.run(main)
