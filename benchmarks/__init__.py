r"""The public benchmarks, one file each, and what these files share.

A benchmark of your own is one more file in this folder; nothing else is edited. If it is called
mine.py, `python evaluate.py --benchmark mine ...` finds it. It contains:

    a docstring          what must be on disk; `evaluate.py --benchmark list` prints it
    load(directory)      yields the items: questions with their options, answer and video
    render(item)         returns the prompt, which follows the video's frames
    parse(item, reply)   returns the index of the option that the reply stands for, or None
    BENCHMARK            these three functions, and how long a reply may be

For example, of questions.json with video, question, options and answer (an index or a text):

    import re

    import benchmarks
    import common

    def load(directory):
        path = directory / "questions.json"
        for where, row in benchmarks.numbered(common.read_json(path), path):
            video, question, options, answer = benchmarks.need(
                row, where, "video", "question", "options", "answer"
            )
            yield benchmarks.make_item(
                where,
                benchmark="mine",
                task="multiple_choice",
                id=f"{video}/{question}",
                video=f"videos/{video}",
                question=question,
                options=options,
                answer=answer,
                tags={},
            )

    def render(item):
        return f"{item['question']}\n{benchmarks.letter_options(item)}\nAnswer with the letter."

    def parse(item, reply):
        match = re.match("[A-E]", reply)
        return benchmarks.LETTERS.index(match[0]) if match else None

    BENCHMARK = benchmarks.Benchmark(load, render, parse, max_new_tokens=16)

If answers are free text, an item has one option, the true answer, and `parse` returns 0 if the
reply agrees with it, else None. Where questions are to be asked as generate.py asks them, `render`
is None: then the prompt is the one that the model was trained with, or that of --prompts.

If the score is not the share of correct replies, write a function from rows to a float, and name
it: Benchmark(..., score=f1, score_is="token F1, mean over questions"). The interval is bootstrapped
from the same function, which is called a thousand times for it. tests/patches/benchmark.patch adds
such a benchmark, whole.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

import common
import media

LETTER_INSTRUCTION = "Answer with the option's letter from the given choices directly."

# ------------------------------------------------------------------------------
# Scores: functions of rows, which are items with `initial` (the reply), `parsed` and `correct`


def accuracy(rows: list[dict]) -> float:
    """Compute the share of correct replies."""
    return sum(row["correct"] for row in rows) / len(rows)


def mean_over_tasks(rows: list[dict]) -> float:
    """Compute the mean over tasks of the share of correct replies in each."""
    shares = [accuracy(part) for part in group_by(rows, "task").values()]
    return sum(shares) / len(shares)


def group_by(rows: list[dict], name: str) -> dict:
    """Group rows by their task, or by one of their tags -> {value: its rows}, sorted by value."""
    groups = {}
    for row in rows:
        value = row["task"] if name == "task" else row["tags"][name]
        groups.setdefault(value, []).append(row)
    return dict(sorted(groups.items()))


# ------------------------------------------------------------------------------
# A benchmark


class Benchmark(NamedTuple):
    """How a benchmark is read, asked and scored."""

    load: Callable[[Path], Iterable[dict]]  # directory -> items, whether or not videos are there
    render: Callable[[dict], str] | None  # item -> prompt; None: it is asked as stage 1 asks
    parse: Callable[[dict, str], int | None]  # item, reply -> index of an option, or None
    max_new_tokens: int  # of a reply
    score: Callable[[list[dict]], float] = accuracy  # rows that are not dropped -> the score
    score_is: str = "mean over questions"  # the score in words; {n_tasks}: how many tasks it is of
    draws_unparsed: bool = False  # whether lmms-eval draws an option if it cannot parse the reply


def names() -> list[str]:
    """List the benchmarks of this folder: the names of its files."""
    files = Path(__file__).parent.glob("[!_]*.py")
    return sorted(file.stem for file in files)


# ------------------------------------------------------------------------------
# Items


def make_item(
    where: str,
    *,
    benchmark: str,
    task: str,
    id: str,
    video: str,
    question: str,
    options: list[str],
    answer: str | int | None,
    tags: dict,
    start: float | None = None,
    end: float | None = None,
) -> dict:
    """Make an item, which is a question of a benchmark, and check it.

    Args:
        where: file and number of its row, for the error message
        benchmark: name of the benchmark, which is the name of its file
        task: kind of question, if a benchmark has several; else "multiple_choice"
        id: unique in the benchmark
        video: path relative to the benchmark's directory: a file, or a folder of frames
        question: as it is in the benchmark
        options: texts; if the answers are free text, one option, the true answer
        answer: text or index of the right option; None if it is not public
        tags: {name: value}; results are broken down by task and by each tag
        start, end: seconds of the video that are shown; None: from its start, to its end

    Returns:
        a dict of all these but `where`; its `answer` is an index, or None

    Raises:
        InputError: if question or options are not texts, or the answer is not an option
    """
    for text in (question, *expect(options, list, where)):
        if not isinstance(text, str):
            raise common.InputError(f"{where}: {text!r} is not a string")
        if not text:
            raise common.InputError(f"{where}: the question or an option is empty")

    if answer in options:
        answer = options.index(answer)  # if several options have the same text, the first
    is_index = type(answer) is int and answer in range(len(options))  # True is no index
    if answer is not None and not is_index:
        raise common.InputError(
            f"{where}: the answer {answer!r} is not one of the {len(options)} options"
        )

    for name, value in tags.items():
        if not isinstance(value, (str, int)):
            raise common.InputError(f"{where}: {name} is {value!r}, not a string or an integer")
    return {
        "id": id,
        "benchmark": benchmark,
        "task": task,
        "video": video,
        "start": start,
        "end": end,
        "question": question,
        "options": options,
        "answer": answer,
        "tags": tags,
    }


def need(row: dict, where: str, *keys: str) -> list:
    """Return the values of a row's keys; InputError names the first key that it lacks."""
    for key in keys:
        if expect(row, dict, where).get(key) in (None, ""):
            raise common.InputError(f"{where}: no key {key!r}, or it is empty")
    return [row[key] for key in keys]


