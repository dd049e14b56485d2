"""Exercise of lesson 2: read a critic's verdict, and decide what makes a pair.

Level 2 of 3, about 45 minutes. Check it: python -m course.check 2
Bar: 36 of the 40 replies in course/replies.jsonl, and no right answer taken for a wrong one.
Hint: prompts/verdict.py reads some sixty ways to write it; a dozen lines pass.
"""

ERROR_TYPES = (
    "factual_inaccuracy",
    "temporal_ordering",
    "spatial_relationship",
    "object_hallucination",
    "causal_reasoning",
    "detail_omission",
)


def read_verdict(critique: str) -> list[str] | None:
    """Read which error types a critique names, behind its last "Errors:".

    Returns:
        their names; [] if it says that there is no error, in a sentence of its own perhaps; None
        if it says neither
    """
    raise NotImplementedError


def judge(row: dict, whole: bool) -> str | None:
    """Say why a row makes no pair; None if it makes one.

    Args:
        row: with `initial`, `error_types` (as read_verdict gives them) and `revised`
        whole: whether the revision ended by itself, and was not cut off

    Returns:
        "unreadable_critique", "no_error_found", "truncated", "empty_revision" or "unchanged"
        (capitals and full stops make no difference)
    """
    raise NotImplementedError
