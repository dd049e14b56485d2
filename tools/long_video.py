"""Measure memory and seconds of reading 8 frames of a ten-minute 4K video.

    python -m tools.long_video        # writes runs/long_video.mp4 once: some minutes

Three ways, each in a process of its own:

    full size    all frames are kept as they are, then stacked
    shrunk       as the stages do it: each frame is shrunk to 448 x 448, the size
                 of InternVL, as soon as it is decoded
    ten seconds  the same of the seconds 60 to 70: what is after them is not
                 decoded

Prints seconds, and how much the largest memory of the process grew.
"""

import argparse
import functools
import multiprocessing
import resource
import time
from pathlib import Path

import cv2
import numpy as np
import transformers

import common
import media
from vlm import families

WIDTH = 3840
HEIGHT = 2160
FPS = 25
SECONDS = 600
FRAMES = 8

SHRINK = functools.partial(families.shrink, config=transformers.InternVLConfig())  # 448 x 448
WAYS = {
    "full size": {},
    "shrunk": {"shrink": SHRINK},
    "ten seconds": {"start": 60.0, "end": 70.0, "shrink": SHRINK},
}


def write_video(path: Path):
    """Write the video: a square that wanders over a gradient."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part_{path.name}")
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(part), cv2.CAP_FFMPEG, codec, FPS, (WIDTH, HEIGHT))
    row = np.linspace(0, 255, WIDTH).astype(np.uint8)
    background = np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3))
    for number in common.progress(range(FPS * SECONDS), "writing", unit="frame"):
        image = background.copy()
        left = number * 3 % (WIDTH - 200)
        image[1000:1200, left : left + 200] = (0, 0, 255)
        writer.write(image)
    writer.release()
    part.rename(path)


def measure(path: Path, options: dict, pipe):
    """Read frames in this process; send the seconds, and the growth of its memory in MiB."""
    media.check_opencv()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.time()
    media.sample_frames(path, FRAMES, **options)
    seconds = time.time() - begun
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send((seconds, (after - before) / 1024))


def main():
    """Write the video if it is not there, and print the three measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument("--video", type=Path, default="runs/long_video.mp4", metavar="PATH")
    args = parser.parse_args()
    if not args.video.exists():
        write_video(args.video)

    context = multiprocessing.get_context("spawn")
    for name, options in WAYS.items():
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(args.video, options, sender))
        process.start()
        seconds, growth = receiver.recv()
        process.join()
        print(f"{name:12} {seconds:7.1f} s {growth:8.0f} MiB")


if __name__ == "__main__":
    common.run(main)
