"""The frames that the model saw of a video, as one small picture, for tools.page."""

import base64
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import transformers

import common
import vlm
from vlm import families, placement, prefix

HEIGHT = 64  # pixels of a frame on the page
QUALITY = 75  # of the JPEG


class Shown(NamedTuple):
    """How an output's videos were shown to its model."""

    root: Path
    model: str  # directory or hub name
    n_frames: int
    config: transformers.PretrainedConfig


def make_strips(to_show: dict[Path, list[dict]]) -> tuple[dict[str, str], list[str]]:
    """Make a strip of frames for each video, or segment of one, that rows are about.

    Args:
        to_show: {directory of a round, or base: rows}

    Returns:
        {"<directory>/<name_strip of a row>": a data URL}, and for each directory where some are
        missing why that is
    """
    strips = {}
    lines = []
    for directory, rows in to_show.items():
        reasons = []
        groups = common.group_by_segment(rows)
        for _, (first, *_) in groups:
            output = "eval/predictions.jsonl" if "benchmark" in first else "responses.jsonl"
            try:
                shown = read_how_shown(directory / output)
                strips[f"{directory.name}/{name_strip(first)}"] = make_strip(shown, first)
            except (common.InputError, OSError) as error:
                reasons.append(str(error))
        if reasons:
            lines.append(
                f"{directory.name}: {len(reasons)} of {len(groups)} videos, such as: {reasons[0]}"
            )
    return strips, lines


def name_strip(row: dict) -> str:
    """Name the strip of a row: its video, and the seconds that are shown of it, if not all."""
    video, start, end = common.segment(row)
    if start is None and end is None:
        return video
    return f"{video}, from {start or 0} to {'the end' if end is None else end} s"


def read_how_shown(output: Path) -> Shown:
    """Read how videos were shown; InputError if the model is not there any more."""
    meta = common.meta_path(output)
    root, arguments = common.read_keys(meta, "root", "arguments")
    model = find_model(meta)
    config = placement.read_config(vlm.find_base(model), arguments.get("frame_tokens"))
    asked = arguments.get("frames")
    if not isinstance(root, str) or not isinstance(asked, int | None):
        raise common.InputError(f"{meta}: `root` is no path, or `frames` is no number")
    n_frames = families.choose_n_frames(asked, config)
    return Shown(Path(root), model, n_frames, config)


def find_model(meta: Path) -> str:
    """Find the model that a meta.json names: a directory, as it was named there, or a hub name.

    Raises:
        InputError: if it names none, or a directory that is not there any more
    """
    arguments, directory = common.read_keys(meta, "arguments", "directory")
    model = arguments.get("model") if isinstance(arguments, dict) else None
    if not isinstance(model, str):
        raise common.InputError(f"{meta}: it names no model that has seen the videos")
    named = Path(directory, model)
    if named.exists():
        return str(named)
    if len(Path(model).parts) > 2 or Path(model).exists():  # no hub name; or another one, from here
        raise common.InputError(f"{named}: the model is gone, which {meta} names")
    return model


def make_strip(shown: Shown, row: dict) -> str:
    """Put the frames of a row's video side by side -> a JPEG as a data URL.

    Raises:
        OSError: if the video cannot be read, or is not below the recorded root
    """
    frames = read_frames(shown, row)  # (F, height, width, 3)
    width = max(1, round(HEIGHT * frames.shape[2] / frames.shape[1]))
    small = [cv2.resize(frame, (width, HEIGHT), interpolation=cv2.INTER_AREA) for frame in frames]
    strip = cv2.cvtColor(np.concatenate(small, axis=1), cv2.COLOR_RGB2BGR)
    encoded, jpeg = cv2.imencode(".jpg", strip, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not encoded:
        raise OSError(f"{len(frames)} frames beside each other are too wide for a JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"


def read_frames(shown: Shown, row: dict) -> np.ndarray:
    """Read the frames of what a row is about as the model saw them: uint8 (F, height, width, 3).

    Raises:
        OSError: if the video cannot be read, or is not below the recorded root
    """
    name = Path(row["video"])
    if ".." in name.parts or name.is_absolute():
        raise OSError(f"{name} is not below the videos' root")
    return prefix.sample_segment(shown.root, row, shown.n_frames, shown.config).frames
