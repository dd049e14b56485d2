"""Solution of lesson 2: what reads most replies; prompts/verdict.py reads more."""

import re

from course.exercises.gate import ERROR_TYPES


def read_verdict(critique: str) -> list[str] | None:
    """Read which error types a critique names, behind its last "Errors:"."""
    plain = re.sub(r"[*`\\]", "", critique).lower()
    plain = re.sub(r"<think>.*</think>", "", plain, flags=re.DOTALL)
    headings = list(re.finditer(r"(?:^|[^\w\s])\s*errors?\s*:", plain, re.MULTILINE))
    if not headings:
        return [] if re.search(r"\bno errors?[.! ]*$", plain) else None
    behind = plain[headings[-1].end() :].strip()
    first, _, _ = behind.partition("\n\n")
    if re.match(r"\W*(there (is|are) )?(none|nothing|no|n/a|no errors?)\b(?! but)", first):
        return []

    found = []
    for clause in re.split(r"[,;.\n]|\bbut\b", first):
        for name in ERROR_TYPES:
            words = name.replace("_", r"[_\s-]")
            if re.search(rf"\b{words}\b", clause) and not re.search(r"\b(not?|without)\b", clause):
                found.append(name)
    return found or None


def judge(row: dict, whole: bool) -> str | None:
    """Say why a row makes no pair; None if it makes one."""
    if row["error_types"] is None:
        return "unreadable_critique"
    if not row["error_types"]:
        return "no_error_found"
    if not whole:
        return "truncated"
    initial, revised = (
        row[key].lower().replace(".", " ").split() for key in ("initial", "revised")
    )
    if not revised:
        return "empty_revision"
    return "unchanged" if initial == revised else None
