r"""Write copies of videos that are shifted by some pixels: another view of what they show.

    python -m tools.shift --input runs/mine/round1/pairs.jsonl --output runs/right3 --right 3
    python -m tools.shift --input runs/mine/round1/pairs.jsonl --output runs/up3 --down -3

reads    id, video; the videos of rows that were not dropped, or that dpo.py
         --with-unchanged reads
writes   for each video its copy, under the same name, with the same number of
         frames at an even rate; and shift.json, which says by how much. Run again,
         it resumes. A video that cannot be read has no copy, nor has one whose
         name is none for MPEG-4, such as .webm

A vision tower cuts a frame into patches, and may tell a thing from another one
less well where it falls between two of them. A copy shows the same things in
other patches: what is true of the video is true of it, but for places in
pixels. What moves in at an edge repeats the edge. docs/study.md has a recipe
that trains on copies.
"""

import argparse
import os
from pathlib import Path

import cv2
import numpy as np

import common
import dpo


def shift_videos(root: Path, names: list[str], target: Path, right: int, down: int) -> list[str]:
    """Write shifted copies of some videos; copies that are there already are kept.

    Args:
        root: directory that the names begin from
        target: directory that the names of the copies begin from
        right, down: pixels; negative: to the left, up

    Returns:
        what was wrong with those that have no copy
    """
    faults = []
    for name in common.progress(names, "shift", unit="video"):
        copy = target / name
        if copy.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_name(f"part_{copy.name}")
        try:
            shift_video(root / name, part, right, down)
        except OSError as error:
            part.unlink(missing_ok=True)
            faults.append(f"{error}")
        else:
            os.replace(part, copy)
    return faults


def shift_video(source: Path, target: Path, right: int, down: int):
    """Write a shifted copy of one video, as MPEG-4 part 2; right, down: as in shift_videos.

    Raises:
        OSError: if OpenCV cannot read it, or cannot write a file of such a name
    """
    capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG)
    width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
    height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    rate = capture.get(cv2.CAP_PROP_FPS)
    found, frame = capture.read()  # (height, width, 3)
    if not found:
        raise OSError(f"{source}: OpenCV cannot read it")
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(target), cv2.CAP_FFMPEG, codec, rate, (width, height))
    if not writer.isOpened():
        raise OSError(f"{source}: OpenCV cannot write MPEG-4 to a file {target.name}")
    move = np.float32([[1, 0, right], [0, 1, down]])
    n_read = 0
    while found:
        copy = cv2.warpAffine(frame, move, (width, height), borderMode=cv2.BORDER_REPLICATE)
        writer.write(copy)
        n_read += 1
        found, frame = capture.read()
    writer.release()
    n_written = cv2.VideoCapture(str(target), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT)
    if n_written != n_read:  # OpenCV says nothing of a full disk
        raise OSError(f"{target}: {n_written:.0f} of {n_read} frames were written")


def check_same_shift(output: Path, root: Path, args):
    """Write by how much is shifted into shift.json; InputError if it is there and says other."""
    path = output / "shift.json"
    shift = {"right": args.right, "down": args.down, "root": str(root)}
    if path.exists() and common.read_json(path) != shift:
        raise common.InputError(
            f"{output} has copies of another shift, or of other videos ({path} says which): choose "
            "another --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    common.write_json(path, shift)


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("--input", required=True, metavar="FILE", help="rows about the videos, of any stage")
    add("--videos", metavar="DIR", help="where they are, if the input's meta.json is wrong")
    add("--output", required=True, type=Path, metavar="DIR", help="directory of the copies")
    add("--right", type=int, default=0, metavar="PIXELS", help="negative: to the left")
    add("--down", type=int, default=0, metavar="PIXELS", help="negative: up")
    args = parser.parse_args()
    if not args.right and not args.down:
        parser.error("--right or --down says by how much; both are 0")
    return args


def main():
    """Write the copies."""
    args = parse_args()
    root, groups = common.read_input(args.input, args.videos, ("id", "video"))
    if args.output.resolve() == root:
        raise common.InputError(f"--output {args.output} is where the videos are")
    names = []
    for name, rows in groups:
        if not (args.output / name).resolve().is_relative_to(args.output.resolve()):
            raise common.InputError(
                f"{args.input}: {name} does not lie below the videos' directory"
            )
        if any("dropped" not in dpo.take_unchanged(row) for row in rows):
            names.append(name)
    check_same_shift(args.output, root, args)
    faults = shift_videos(root, names, args.output, args.right, args.down)
    for fault in faults:
        print(f"left out: {fault}")
    if len(faults) == len(names):
        raise common.InputError(f"{args.output}: none of {len(names)} videos has a copy")
    print(f"{args.output}: copies of {len(names) - len(faults)} of {len(names)} videos")


if __name__ == "__main__":
    common.run(main)
