"""Take n frames of a video, or of the seconds of it between start and end."""

import bisect
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from media.changes import check_same_size
from media.decode import (
    Decoded,
    Header,
    check_opencv,
    decode,
    read_header,
    read_picture,
    why_undecodable,
)
from media.find import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_shown
from media.whole import is_cut_off

FOLDER_FPS = 3.0  # frames per second of a folder of frames, as in MVBench
UNKNOWN_RATE = 24.0  # frames per second of a file that says neither times nor a rate
LEAST_SHARE = 0.5  # of a cut video's seconds: if less is left, it is refused
WHOLE_SHARE = 0.95  # if less than this, the rows say so
TOLERANCE = 0.001  # in seconds: OpenCV gives times in floats


class Wanted(NamedTuple):
    """What is wanted of a video."""

    n: int  # frames
    start: float | None  # seconds between which they are taken; None: the whole video
    end: float | None
    by_rate: bool  # find start and end by the frame rate, and not by the times of the frames


class Sample(NamedTuple):
    """Frames of a video."""

    frames: np.ndarray  # uint8 (n, height, width, 3), RGB
    seconds: list[float]  # when each of them is shown
    warning: str | None  # how much of it can be decoded, if that is not all


def sample_frames(
    path,
    n: int,
    start: float | None = None,
    end: float | None = None,
    by_rate: bool = False,
    shrink: Callable | None = None,
) -> Sample:
    """Take n frames of a video file, or of a folder of images in the order of their numbers.

    Args:
        start, end: seconds between which they are taken; None: the whole video
        by_rate: find start and end by the frame rate, as lmms-eval does for benchmarks, and not by
            the times of the frames. In a video of variable rate these differ
        shrink: called with each frame, uint8 (height, width, 3), as soon as it is decoded, so that
            none stays in memory at its full size

    Raises:
        OSError: if it cannot be read, with the reason
        InputError: if this OpenCV decodes wrongly
    """
    path = Path(path)
    wanted = Wanted(n, start, end, by_rate)
    if not by_rate and start is not None and end is not None and end < start:
        raise OSError(f"{path}: end is {end}, which is before start, {start}")
    images = list_images(path)
    if images:
        return sample_folder(path, images, wanted, shrink)
    check_opencv()
    return sample_file(path, wanted, shrink)


# ------------------------------------------------------------------------------
# Which frames


def frame_indices(total: int, fps: float, n: int, start=None, end=None, first=0) -> list[int]:
    """Choose n of `total` frames, which are numbered from `first` on.

    They are the middles of n equal parts of [start, end] (seconds; None: all), rounded and clamped
    as InternVL and lmms-eval do it.

    >>> frame_indices(16, 8, 4)
    [1, 5, 9, 12]
    """
    last = first + total - 1
    begin = first if start is None else max(first, round(start * fps))
    stop = last if end is None else min(round(end * fps), last)
    return [min(max(middle, first), last) for middle in middles(begin, stop, n)]


def middles(begin: int, stop: int, n: int) -> list[int]:
    """Give the middles of n equal parts of the frames from begin to stop."""
    part = (stop - begin) / n  # in frames
    return [int(begin + part / 2 + round(part * i)) for i in range(n)]


def indices_by_time(total: int, time_of: Callable[[int], float], n: int, start, end) -> list[int]:
    """Choose n of `total` frames: the middles of n equal parts of those on screen in [start, end].

    Args:
        time_of: gives a frame's seconds; they do not decrease
        start, end: seconds, or None

    >>> indices_by_time(4, [0.0, 0.1, 0.2, 60.0].__getitem__, 2, 30.0, 61.0)
    [2, 2]
    """

    def on_screen(seconds):
        """Find the last frame that is not after these seconds."""
        n_before = bisect.bisect_right(range(total), seconds + TOLERANCE, key=time_of)
        return max(n_before - 1, 0)

    begin = 0 if start is None else on_screen(start)
    stop = total - 1 if end is None else on_screen(end)
    return middles(begin, stop, n)


# ------------------------------------------------------------------------------
# A folder of frames


def sample_folder(path: Path, images: list[Path], wanted: Wanted, shrink) -> Sample:
    """Read the wanted ones of a folder's images."""
    if not wanted.by_rate:
        check_start(path, wanted.start, len(images) / FOLDER_FPS)
    n, start, end, _ = wanted
    numbers = frame_indices(len(images), FOLDER_FPS, n, start, end, first=1)
    kept = {}
    sizes = set()
    for number in sorted(set(numbers)):
        kept[number], size = read_picture(images[number - 1], shrink)
        sizes.add(size)
    if len(sizes) > 1:
        raise OSError(f"{path}: the frames differ in size")
    return Sample(
        frames=np.stack([kept[number] for number in numbers]),
        seconds=[(number - 1) / FOLDER_FPS for number in numbers],
        warning=None,
    )


