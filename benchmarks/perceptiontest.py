"""Perception Test: multiple choice, validation.

    mc_question_valid.json    {video id: {"mc_question": [...]}}
    <video id>.mp4            in any folder

From https://github.com/google-deepmind/perception_test. Results are also
broken down by area and by reasoning.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import benchmarks
import common


def load(directory: Path) -> Iterator[dict]:
    """Yield the items, in the order of the file."""
    path = directory / "mc_question_valid.json"
    locate = benchmarks.find_videos(directory)
    videos = benchmarks.expect(common.read_json(path), dict, path)
    for name, entry in videos.items():
        [rows] = benchmarks.need(entry, f"{path}, {name}", "mc_question")
        for where, row in benchmarks.numbered(rows, f"{path}, {name}"):
            id, question, options, answer, area, reasoning = benchmarks.need(
                row, where, "id", "question", "options", "answer_id", "area", "reasoning"
            )
            yield benchmarks.make_item(
                where,
                benchmark="perceptiontest",
                task="multiple_choice",
                id=f"{name}/{id}",
                video=locate(name),
                question=question,
                options=options,
                answer=answer,
                tags={"area": area, "reasoning": reasoning},
            )


def render(item: dict) -> str:
    """Ask for the letter, without a newline at the end."""
    options = benchmarks.letter_options(item)
    return f"{item['question']}\n{options}\n{benchmarks.LETTER_INSTRUCTION}"


def parse(item: dict, reply: str) -> int | None:
    """Read the first capital A to D that stands alone.

    "Answer: B" -> 1
    "**B**" -> 1
    "A man holds B" -> 0
    "b" -> None
    """
    match = re.search(r"\b[A-D]\b", reply)
    return benchmarks.LETTERS.index(match[0]) if match else None


BENCHMARK = benchmarks.Benchmark(load, render, parse, max_new_tokens=1024)
