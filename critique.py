"""Stage 2: the model criticises its own answers against the video.

    python critique.py --model shapes/model --input runs/mine/round1/responses.jsonl --output runs/mine/round1/critiques.jsonl

`--model` may be another model than the one that answered: an external critic.

reads    id, video, question, initial
writes   + critique, error_types (or dropped: unreadable_video)
"""

import re

import common

CRITIQUE_PROMPT = """Somebody was asked about this video.
Question: {question}
Their answer: {initial}
Check the answer against the video. First say what the video shows about the question. Then end with one line that begins with \
"Errors:" and names each kind of error in the answer, out of factual_inaccuracy (something that the video contradicts), \
temporal_ordering (wrong order of events), spatial_relationship (wrong place or direction between objects), object_hallucination \
(something that is not there), causal_reasoning (wrong cause) and detail_omission (something that matters is left out). If the \
answer is right, that line is "Errors: none"."""


def parse_error_types(critique):
    """The error types that a critique's last "Errors:" line names, in the order of ERROR_TYPES; [] for "none"; None where unreadable.

    >>> parse_error_types("The square moves left. Errors: factual_inaccuracy")
    ['factual_inaccuracy']
    """
    verdicts = re.findall(r"errors\s*:\s*(.*)", critique, re.IGNORECASE)
    if not verdicts:
        return None
    said = re.sub(r"[\s-]+", "_", verdicts[-1].lower())
    named = [error for error in common.ERROR_TYPES if error in said]
    return named if named else [] if re.match(r"[^a-z]*none\b", verdicts[-1].lower()) else None


def write_critiques(model, tokenizer, video, rows, args):
    """Adds critique and error_types to the rows of one video, decoded as one batch."""
    prompts = [
        CRITIQUE_PROMPT.format(question=row["question"], initial=row["initial"]) for row in rows
    ]
    for row, (text, whole) in zip(
        rows, common.decode(model, tokenizer, video, prompts, args.max_new_tokens)
    ):
        row |= {"critique": text, "error_types": parse_error_types(text) if whole else None}


def main():
    parser = common.make_parser(
        __doc__, "critiques.jsonl; run again, it goes on where it stopped", "responses.jsonl"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=512,
        help="of a critique; the verdict of a longer one is unreadable",
    )
    args = parser.parse_args()

    root, groups = common.read_input(args, require=("id", "video", "question", "initial"))
    out = common.Output(
        args.output, args, common.make_meta(args, [CRITIQUE_PROMPT], root, groups), groups
    )
    if out.finished:
        return
    model, tokenizer = common.load(args)
    for rows, video in common.watch_each(model, tokenizer, out.left, root, args):
        if video:
            write_critiques(
                model, tokenizer, video, [row for row in rows if "dropped" not in row], args
            )
        out.write(rows)
    out.finish("critiques")


if __name__ == "__main__":
    common.run(main)