def list_images(folder: Path) -> list[Path]:
    """List the images of a folder, in the order of the numbers in their names.

    Empty if it is not a folder; OSError if it may not be read.

    A number may have a decimal point, as in a name that says seconds: 10.25.jpg is before 10.5.jpg.
    But where fractions have several lengths and one ends in 0, points only separate: 1.9.jpg is
    before 1.10.jpg. The digit of a suffix is no number: clip.mp4.5.jpg is before clip.mp4.15.jpg.
    """
    images = []
    try:
        for file in folder.iterdir() if folder.is_dir() else ():
            if file.suffix.lower() in IMAGE_SUFFIXES and is_shown(file.name):
                images.append(file)
    except OSError as error:
        raise OSError(f"{folder}: {error.strerror}") from error

    stems = {file: without_suffixes(file.stem) for file in images}
    fractions = {part for stem in stems.values() for part in re.findall(r"\d\.(\d+)", stem)}
    differ = len({len(fraction) for fraction in fractions}) > 1
    separate = differ and any(re.fullmatch(r"\d+0", fraction) for fraction in fractions)
    number = r"(\d+)" if separate else r"(\d+(?:\.\d+)?)"

    def in_order(file):
        parts = re.split(number, stems[file])  # text, number, text, number, ...
        parts[1::2] = [float(part) for part in parts[1::2]]
        return parts, file.name

    return sorted(images, key=in_order)


def without_suffixes(stem: str) -> str:
    """Take the suffixes of videos out of the name of an image: clip.mp4.5 -> clip.5."""
    parts = stem.split(".")
    return ".".join(part for part in parts if f".{part.lower()}" not in VIDEO_SUFFIXES)


# ------------------------------------------------------------------------------
# A video file


def sample_file(path: Path, wanted: Wanted, shrink) -> Sample:
    """Decode the wanted frames of a video file.

    Which ones they are is known only when all are counted. So it is guessed from what the file
    announces; if that was wrong, the file is decoded once more.
    """
    header = read_header(path)
    most_packets = None
    if wanted.end is not None:
        most_packets = round(2 * wanted.end * header.rate) + 1000
    check_same_size(path, header.codec, most_packets)

    step = 1 / header.rate if header.rate else 0.0
    numbers = choose(wanted, header, header.announced, lambda number: number * step)
    for _ in range(2):
        decoded = decode(path, set(numbers), functools.partial(is_past, wanted, header), shrink)
        if not decoded.seconds:
            raise OSError(f"{path}: no frame can be decoded; {why_undecodable(path)}")
        total = len(decoded.seconds)
        numbers = choose(wanted, header, total, decoded.seconds.__getitem__)
        if decoded.images.keys() >= set(numbers):
            warning = check_coverage(path, wanted, header, decoded)
            return Sample(
                frames=np.stack([decoded.images[number] for number in numbers]),
                seconds=tell_seconds(decoded, numbers),
                warning=warning,
            )
    raise OSError(f"{path}: it is damaged, and decodes differently from one time to the next")


def tell_seconds(decoded: Decoded, numbers: list[int]) -> list[float]:
    """Say when these frames are shown: by the file's own times, else by UNKNOWN_RATE."""
    has_times = decoded.seconds[-1] > 0 or len(decoded.seconds) == 1
    if has_times:
        return [decoded.seconds[number] for number in numbers]
    return [number / UNKNOWN_RATE for number in numbers]


def choose(wanted: Wanted, header: Header, total: int, time_of) -> list[int]:
    """Choose the numbers of the wanted frames, if there are `total` frames with these times."""
    n, start, end, by_rate = wanted
    if total == 0:
        return []
    if by_rate:
        return frame_indices(total, header.rate, n, start, end)
    return indices_by_time(total, time_of, n, start, end)


def is_past(wanted: Wanted, header: Header, number: int, seconds: float) -> bool:
    """Say whether a frame is behind all that is wanted, so that decoding may stop."""
    if wanted.end is None or number == 0:
        return False
    until = max(wanted.start or 0.0, wanted.end)
    if wanted.by_rate:
        return number > round(until * header.rate)
    return seconds > until + TOLERANCE


def check_coverage(path: Path, wanted: Wanted, header: Header, decoded: Decoded) -> str | None:
    """Say how much of a file that was cut off, or of its [start, end], is left; None if all of it.

    It is measured in seconds and not in frames: a file may announce frames that only repeat others.

    Raises:
        OSError: if it is less than LEAST_SHARE; or if start is after the end of the video
    """
    if not decoded.ended:  # what is after `end` was there
        return None
    length = 1 / header.rate if header.rate else 0.0  # of the last frame, in seconds
    reached = decoded.seconds[-1] + length
    claimed = max(header.announced * length, reached)
    if not wanted.by_rate:
        check_start(path, wanted.start, claimed)
    if not is_cut_off(path):
        return None

    begin = min(wanted.start or 0.0, claimed)
    if wanted.end is not None:
        claimed = max(min(wanted.end, claimed), begin)
    share = (reached - begin) / (claimed - begin) if claimed > begin else 1.0
    if share >= WHOLE_SHARE:
        return None
    says = f"{max(reached - begin, 0):.1f} of {claimed - begin:.1f} seconds can be decoded"
    if share < LEAST_SHARE:
        raise OSError(f"{path}: only {says}")
    return f"{says} ({share:.0%})"


def check_start(path: Path, start: float | None, length: float):
    """Raise OSError if a row wants seconds that are after the end of its video."""
    if start is not None and start > length:
        raise OSError(f"{path}: start is {start}, but the video has {length:.1f} seconds")
