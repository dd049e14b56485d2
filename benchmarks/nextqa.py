"""NExT-QA: multiple choice, test, 8,564 questions about 1,000 videos.

    test.csv
    <video id>.mp4    in any folder, such as NExTVideo/ or VidOR's 0101/

From https://github.com/doc-doc/NExT-QA. Results are also broken down by type
and by its group, the type's first letter: C causal (CW CH), T temporal (TN TC
TP), D descriptive (DO DL DC).
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import benchmarks
import common

# ------------------------------------------------------------------------------
# Items


def load(directory: Path) -> Iterator[dict]:
    """Yield the items, in the order of the table."""
    path = directory / "test.csv"
    locate = benchmarks.find_videos(directory)
    for where, row in read_table(path):
        name, qid, kind, question, answer = benchmarks.need(
            row, where, "video", "qid", "type", "question", "answer"
        )
        options = benchmarks.need(row, where, "a0", "a1", "a2", "a3", "a4")
        if None in row:  # where csv puts the fields that have no name
            raise common.InputError(f"{where}: more fields than the header names")
        if answer.isdecimal():
            answer = int(answer)
        yield benchmarks.make_item(
            where,
            benchmark="nextqa",
            task="multiple_choice",
            id=f"{name}/{qid}",
            video=locate(name),
            question=question,
            options=options,
            answer=answer,
            tags={"type": kind, "group": kind[:1]},
        )


def read_table(path: Path) -> list[tuple[str, dict]]:
    """Read a CSV file with a header -> [(file and line, row), ...]; InputError if it cannot be."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file, strict=True)
            return [(f"{path}, line {table.line_num}", row) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise common.InputError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from error


# ------------------------------------------------------------------------------
# Prompt and reply


def render(item: dict) -> str:
    """Strip the blanks around question and options, and add no instruction at all."""
    lines = [item["question"].strip()]
    for letter, option in zip(benchmarks.LETTERS, item["options"]):
        lines.append(f"{letter}. {option.strip()}")
    return "\n".join(lines)


def parse(item: dict, reply: str) -> int | None:
    """Read a reply by MMMU's parser: of several hits the last counts.

    Letters written (X) come first; if there is none, "X "; if none, "X."; if none, and the reply
    has more than five words, options whose text is found in it. The last hit is the one whose last
    place in the text is the highest; a letter without brackets is then looked for between blanks,
    and has no place (-1) if it is not found so.

    "(A) or (C)" -> 2
    "I think A is wrong and D is right" -> 3
    "A, not plan B or VITA tape" -> 1    ("A " is found in VITA, but " A " is not found)
    "he gave it a thumbs up" -> index of "thumbs up"; "he gave a thumbs up" -> None, five words
    """
    text = benchmarks.trim_marks(reply)
    letters = list(enumerate(benchmarks.LETTERS[: len(item["options"])]))
    in_brackets = [(index, letter) for index, letter in letters if f"({letter})" in text]
    before_blank = [(index, letter) for index, letter in letters if f"{letter} " in text]
    before_stop = [(index, letter) for index, letter in letters if f"{letter}." in text]

    places = {}  # index of an option -> its last place in the text
    if in_brackets:
        for index, letter in in_brackets:
            places[index] = text.rfind(f"({letter})")
    elif before_blank or before_stop:
        for index, letter in before_blank or before_stop:
            places[index] = text.rfind(f" {letter} ")
    elif len(text.split()) > 5:
        text = text.lower()
        for index, option in enumerate(item["options"]):
            place = text.rfind(option.strip().lower())
            if place >= 0:
                places[index] = place
    return max(places, key=places.get, default=None)  # of equal places the first


BENCHMARK = benchmarks.Benchmark(load, render, parse, max_new_tokens=1024, draws_unparsed=True)
