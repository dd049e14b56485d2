r"""Stage 2: the model criticises its own answers against the video.

    python critique.py --model shapes/model \
        --input runs/mine/round1/responses.jsonl \
        --output runs/mine/round1/critiques.jsonl

`--model` may be another model than the one that answered: an external critic.

reads    id, video, question, initial
writes   + critique, error_types, which is null if the verdict is unreadable
         (or dropped: unreadable_video)
"""

import re

import common
import vlm

REQUIRED = ("id", "video", "question", "initial")


def describe_error_types() -> str:
    """Name all error types with their meanings: 'this (...), that (...) and those (...)'."""
    *first, last = [f"{name} ({meaning})" for name, meaning in common.ERROR_TYPES.items()]
    return f"{', '.join(first)} and {last}"


CRITIQUE_PROMPT = (
    "Somebody was asked about this video.\n"
    "Question: {question}\n"
    "Their answer: {initial}\n"
    "Check the answer against the video. First say what the video shows about the question. Then "
    'end with one line that begins with "Errors:" and names each kind of error in the answer, out '
    "of " + describe_error_types() + '. If the answer is right, that line is "Errors: none".'
)


def parse_error_types(critique: str) -> list[str] | None:
    """Read the verdict of a critique: what follows its last "Errors:", to the end of the line.

    Returns:
        the error types that it names, in the order of ERROR_TYPES; [] if it says "none"; None if
        there is no verdict, or it says something else

    >>> parse_error_types("The square moves left. Errors: factual_inaccuracy")
    ['factual_inaccuracy']
    """
    verdicts = re.findall(r"errors\s*:\s*(.*)", critique, re.IGNORECASE)
    if not verdicts:
        return None
    verdict = verdicts[-1].lower()
    normalized = re.sub(r"[\s-]+", "_", verdict)  # "Temporal ordering" is temporal_ordering
    named = [error for error in common.ERROR_TYPES if error in normalized]
    if named:
        return named
    if re.match(r"[^a-z]*none\b", verdict):
        return []
    return None


def write_critiques(model, tokenizer, video, rows: list[dict], args):
    """Add `critique` and `error_types` to the rows of one video, decoded as one batch."""
    prompts = []
    for row in rows:
        prompts.append(CRITIQUE_PROMPT.format(question=row["question"], initial=row["initial"]))
    replies = vlm.decode(model, tokenizer, video, prompts, args.max_new_tokens)
    for row, (text, whole) in zip(rows, replies):
        row["critique"] = text
        row["error_types"] = parse_error_types(text) if whole else None


def parse_args():
    """Parse the command line."""
    parser = common.make_parser(__doc__, "critiques.jsonl", "responses.jsonl", retry=True)
    decoding = parser.add_argument_group("decoding, which is greedy")
    decoding.add_argument(
        "--max-new-tokens",
        type=common.at_least(1),
        default=512,
        metavar="N",
        help="of a critique; a longer one is cut off, and its verdict unreadable",
    )
    common.add_shard(parser)
    return parser.parse_args()


def main():
    """Write a critique of every answer."""
    args = parse_args()
    root, groups = common.read_input(args, REQUIRED)
    common.check_rows_are_left(args.input, groups)
    groups = common.take_shard(groups[: args.limit], args.shard)
    vlm.check_model(args.model)
    meta = common.make_meta(args, [CRITIQUE_PROMPT], root, groups)
    again = ("unreadable_video",) if args.retry_unreadable else ()
    out = common.Output(args.output, args, meta, groups, again)
    if out.finished:
        return

    model, tokenizer = vlm.load(args)
    for rows, video in vlm.watch_each(model, tokenizer, out.left, root, args):
        if video:
            answered = [row for row in rows if "dropped" not in row]
            write_critiques(model, tokenizer, video, answered, args)
        out.write(rows)
    out.finish("critiques")


if __name__ == "__main__":
    common.run(main)
