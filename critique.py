r"""Stage 2: the model criticises its own answers against the video.

    python critique.py --model shapes/model \
        --input runs/mine/round1/responses.jsonl \
        --output runs/mine/round1/critiques.jsonl

`--model` may be another model than the one that answered: an external critic.
What it is asked is in prompts/default.py, or in a file of yours (--prompts);
how its verdict is read, in prompts/verdict.py.

reads    id, video, question, initial
writes   + critique, error_types, which is null if the verdict is unreadable
         (or dropped: unreadable_video)
"""

import common
import outputs
import prompts
import vlm

REQUIRED = ("id", "video", "question", "initial")


def write_critiques(model, tokenizer, shown: vlm.Shown, wording, args):
    """Add `critique` and `error_types` to the rows about some videos, decoded as one batch.

    wording: prompts.Prompts
    """
    error_types = prompts.describe_error_types(wording.error_types)

    def ask(row):
        return prompts.fill(
            wording.critique,
            question=row["question"],
            initial=row["initial"],
            error_types=error_types,
        )

    replies = vlm.reply(model, tokenizer, shown, ask, args.max_new_tokens)
    for row, (text, whole) in replies:
        row["critique"] = text
        row["error_types"] = None
        if whole:
            row["error_types"] = prompts.parse_error_types(text, wording.error_types)


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
    prompts.add_option(parser)
    common.add_batches(parser)
    return parser.parse_args()


def main():
    """Write a critique of every answer."""
    args = parse_args()
    wording = prompts.choose(args, [args.input], settled=("answer",))
    root, groups = common.read_input(args.input, args.videos, REQUIRED)
    common.check_rows_are_left(args.input, groups)
    groups = groups[: args.limit]
    texts = vlm.list_texts(args.input, groups, ("question", "initial"))
    texts += prompts.list_texts(wording, args.prompts)
    vlm.check_model(args.model, texts, args.frame_tokens)
    asked = [wording.critique, wording.error_types]
    meta = common.make_meta(args, asked, prompts.hand_on(wording, args), root, groups)
    groups = common.take_shard(groups, args)
    again = ("unreadable_video",) if args.retry_unreadable else ()
    out = outputs.Output(args.output, args, meta, groups, again)
    if out.finished:
        return

    prompts.tell_if_no_verdict(wording.critique)
    model, tokenizer = vlm.load(args)
    for shown in vlm.watch(model, tokenizer, out.left, root, args):
        write_critiques(model, tokenizer, shown, wording, args)
        out.write(shown.rows)
    prompts.tell_if_unreadable(args.output, out.collect())
    out.finish("critiques")


if __name__ == "__main__":
    common.run(main)
