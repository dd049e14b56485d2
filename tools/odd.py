"""Odd inputs that know what must come of them: what the generators of `tools.fuzz` make.

A generator is a function of an empty directory and a random generator. It makes an input, and from
how it made it it knows the truth: what must be given back, or which words the refusal must have.
"""

from collections.abc import Callable
from typing import NamedTuple

import common


class Gives(NamedTuple):
    """Something that must work."""

    act: Callable[[], object]  # what is done with the input
    expected: object  # what it must give back


class Refused(NamedTuple):
    """Something that must be refused, in one line."""

    act: Callable[[], object]
    words: tuple[str, ...]  # of the refusal; all must be there


Case = Gives | Refused


def check(case: Case) -> str | None:
    """Do what a case is about -> what is wrong, or None."""
    try:
        given = case.act()
    except common.InputError as error:
        said = str(error)
        if isinstance(case, Gives):
            return f"refused: {said}"
        missing = [word for word in case.words if word not in said]
        if missing:
            return f"refused without {missing}: {said}"
        return f"refused in several lines: {said}" if "\n" in said else None
    if isinstance(case, Refused):
        return f"taken, where it must be refused: {case.words}"
    return None if given == case.expected else f"gives {given}, not {case.expected}"
