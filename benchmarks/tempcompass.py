"""TempCompass: three tasks about 410 videos; the score is the mean over tasks.

    questions/multi-choice.json        {video id: {dimension: [...]}}
    questions/yes_no.json              likewise
    questions/caption_matching.json    likewise
    <video id>.mp4                     in any folder

From https://github.com/llyx97/TempCompass. In yes_no, the options are yes and
no. In the other tasks they are the question's lines after the first, and stay
in it as they are, three of them malformed. The fourth task, captioning, is
left out: it cannot be scored without a judge.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import benchmarks
import common

TASKS = ("multi-choice", "yes_no", "caption_matching")

# ------------------------------------------------------------------------------
# Items


def load(directory: Path) -> Iterator[dict]:
    """Yield the items of the three tasks, one task after the other."""
    locate = benchmarks.find_videos(directory)
    for task in TASKS:
        path = directory / "questions" / f"{task}.json"
        videos = benchmarks.expect(common.read_json(path), dict, path)
        for name, dimensions in videos.items():
            yield from load_video(task, name, dimensions, locate(name), f"{path}, {name}")


def load_video(
    task: str, name: str, dimensions: dict[str, list], video: str, where: str
) -> Iterator[dict]:
    """Yield the items of one task about one video, of which `name` is the id, `video` the path."""
    for dimension, rows in benchmarks.expect(dimensions, dict, where).items():
        numbered = benchmarks.numbered(rows, f"{where}, {dimension}")
        for number, (row_where, row) in enumerate(numbered):
            question, answer = benchmarks.need(row, row_where, "question", "answer")
            if task == "yes_no":
                options = ["yes", "no"]
            else:
                options = f"{question}".split("\n")[1:]
            yield benchmarks.make_item(
                row_where,
                benchmark="tempcompass",
                task=task,
                id=f"{name}/{task}/{dimension}/{number}",
                video=video,
                question=question,
                options=options,
                answer=f"{answer}",
                tags={"dimension": dimension},
            )


# ------------------------------------------------------------------------------
# Prompt and reply


def render(item: dict) -> str:
    """Add the task's instruction; the options are in the question already."""
    if item["task"] == "yes_no":
        return f"{item['question']}\nPlease answer yes or no:"
    return f"{item['question']}\nPlease directly give the best option:"


def parse(item: dict, reply: str) -> int | None:
    """Read a reply by the rules of the official scripts with --disable_llm.

    None stands for what they would otherwise ask a judge.
    """
    reply = reply.strip()
    if item["task"] == "multi-choice":
        return parse_multi_choice(reply)
    if item["task"] == "yes_no":
        return parse_yes_no(item["options"], reply)
    return parse_caption(item["options"], reply)


def parse_multi_choice(reply: str) -> int | None:
    """Read a capital A to D that is the whole reply, or is first and has . or ) after it.

    "B" -> 1
    "B) sit" -> 1
    "B: sit" -> None
    "sit" -> None
    """
    match = re.match(r"([A-D])([.)]|$)", reply)
    return benchmarks.LETTERS.index(match[1]) if match else None


def parse_yes_no(options: list[str], reply: str) -> int | None:
    """Read how the reply begins.

    "Yes, it is." -> 0
    "NO" -> 1
    "not at all" -> 1
    "It is." -> None
    """
    for index, word in enumerate(options):
        if reply.lower().startswith(word):
            return index
    return None


def parse_caption(options: list[str], reply: str) -> int | None:
    """Compare the reply with an option's line, its sentence, its label, and the label's last word.

    The sentence may also come after a ")". Full stops do not count in the label and its last word,
    but they do in the rest. With the options "Caption A: A man runs." and "Caption B: A man sits.":

    "A man sits." -> 1
    "B) A man sits." -> 1
    "A." -> 0
    "A man sits" -> None
    """
    if not reply:
        return None
    sentences = [reply]
    if ") " in reply:
        sentences.append(reply.split(") ")[1])
    label_or_word = reply.replace(".", "")

    for index, option in enumerate(options):
        label, sentence = (option.split(": ") + [""])[:2]  # "Caption A", "A man runs."
        last_word = label.split(" ")[-1]  # "A"
        if option == reply or sentence in sentences or label_or_word in (label, last_word):
            return index
    return None


BENCHMARK = benchmarks.Benchmark(
    load,
    render,
    parse,
    max_new_tokens=1024,
    score=benchmarks.mean_over_tasks,
    score_is="mean over {n_tasks} tasks",
)
