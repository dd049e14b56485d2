"""LongVideoBench: validation, 1,337 questions; subtitles are not shown.

    lvb_val.json
    videos/<video_path>

From https://huggingface.co/datasets/longvideobench/LongVideoBench. Results
are also broken down by group of durations and by category.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import benchmarks
import common

PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)


def load(directory: Path) -> Iterator[dict]:
    """Yield the items, in the order of the file."""
    path = directory / "lvb_val.json"
    for where, row in benchmarks.numbered(common.read_json(path), path):
        id, video, question, options, answer = benchmarks.need(
            row, where, "id", "video_path", "question", "candidates", "correct_choice"
        )
        group, category = benchmarks.need(row, where, "duration_group", "question_category")
        yield benchmarks.make_item(
            where,
            benchmark="longvideobench",
            task="multiple_choice",
            id=f"{id}",
            video=f"videos/{video}",
            question=question,
            options=options,
            answer=answer,
            tags={"duration_group": group, "category": category},
        )


def render(item: dict) -> str:
    """Ask for the letter, with a newline at the end, unlike Perception Test and EgoSchema."""
    options = benchmarks.letter_options(item)
    return f"{item['question']}\n{options}\n{benchmarks.LETTER_INSTRUCTION}\n"


def parse(item: dict, reply: str) -> int | None:
    """Cut out PHRASES, one after the other; then read the first capital A to E, even in a word.

    "The answer: D" -> 3
    "Answer: B" -> 0    (the A of Answer)
    "Based on the video, the answer is C." -> 1    (the B of Based)
    "the second" -> None
    """
    for phrase in PHRASES:
        reply = reply.replace(phrase, "")
    match = re.search("[A-E]", reply)
    return benchmarks.LETTERS.index(match[0]) if match else None


BENCHMARK = benchmarks.Benchmark(load, render, parse, max_new_tokens=32, draws_unparsed=True)
