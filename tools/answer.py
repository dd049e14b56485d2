r"""Answer the questions of an earlier output once more, with another model.

    python -m tools.answer --model runs/loop/round1/model \
        --input runs/loop/round1/responses.jsonl \
        --output runs/fixed/round1/responses.jsonl

So several models can be compared over the same questions: the answers are
responses.jsonl again, for critique.py --model CRITIC, and python -m tools.report
counts the errors that the critic names (docs/paper-tables.md). Answers are
greedy.

reads    id, video, question. Rows without a usable question stay dropped
writes   the same rows with `initial`, and nothing of what came after it
"""

import common
import generate
import outputs
import prompts
import vlm

REQUIRED = ("id", "video", "question")
KEPT = ("id", "video", "kind", "question", "start", "end")
UNUSABLE = ("bad_question", "duplicate_question")


def parse_args():
    """Parse the command line."""
    parser = common.make_parser(
        __doc__, "responses.jsonl", "rows with questions, such as responses.jsonl", retry=True
    )
    parser.add_argument_group("decoding, which is greedy").add_argument(
        "--max-new-tokens",
        type=common.at_least(1),
        default=256,
        metavar="N",
        help="of an answer; a longer one is cut off, and its row dropped as truncated",
    )
    prompts.add_option(parser)
    common.add_batches(parser)
    parser.set_defaults(temperature=0.0)  # as generate.write_answers reads it: greedy
    return parser.parse_args()


def strip_row(row: dict) -> dict:
    """Take the question of a row, without its answer and all that came of it."""
    stripped = {key: row[key] for key in KEPT if key in row}
    if row.get("dropped") in UNUSABLE or "question" not in row:
        stripped |= {key: row[key] for key in ("dropped", "error") if key in row}
    return stripped


def main():
    """Answer every question."""
    args = parse_args()
    wording = prompts.choose(args, [args.input])
    root, groups = common.read_input(args.input, args.videos, REQUIRED)
    groups = [(video, [strip_row(row) for row in rows]) for video, rows in groups]
    common.check_rows_are_left(args.input, groups)
    groups = groups[: args.limit]
    texts = vlm.list_texts(args.input, groups, ("question",))
    texts += prompts.list_texts(wording, args.prompts)
    vlm.check_model(args.model, texts, args.frame_tokens)
    meta = common.make_meta(args, [wording.answer], wording._asdict(), root, groups)
    groups = common.take_shard(groups, args)
    again = ("unreadable_video",) if args.retry_unreadable else ()
    out = outputs.Output(args.output, args, meta, groups, again)
    if out.finished:
        return

    model, tokenizer = vlm.load(args)
    for shown in vlm.watch(model, tokenizer, out.left, root, args):
        generate.write_answers(model, tokenizer, shown, wording.answer, args)
        out.write(shown.rows)
    out.finish("answers")


if __name__ == "__main__":
    common.run(main)
