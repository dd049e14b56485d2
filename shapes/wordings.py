"""The stages' requests in many words: what is learned should be the request, not a string.

shapes/patterns.py has the words. On top of that some words are left out, some are put in, and some
are replaced by a word that the model does not know, so that no single word decides.

Whoever changes prompts, kinds of questions or error types writes in other words than these. Those
that can be used are in the vocabulary of the model, which is made of all that is taught.

`rng` is a numpy generator.
"""

import re
from typing import NamedTuple

import prompts
from shapes import patterns

UNKNOWN = "~"  # no word of the vocabulary
USUAL = 0.04  # share of the requests that are in the model's usual words
# What nonsense is made of: all words but those that ask for a verdict; in a request for a question
# also not those that say what it is to be about
OTHERS = sorted(patterns.list_words(*patterns.TABLES) - {"error", "errors"})
FILLERS = sorted(set(OTHERS) - patterns.list_words(patterns.KEY_WORDS))


def vary(pattern: str, rng) -> str:
    """Draw one of the texts that a pattern stands for."""

    def draw(match):
        parts = match[1].split("|")
        return parts[rng.integers(len(parts))]

    n_choices = 1
    while n_choices:  # from the inside out
        pattern, n_choices = re.subn(r"\[([^\[\]]*)\]", draw, pattern)
    text = " ".join(pattern.split())
    return re.sub(r" ([.,:?])", r"\1", text)


def garble(text: str, words: list[str], sentences: tuple, rng) -> str:
    """Make most requests less clear: what is in the fields, in braces, must tell what is asked.

    Some words are left out, some are replaced by an unknown one, and something else is put in.

    Args:
        words: to make nonsense of
        sentences: patterns of requests for something else
    """
    if rng.random() < 0.3:
        return text
    rate = rng.random() ** 4  # of words that are left out: most often few, at times nearly all
    kept = []
    for word in text.split():
        if "{" in word or "Errors" in word or rng.random() > rate:
            kept.append(word)
        elif rng.random() < 0.2:
            kept.append(UNKNOWN)
    for _ in range(rng.integers(4)):
        place = rng.integers(len(kept) + 1)
        kept[place:place] = make_nonsense(words, sentences, rng)
    return " ".join(kept)


def make_nonsense(words: list[str], sentences: tuple, rng) -> list[str]:
    """Draw a label, a request for something else, or a few words in any order."""
    kind = rng.integers(3)
    if kind == 0:
        return [vary(patterns.LABEL, rng)]
    if kind == 1:
        return choose(sentences, rng).split()
    return [*rng.choice(words, rng.integers(1, 13)), ".,:"[rng.integers(3)]]


def choose(among, rng) -> str:
    """Draw one of some patterns, then one of its texts."""
    return vary(among[rng.integers(len(among))], rng)


def choose_some(among, most: int, rng) -> list[str]:
    """Draw texts of 0 to `most` different patterns."""
    n = rng.integers(most + 1)
    return [vary(among[number], rng) for number in rng.permutation(len(among))[:n]]


# ------------------------------------------------------------------------------
# Requests


def ask_question(type: str, rng) -> str:
    """Ask for a question of a type, as generate.py does."""
    if type in patterns.BEGINNINGS and rng.random() < 0.1:
        request = choose(patterns.BEGINS, rng).replace(
            "{beginning}", vary(patterns.BEGINNINGS[type], rng)
        )
    else:
        aspect = choose(patterns.ASPECTS[type], rng)
        if type in patterns.YES_NO:
            aspect = f"{aspect} {choose(patterns.WITH_YES_NO, rng)}"
        request = choose(patterns.QUESTION, rng).replace("{aspect}", aspect)
    parts = [
        *choose_some(patterns.WATCH, 1, rng),
        request,
        *choose_some(patterns.ASK_FOR_CARE, 2, rng),
    ]
    return garble(" ".join(parts), FILLERS, patterns.SOMETHING_ELSE, rng)


def ask_answer(question: str, rng) -> str:
    """Ask for the answer to a question, as generate.py and evaluate.py do."""
    if rng.random() < USUAL:
        return prompts.fill(patterns.USUAL["answer"], question=question)
    parts = [choose(patterns.ANSWER, rng), *choose_some(patterns.ANSWER_WITH_CARE, 2, rng)]
    if rng.random() < 0.15:
        parts.reverse()
    parts = [*choose_some(patterns.WATCH, 1, rng), *parts]
    text = garble(" ".join(parts), OTHERS, patterns.SOMETHING_ELSE, rng)
    return prompts.fill(text, question=question)


def ask_critique(question: str, initial: str, error_types: str, rng) -> str:
    """Ask for a critique, as critique.py does; error_types: the list, or ""."""
    fields = {"question": question, "initial": initial, "error_types": error_types}
    if error_types and rng.random() < USUAL:
        return prompts.fill(patterns.USUAL["critique"], **fields)
    verdict = choose(patterns.VERDICT if error_types else patterns.VERDICT_WITHOUT_LIST, rng)
    request = [
        *choose_some(patterns.CHECK, 1, rng),
        *choose_some(patterns.SAY_WHAT_IS_SHOWN, 1, rng),
        verdict,
        *choose_some(patterns.OR_NONE, 1, rng),
    ]
    pair = choose(patterns.PAIR, rng)
    parts = [pair, *request] if rng.random() < 0.75 else [*request, pair]
    parts = [*choose_some(patterns.INTRODUCE, 1, rng), *parts]
    text = garble(" ".join(parts), OTHERS, patterns.SOMETHING_ELSE, rng)
    return prompts.fill(text, **fields)