def expect(value, kind: type, where: str):
    """Return the value, if it is a list or an object (kind: list or dict); else InputError."""
    if not isinstance(value, kind):
        expected = "a list" if kind is list else "an object"
        raise common.InputError(f"{where}: {expected} is expected, not {type(value).__name__}")
    return value


def numbered(rows: list, where: str) -> list[tuple[str, dict]]:
    """Pair each row with its file and number, for error messages -> [(where, row), ...]."""
    return [
        (f"{where}, item {number}", row) for number, row in enumerate(expect(rows, list, where))
    ]


def find_videos(directory: Path) -> Callable[[str], str]:
    """Find all .mp4 and .MP4 files below a directory, in whatever folders.

    Returns:
        a function from the name of a video to its path; if the video is missing, the function
        returns a path where it may be put

    Raises:
        InputError: if two files have the same name
    """
    paths = []
    if not directory.is_dir():
        raise common.InputError(f"{directory}: no such directory")
    for folder, names in media.walk(directory):  # follows links, each folder once
        below = folder.relative_to(directory)
        paths += [
            (below / name).as_posix() for name in names or () if name.lower().endswith(".mp4")
        ]
    found = {}
    for path in sorted(paths):
        name = Path(path).stem
        if name in found:
            raise common.InputError(
                f"{directory}: {found[name]} and {path} have the same name; which one is it?"
            )
        found[name] = path

    def locate(name):
        return found.get(f"{name}", f"videos/{name}.mp4")

    return locate


# ------------------------------------------------------------------------------
# Prompts and replies


def letter_options(item: dict) -> str:
    """List the options, one a line: A. first, B. second, ..."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, item["options"])]
    return "\n".join(lines)


def trim_marks(reply: str) -> str:
    """Do the first step of MMMU's parser, which NExT-QA's and EgoSchema's are made from.

    Marks are removed from both ends, one kind after the other, in this order; so one that comes
    late may uncover one that is not tried again. Then a blank is added at each end.

    "(B)." -> " (B) "
    "B!." -> " B "
    "B.!" -> " B. "
    """
    for mark in ",.!?;:'":
        reply = reply.strip(mark)
    return f" {reply} "
