"""Stage 3: the model revises its answers in the light of the critique; what changed becomes a preference pair.

    python refine.py --model shapes/model --input runs/mine/round1/critiques.jsonl --output runs/mine/round1/pairs.jsonl

A pair is made only where the critic found an error and the revision differs (a departure from the paper, see the README).

reads    id, video, question, initial, critique, error_types
writes   + revised, chosen, rejected (or dropped: unreadable_critique, no_error_found, unchanged, truncated, unreadable_video)
"""

import common

REFINE_PROMPT = """Somebody was asked about this video.
Question: {question}
Their answer: {initial}
A review of the answer: {critique}
Answer the question again: mend what the review found wrong, keep what is right, and go by what the video shows. Reply with the new \
answer alone, in one short sentence."""


def judge_critique(row):
    """Why a row needs no revision, or None: the gate."""
    return (
        "unreadable_critique"
        if row["error_types"] is None
        else None
        if row["error_types"]
        else "no_error_found"
    )


def judge_revision(row, whole):
    """Why a revised row makes no pair, or None. Case and full stops make no difference."""
    plain = lambda text: text.lower().replace(".", " ").split()
    return (
        "truncated"
        if not whole
        else "unchanged"
        if plain(row["revised"]) == plain(row["initial"])
        else None
    )


def write_revisions(model, tokenizer, video, rows, args):
    """Adds revised to the rows of one video, decoded as one batch; and chosen and rejected, or dropped."""
    prompts = [
        REFINE_PROMPT.format(**{key: row[key] for key in ("question", "initial", "critique")})
        for row in rows
    ]
    for row, (text, whole) in zip(
        rows, common.decode(model, tokenizer, video, prompts, args.max_new_tokens)
    ):
        row["revised"] = text
        reason = judge_revision(row, whole)
        row |= (
            {"dropped": reason}
            if reason
            else {"chosen": row["revised"], "rejected": row["initial"]}
        )


def main():
    parser = common.make_parser(
        __doc__, "pairs.jsonl; run again, it goes on where it stopped", "critiques.jsonl"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        help="of a revision; a longer one is dropped as truncated",
    )
    args = parser.parse_args()

    root, groups = common.read_input(
        args, require=("id", "video", "question", "initial", "critique", "error_types")
    )
    out = common.Output(
        args.output, args, common.make_meta(args, [REFINE_PROMPT], root, groups), groups
    )
    if out.finished:
        return
    model, tokenizer = common.load(args)
    groups = out.left
    for row in (row for _, rows in groups for row in rows if "dropped" not in row):
        if reason := judge_critique(row):
            row["dropped"] = reason
    for rows, video in common.watch_each(model, tokenizer, groups, root, args):
        if video:
            write_revisions(
                model, tokenizer, video, [row for row in rows if "dropped" not in row], args
            )
        out.write(rows)
    out.finish("pairs")


if __name__ == "__main__":
    common.run(main)
