"""EgoSchema: 5,031 questions, 500 of them with a public answer.

    questions.json         the 5,031 questions
    subset_answers.json    the 500 answers that are public: {q_uid: index}
    <q_uid>.mp4            in any folder

From https://github.com/egoschema/EgoSchema. Only the 500 are asked; with
--full all are, and submission.json is written.
"""

from collections.abc import Iterator
from pathlib import Path

import benchmarks
import common

# ------------------------------------------------------------------------------
# Items


def load(directory: Path) -> Iterator[dict]:
    """Yield the items, also those without a public answer, in the order of the file."""
    path = directory / "questions.json"
    answers_path = directory / "subset_answers.json"
    locate = benchmarks.find_videos(directory)
    answers = {}
    if answers_path.exists():
        answers |= benchmarks.expect(common.read_json(answers_path), dict, answers_path)

    for where, row in benchmarks.numbered(common.read_json(path), path):
        name, question = benchmarks.need(row, where, "q_uid", "question")
        options = benchmarks.need(row, where, *(f"option {number}" for number in range(5)))
        yield benchmarks.make_item(
            where,
            benchmark="egoschema",
            task="multiple_choice",
            id=f"{name}",
            video=locate(name),
            question=question,
            options=options,
            answer=answers.pop(f"{name}", None),
            tags={},
        )
    if answers:
        unknown = next(iter(answers))
        raise common.InputError(f"{answers_path}: {unknown!r} is not a q_uid of {path.name}")


# ------------------------------------------------------------------------------
# Prompt and reply


def render(item: dict) -> str:
    """Ask for the letter, without a newline at the end."""
    options = benchmarks.letter_options(item)
    return f"{item['question']}\n{options}\n{benchmarks.LETTER_INSTRUCTION}"


def parse(item: dict, reply: str) -> int | None:
    """Read a reply by MMMU's parser as lmms-eval changed it: of several hits the earliest counts.

    Letters written (X), "X " and "X." are all looked for, by the last place of each in the text.
    If there is none, and the reply has more than five words, options are looked for together with
    their letters.

    "(A) or (C)" -> 0
    "C, not (B)" -> 1    ("C," is none of the three)
    "I would say b. thumbs up" -> 1, if option B is "thumbs up"
    "I say b. thumbs up" -> None, five words
    """
    text = benchmarks.trim_marks(reply)
    lines = benchmarks.letter_options(item).split("\n")
    hits = []  # (last place in the text, index of the option)
    for index, letter in enumerate(benchmarks.LETTERS[: len(lines)]):
        for form in (f"({letter})", f"{letter} ", f"{letter}."):
            hits.append((text.rfind(form), index))

    if all(place < 0 for place, _ in hits) and len(text.split()) > 5:
        text = text.lower()
        hits = [(text.rfind(line.strip().lower()), index) for index, line in enumerate(lines)]
    found = [(place, index) for place, index in hits if place >= 0]
    if not found:
        return None
    _, index = min(found)
    return index


BENCHMARK = benchmarks.Benchmark(load, render, parse, max_new_tokens=1024, draws_unparsed=True)
