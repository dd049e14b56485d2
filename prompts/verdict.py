"""How the verdict of a critique is read: which error types does it name?

Models write verdicts in many ways; docs/files.md says which of them are understood.
"""

import re
from collections.abc import Iterable

from prompts.default import ERROR_TYPES

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


def parse_error_types(critique: str, error_types: Iterable[str] = ERROR_TYPES) -> list[str] | None:
    """Read the verdict of a critique: what follows its last "Errors:", to the end of the line.

    If nothing follows on that line, the verdict is what stands below it. "Error:" is a heading too,
    but "the errors:" in a sentence is not. Without a heading, a last sentence "No errors." counts.
    What a model thought between <think> and </think> does not.

    error_types: the names that it may name

    Returns:
        [] if the verdict begins with none, nothing, n/a or no errors; else the error types that it
        names, in the order of `error_types`, but for those that it denies; None if there is no
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
    return find_named(verdict, error_types) or None


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


def find_named(verdict: str, error_types: Iterable[str]) -> list[str]:
    """Find the error types that a verdict names and does not deny, in the order they are given."""
    # Without a last y, so that the plural is found: inaccurac(y), inaccurac(ies), relationship(s)
    types = {simplify(error).removesuffix("y"): error for error in error_types}
    longest_first = sorted(types, key=len, reverse=True)  # omission is a part of detail omission
    any_type = rf"\b({'|'.join(map(re.escape, longest_first))})(?:y|ies|s|es)?\b"
    if re.search(NEGATION, verdict):  # "no this, that or the other" denies all of them
        others = rf"(?:\s*,\s*{any_type})*\s*,?\s*n?or\s+{any_type}"
        verdict = re.sub(rf"(?:{NEGATION})\s+{any_type}{others}", "", verdict)
    named = set()
    for clause in re.split(CLAUSE_ENDS, verdict):
        for match in re.finditer(any_type, clause):
            before = clause[: match.start()].rpartition(":")[2]
            denied = re.search(NEGATION, before) or re.fullmatch(DENIAL, clause[match.end() :])
            if not denied:
                named.add(types[match[1]])
    return [error for error in error_types if error in named]


def tell_if_unreadable(path, rows: list[dict]):
    """Print a warning where more than a third of the critiques have no verdict that can be read.

    Args:
        path: of the file that has them, for the message
        rows: with `critique` and `error_types`; those without are passed over
    """
    judged = [row for row in rows if "critique" in row and "error_types" in row]
    unreadable = [row for row in judged if row["error_types"] is None]
    if 3 * len(unreadable) <= len(judged):
        return
    share = len(unreadable) / len(judged)
    print(
        f"WARNING: {len(unreadable)} of {len(judged)} critiques ({share:.0%}) in {path} have no "
        f"verdict that can be read, such as that of {unreadable[0]['id']}:\n"
        f"    {unreadable[0]['critique'][:300]!r}\n"
        'The critique\'s prompt must ask for a last line "Errors: ..." (docs/files.md, "How is a '
        'verdict read?"), and the model must understand it; a reply that was cut off needs a '
        "larger --max-new-tokens; refine.py --gate none revises all answers, whatever the verdict"
    )


def tell_if_no_verdict(critique: str):
    """Print a line if a critique's prompt does not ask for the verdict that is looked for."""
    if "errors" not in critique.lower():
        print(
            'the critique\'s prompt does not have the word "Errors", so verdicts will hardly be '
            "found (docs/prompts.md); refine.py --gate none needs none"
        )