def ask_revision(question: str, initial: str, critique: str, rng) -> str:
    """Ask for a revision, as refine.py does."""
    fields = {"question": question, "initial": initial, "critique": critique}
    if rng.random() < USUAL:
        return prompts.fill(patterns.USUAL["revision"], **fields)
    reviewed = choose(patterns.REVIEWED, rng).replace("{pair}", choose(patterns.PAIR, rng))
    request = [choose(patterns.REVISE, rng), *choose_some(patterns.REVISE_WITH_CARE, 1, rng)]
    parts = [reviewed, *request] if rng.random() < 0.8 else [*request, reviewed]
    parts = [*choose_some(patterns.INTRODUCE, 1, rng), *parts]
    text = garble(" ".join(parts), OTHERS, patterns.SOMETHING_ELSE, rng)
    return prompts.fill(text, **fields)


# ------------------------------------------------------------------------------
# Lists of error types


class ErrorType(NamedTuple):
    """An error type that a critique may name."""

    name: str
    meaning: str
    faults: frozenset  # that it stands for; empty: all that no other one stands for


def draw_error_types(rng) -> list[ErrorType]:
    """Draw 2 to 6 of our error types, or some of somebody's own."""
    if rng.random() < 0.5:
        return draw_ours(rng)
    while True:
        listed = draw_own(rng)
        names = [error_type.name for error_type in listed]
        if prompts.parse_error_types(f"Errors: {', '.join(names)}", names) == names:
            return listed


def draw_ours(rng) -> list[ErrorType]:
    """Draw 2 to 6 of our error types, all of them most often."""
    n = 6 if rng.random() < 0.3 else rng.integers(2, 6)
    ours = list(patterns.FAULT_OF)
    names = [str(name) for name in rng.permutation(ours)[:n]]
    if rng.random() < 0.5:
        names.sort(key=ours.index)
    listed = []
    for name in names:
        fault = patterns.FAULT_OF[name]
        meaning = prompts.ERROR_TYPES[name]
        if rng.random() < 0.7:
            meaning = vary(patterns.MEANINGS[fault] if fault else patterns.ANYTHING, rng)
        listed.append(ErrorType(name, meaning, frozenset([fault] if fault else [])))
    return listed


def draw_own(rng) -> list[ErrorType]:
    """Draw error types of other names, each for one to three faults, and maybe one for the rest.

    Most names are any words at all, so that a name must be read from the list.
    """
    faults = [str(fault) for fault in rng.permutation(list(patterns.MEANINGS))]
    names_mean_something = rng.random() < 0.35
    listed = []
    for _ in range(rng.integers(2, 5)):
        group = [faults.pop() for _ in range(min(rng.integers(1, 4), len(faults)))]
        if group:
            name = vary(patterns.NAMES[group[0]], rng) if names_mean_something else draw_name(rng)
            joint = (" or ", ", ", ", or ")[rng.integers(3)]
            meaning = joint.join(vary(patterns.MEANINGS[fault], rng) for fault in group)
            listed.append(ErrorType(name, meaning, frozenset(group)))
    if rng.random() < 0.4:
        name = vary(patterns.ANY_NAME, rng) if names_mean_something else draw_name(rng)
        listed.append(ErrorType(name, vary(patterns.ANYTHING, rng), frozenset()))
    by_name = {error_type.name: error_type for error_type in listed}  # each name once
    return list(by_name.values())


def draw_name(rng) -> str:
    """Draw one to three words, of any meaning, as the name of an error type."""
    return "_".join(rng.choice(OTHERS, rng.integers(1, 4)))


def describe(listed: list[ErrorType], rng) -> str:
    """Write a list of error types, most often as critique.py does; ours also without meanings."""
    chance = rng.random()
    if chance < 0.6:
        return prompts.describe_error_types({each.name: each.meaning for each in listed})
    if chance < 0.8 and all(each.name in patterns.FAULT_OF for each in listed):
        names = [each.name for each in listed]
    else:
        names = [f"{each.name}: {each.meaning}" for each in listed]
    *first, last = names
    joint = (" and ", " or ", ", ")[rng.integers(3)] if first else ""
    return f"{', '.join(first)}{joint}{last}"


def name_errors(errors: list[str], type: str, listed: list[ErrorType]) -> list[str]:
    """Name the errors of an answer, as far as the list has names for them.

    Args:
        errors: our error types
        type: of the question
        listed: what may be named
    """
    named = set()
    for error in errors:
        fault = patterns.FAULT_OF[error] or patterns.FAULT_OF_TYPE[type]
        exact = [each.name for each in listed if fault in each.faults]
        rest = [each.name for each in listed if not each.faults]
        named.update(exact or rest)
    return [each.name for each in listed if each.name in named]
