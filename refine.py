r"""Stage 3: the model revises its answers; what changed makes preference pairs.

    python refine.py --model shapes/model \
        --input runs/mine/round1/critiques.jsonl \
        --output runs/mine/round1/pairs.jsonl

A pair is made only where the critic found an error and the revision differs
from the answer. With --gate none every answer is revised, whatever the critic
said, and every revision that differs makes a pair (which of the two the paper
does is not known: see the README). What the model is asked is in
prompts/default.py, or in a file of yours (--prompts).

reads    id, video, question, initial, critique, error_types
writes   + revised, chosen, rejected (or dropped: unreadable_critique,
         no_error_found, unchanged, empty_revision, truncated, unreadable_video)
"""

import common
import outputs
import prompts
import vlm

REQUIRED = ("id", "video", "question", "initial", "critique", "error_types")

GATES = ("critic", "none")


def judge_critique(row: dict) -> str | None:
    """Say why --gate critic does not revise an answer; None if the critic found an error in it."""
    if row["error_types"] is None:
        return "unreadable_critique"
    if not row["error_types"]:
        return "no_error_found"
    return None


def drop_without_error(rows: list[dict]):
    """Add `dropped` to the rows whose critique gives no reason for a revision."""
    for row in rows:
        if "dropped" in row:
            continue
        reason = judge_critique(row)
        if reason:
            row["dropped"] = reason


def judge_revision(row: dict, whole: bool) -> str | None:
    """Say why a revised row makes no pair; None if it makes one.

    whole: whether the revision ended by itself, and was not cut off
    """
    if not whole:
        return "truncated"
    if not words(row["revised"]):
        return "empty_revision"
    if words(row["revised"]) == words(row["initial"]):
        return "unchanged"
    return None


def words(text: str) -> list[str]:
    """Split a text into what is compared: case and full stops make no difference."""
    return text.lower().replace(".", " ").split()


def write_revisions(model, tokenizer, shown: vlm.Shown, wording, args):
    """Add `revised` to the rows about some videos, decoded as one batch; to pairs also their sides.

    wording: prompts.Prompts
    """

    def ask(row):
        return prompts.fill(
            wording.revision,
            question=row["question"],
            initial=row["initial"],
            critique=row["critique"],
        )

    replies = vlm.reply(model, tokenizer, shown, ask, args.max_new_tokens)
    for row, (text, whole) in replies:
        row["revised"] = text
        reason = judge_revision(row, whole)
        if reason:
            row["dropped"] = reason
        else:
            row["chosen"] = row["revised"]
            row["rejected"] = row["initial"]


def parse_args():
    """Parse the command line."""
    parser = common.make_parser(__doc__, "pairs.jsonl", "critiques.jsonl", retry=True)
    parser.add_argument_group("what makes a pair").add_argument(
        "--gate",
        choices=GATES,
        default="critic",
        help="critic: revise only where the critique names an error; none: revise every answer",
    )
    decoding = parser.add_argument_group("decoding, which is greedy")
    decoding.add_argument(
        "--max-new-tokens",
        type=common.at_least(1),
        default=256,
        metavar="N",
        help="of a revision; a longer one is cut off, and its row dropped as truncated",
    )
    prompts.add_option(parser)
    common.add_batches(parser)
    return parser.parse_args()


def main():
    """Write a revision of every answer that passes the gate."""
    args = parse_args()
    wording = prompts.choose(args, [args.input], settled=("answer", "error_types"))
    needed = REQUIRED if args.gate == "critic" else REQUIRED[:-1]  # all but the verdict
    root, groups = common.read_input(args.input, args.videos, needed, wording.error_types)
    common.check_rows_are_left(args.input, groups)
    groups = groups[: args.limit]
    texts = vlm.list_texts(args.input, groups, ("question", "initial", "critique"))
    texts += prompts.list_texts(wording, args.prompts)
    vlm.check_model(args.model, texts, args.frame_tokens)
    meta = common.make_meta(args, [wording.revision], prompts.hand_on(wording, args), root, groups)
    groups = common.take_shard(groups, args)
    if args.gate == "critic":
        for _, rows in groups:
            drop_without_error(rows)
    again = ("unreadable_video",) if args.retry_unreadable else ()
    out = outputs.Output(args.output, args, meta, groups, again)
    if out.finished:
        return

    if args.gate == "critic":
        prompts.tell_if_unreadable(args.input, [row for _, rows in groups for row in rows])

    model, tokenizer = vlm.load(args)
    for shown in vlm.watch(model, tokenizer, out.left, root, args):
        write_revisions(model, tokenizer, shown, wording, args)
        out.write(shown.rows)
    out.finish("pairs")


if __name__ == "__main__":
    common.run(main)
