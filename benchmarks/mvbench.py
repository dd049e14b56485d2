"""MVBench: 20 tasks of 200 questions each; the score is the mean over tasks.

    json/<task>.json              of each of the 20 tasks
    video/star/, video/sta/, ...  as the zip files unpack

From https://huggingface.co/datasets/OpenGVLab/MVBench. The videos are raw,
and shown from start to end (its branch main), or pre-trimmed, and shown whole
(its branch video); either may be below data0613/. The 320 NTU videos of
fine_grained_pose (video/nturgbd) are missing there.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import benchmarks
import common


class Folders(NamedTuple):
    """Where a task's videos are, below video/."""

    raw: str
    trimmed: str
    is_cut: bool = False  # whether raw videos are shown from start to end, not whole


STAR = Folders("star/Charades_v1_480", "star/Charades_segment", is_cut=True)
CLEVRER = Folders("clevrer/video_validation", "clevrer/video_validation")
PERCEPTION = Folders("perception/videos", "perception/videos")
TASKS = {
    "action_sequence": STAR,
    "action_prediction": STAR,
    "object_interaction": STAR,
    "action_localization": Folders("sta/sta_video", "sta/sta_video_segment", is_cut=True),
    # Raw: folders of frames, 3 a second, from 00001.jpg
    "episodic_reasoning": Folders("tvqa/frames_fps3_hq", "tvqa/video_fps3_hq_segment", is_cut=True),
    "action_antonym": Folders("ssv2_video", "ssv2_video_mp4"),
    "fine_grained_pose": Folders("nturgbd", "nturgbd_convert"),
    "fine_grained_action": Folders("Moments_in_Time_Raw/videos", "Moments_in_Time_Raw/videos"),
    "unexpected_action": Folders("FunQA_test/test", "FunQA_test/test"),
    "scene_transition": Folders("scene_qa/video", "scene_qa/video"),
    "egocentric_navigation": Folders("vlnqa", "vlnqa"),
    "object_existence": CLEVRER,
    "moving_direction": CLEVRER,
    "moving_count": CLEVRER,
    "moving_attribute": CLEVRER,
    "counterfactual_inference": CLEVRER,
    "object_shuffle": PERCEPTION,
    "action_count": PERCEPTION,
    "state_change": PERCEPTION,
    "character_order": PERCEPTION,
}

# ------------------------------------------------------------------------------
# Items


def load(directory: Path) -> Iterator[dict]:
    """Yield the items of the 20 tasks, one task after the other."""
    for task, folders in TASKS.items():
        path = directory / "json" / f"{task}.json"
        for number, (where, row) in enumerate(benchmarks.numbered(common.read_json(path), path)):
            name, question, options, answer = benchmarks.need(
                row, where, "video", "question", "candidates", "answer"
            )
            bounds = read_bounds(row, where)
            video = find_video(directory, f"{name}", folders, bounds)
            start = end = None
            if folders.is_cut and f"{folders.raw}/" in video:
                start, end = benchmarks.need(row, where, "start", "end")
            yield benchmarks.make_item(
                where,
                benchmark="mvbench",
                task=task,
                id=f"{task}/{number}",
                video=video,
                start=start,
                end=end,
                question=question,
                options=options,
                answer=f"{answer}",
                tags={},
            )


def read_bounds(row: dict, where: str) -> tuple:
    """Read a row's start and end: seconds, or None if it has none; InputError for anything else."""
    bounds = (row.get("start"), row.get("end"))
    for bound in bounds:
        is_seconds = isinstance(bound, (int, float)) and math.isfinite(bound)
        if bound is not None and not is_seconds:
            start, end = bounds
            raise common.InputError(
                f"{where}: start and end are {start!r} and {end!r}, not seconds"
            )
    return bounds


def find_video(directory: Path, name: str, folders: Folders, bounds: tuple) -> str:
    """Find a video -> its path; if it is missing, the path of the raw one.

    The pre-trimmed file comes first. In the branch `video` it is called <stem>_<start>_<end>.mp4,
    with the two numbers as Python writes them, or floats of them, or has its own name, where .webm
    and .avi have become .mp4. Then comes the raw file. Either may be below data0613/.
    """
    start, end = bounds
    start_float, end_float = [None if bound is None else float(bound) for bound in bounds]
    stem = re.sub(r"\.(mp4|webm|avi)$", "", name)  # a folder of frames has no suffix
    paths = [
        f"{folders.trimmed}/{stem}_{start}_{end}.mp4",
        f"{folders.trimmed}/{stem}_{start_float}_{end_float}.mp4",
        f"{folders.trimmed}/{stem}.mp4",
        f"{folders.trimmed}/{name}",
        f"{folders.raw}/{name}",
    ]
    for place in ("video/", "video/data0613/", "", "data0613/"):
        for path in paths:
            if (directory / place / path).exists():
                return f"{place}{path}"
    return f"video/{folders.raw}/{name}"


# ------------------------------------------------------------------------------
# Prompt and reply


def render(item: dict) -> str:
    """Write no space after "Question:", one "Option:" for all, and a newline at the end."""
    options = ""
    for letter, option in zip(benchmarks.LETTERS, item["options"]):
        options += f"({letter}) {option}\n"
    return f"Question:{item['question']}\nOption:\n{options}Only give the best option.\n"


def parse(item: dict, reply: str) -> int | None:
    """Read a letter A to E, in either case.

    A letter with a full stop and more text after it comes first. Else the marks are removed, and
    the first letter that stands alone counts: so the article "a" is an A.

    "b. the man" -> 1
    "(B)" -> 1
    "It is a dog: C" -> 0
    "the man" -> None
    """
    match = re.match(r"([A-E])\.\s*.+$", reply.strip(), re.IGNORECASE)
    if match is None:
        match = re.search(r"\b([A-E])\b", remove_marks(reply), re.IGNORECASE)
    return benchmarks.LETTERS.index(match[1].upper()) if match else None


def remove_marks(reply: str) -> str:
    """Remove punctuation as lmms-eval does.

    A mark that is beside a blank somewhere in the reply is deleted everywhere, another one becomes
    a blank; but if the reply contains a number like 1,000, all are deleted.

    "Option_B" -> "Option B"
    "Option_B or _ C" -> "OptionB or  C"
    "B/1,000" -> "B1000"
    "(B.5). x.B" -> "B.5 xB"
    """
    text = reply.replace("\n", " ").replace("\t", " ").strip()
    has_number = re.search(r"\d,\d", text)
    bare = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        is_beside_blank = f"{mark} " in text or f" {mark}" in text
        if has_number or is_beside_blank:
            bare = bare.replace(mark, "")
        else:
            bare = bare.replace(mark, " ")
    # Full stops with no digit after them, but not more than 32: lmms-eval hands re.sub a flag
    # (re.UNICODE, which is 32) where it takes a count
    return re.sub(r"\.(?!\d)", "", bare, count=32)


BENCHMARK = benchmarks.Benchmark(
    load,
    render,
    parse,
    max_new_tokens=16,
    score=benchmarks.mean_over_tasks,
    score_is="mean over {n_tasks} tasks",
)
