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


# The grammar of a verdict, for texts that `simplify` has made plain
HEADING = r"(?:^|[^\w\s])[ \t]*errors?[ \t]*:|^[ \t]*#+[ \t]*errors?[ \t]*$"  # no word before it
NOTHING = r"(?:none|nothing|n/a|not applicable|no errors?|no(?=[^a-z]*$|\s*[,\u2013\u2014-]))\b"
BUT = r"(?!\s+(?:but|other|except|of)\b)"  # "nothing but ..." is not nothing
NONE = rf"[^a-z]*(?:there (?:is|are) )?{NOTHING}{BUT}"  # at the start of a verdict
LAST_WORDS = (  # a verdict without a heading
    r"(?:^|[.!?])\s*(?:there are |the answer has )?no errors?"
    r"(?: found)?(?: in (?:the|this) answer)?\s*[.!]?\s*$"
)
CLAUSE_ENDS = r"[,;.()\[\]\n]|\s[-\u2013\u2014]\s|\bbut\b"
NEGATION = (  # before an error type
    r"\b(?:no(?! doubt)|not(?! only)|non|nor|neither|never|without|rather than|instead of)\b"
    r"|n['\u2019]t\b"
)
DENIAL = (
    r"\s*(?::|is|are)\s*(?:none|no|n/a|no errors?|not (?:present|found)|absent)\s*"  # behind it
)


def parse_error_types(critique: str) -> list[str] | None:
    """Read the verdict of a critique: what follows its last "Errors:", to the end of the line.

    If nothing follows on that line, the verdict is what stands below it. "Error:" is a heading too,
    but "the errors:" in a sentence is not. Without a heading, a last sentence "No errors." counts.
    What a model thought between <think> and </think> does not.

    Returns:
        [] if the verdict begins with none, nothing, n/a or no errors; else the error types that it
        names, in the order of ERROR_TYPES, but for those that it denies; None if there is no
        verdict, or it says something else

    >>> parse_error_types("The square moves left. Errors: factual_inaccuracy")
    ['factual_inaccuracy']
    >>> parse_error_types("**Errors:** temporal ordering, not causal reasoning")
    ['temporal_ordering']
    """
    text = simplify(remove_thoughts(critique))
    headings = list(re.finditer(HEADING, text, re.MULTILINE))
    if not headings:
        return [] if re.search(LAST_WORDS, text) else None

    behind = text[headings[-1].end() :]
    line = behind.partition("\n")[0]
    verdict = line if re.search(r"\w", line) else behind
    if re.match(NONE, verdict):
        return []
    return find_named(verdict) or None


def remove_thoughts(critique: str) -> str:
    """Remove <think>...</think>, also where one of the two is missing."""
    kept = []
    is_thought = False
    for part in re.split(r"(</?think>)", critique):
        if part == "<think>":
            is_thought = True
        elif part == "</think>":
            if not is_thought:
                kept.clear()  # it was opened by the prompt: all before it was thought
            is_thought = False
        elif not is_thought:
            kept.append(part)
    return "".join(kept)


def simplify(text: str) -> str:
    """Make a text plain: no case, no marks of Markdown, and spaces in `temporal_ordering`."""
    text = text.lower().replace("\uff1a", ":")
    text = re.sub(r"~~.*?~~", "", text)  # struck out
    text = re.sub(r"^.*\[ \].*$", "", text, flags=re.MULTILINE)  # a box that is not ticked
    text = re.sub(r"</?\w+>", "", text)  # <b>
    text = re.sub(r"[*`\\\"]", "", text)
    text = re.sub(r"\b(not?|without)\s+\[(\w+)\]", r"\1 \2", text)  # not [type]
    text = re.sub(r"\[(\w+)\](?=\s*:)", r"\1", text)  # [type]: none
    text = re.sub(r"_|\b[-\u2010\u2011]\b", " ", text)  # between the words of a type
    # type - none, type (none) -> type: none
    text = re.sub(r"\s(?:[-\u2013\u2014]\s|\()(?=(?:none|no|n/a|not)\b)", ": ", text)
    return re.sub(r"[^\S\n]+", " ", text)


def find_named(verdict: str) -> list[str]:
    """Find the error types that a verdict names and does not deny, in the order of ERROR_TYPES."""
    # Without a last y, so that the plural is found: inaccurac(y), inaccurac(ies), relationship(s)
    types = {simplify(error).removesuffix("y"): error for error in common.ERROR_TYPES}
    longest_first = sorted(types, key=len, reverse=True)  # omission is a part of detail omission
    any_type = rf"\b({'|'.join(map(re.escape, longest_first))})(?:y|ies|s|es)?\b"
    # "no this, that or the other" denies all of them
    denied_list = rf"(?:{NEGATION})\s+{any_type}(?:\s*,\s*{any_type})*\s*,?\s*n?or\s+{any_type}"
    named = set()
    for clause in re.split(CLAUSE_ENDS, re.sub(denied_list, "", verdict)):
        for match in re.finditer(any_type, clause):
            before = clause[: match.start()].rpartition(":")[2]
            denied = re.search(NEGATION, before) or re.fullmatch(DENIAL, clause[match.end() :])
            if not denied:
                named.add(types[match[1]])
    return [error for error in common.ERROR_TYPES if error in named]


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
    vlm.check_model(args.model, vlm.list_texts(args.input, groups, ("question", "initial")))
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
