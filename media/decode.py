"""Decode video files and pictures with OpenCV: every frame is the file's own, or it is refused.

A video is decoded in order from its beginning, since seeking is inexact. All functions raise
OSError, with the path and the reason, for a file that cannot be read.
"""

import contextlib
import functools
import math
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

import common
from media import jpeg

# So many times in a row the decoder is asked for a frame before the file counts as ended. It says
# no for a packet that is damaged, and for every 4,096 packets of sound without a picture.
MISSES = 100

# ------------------------------------------------------------------------------
# A video file


class Header(NamedTuple):
    """What a video file says about itself, before anything is decoded."""

    rate: float  # frames per second; 0.0 if it does not say, or says nonsense
    announced: int  # number of frames; 0 if it does not say
    codec: str  # its four-letter code; empty if OpenCV cannot open the file


class Decoded(NamedTuple):
    """What was decoded of a video file."""

    seconds: list[float]  # when each frame is shown; they increase
    images: dict[int, np.ndarray]  # the wanted frames, by number: uint8 (height, width, 3), RGB
    ended: bool  # whether all of the file was decoded, not only what was wanted


def read_header(path: Path) -> Header:
    """Read what a video file says about itself; OSError if it is not even a file."""
    check_file(path)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    letters = code.to_bytes(4, "little").decode("latin-1")
    return Header(
        rate=read_rate(capture),
        announced=int(announced) if 0 < announced < math.inf else 0,
        codec=letters.strip("\0 "),
    )


def read_rate(capture) -> float:
    """Read the frames per second of an open video; 0.0 if it does not say, or says nonsense."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if 0 < rate < math.inf else 0.0


def decode(
    path: Path,
    wanted: set[int],
    is_past: Callable[[int, float], bool],
    shrink: Callable | None = None,
) -> Decoded:
    """Decode a video file in order, and keep the frames whose numbers are wanted.

    Args:
        is_past: says of a frame's number and seconds whether it is behind all that is wanted, so
            that decoding may stop there
        shrink: called with each kept frame, so that none stays in memory at its full size
    """
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    rate = read_rate(capture)
    step = 1 / rate if rate else 0.0  # in seconds
    seconds = []
    images = {}
    for number in grab_each(capture):
        now = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if number == 0:
            now = max(now, 0.0)
        elif now <= seconds[-1]:  # the file has no times, or wrong ones: the rate tells
            now = seconds[-1] + step
        if is_past(number, now):
            return Decoded(seconds, images, ended=False)
        seconds.append(now)
        if number in wanted:
            images[number] = retrieve(path, capture, number, shrink)
    return Decoded(seconds, images, ended=True)


def grab_each(capture):
    """Grab the frames of an open video one after the other, and yield their numbers."""
    number = 0
    misses = 0
    while misses < MISSES:
        if not capture.grab():
            misses += 1
            continue
        misses = 0
        yield number
        number += 1


def retrieve(path: Path, capture, number: int, shrink) -> np.ndarray:
    """Convert the frame that was grabbed last -> uint8 (height, width, 3), RGB, shrunk."""
    with errors_of(f"{path}: frame {number} cannot be decoded"):
        is_frame, image = capture.retrieve()
        if not is_frame:
            raise OSError(f"{path}: frame {number} cannot be decoded")
        return convert(image, shrink)


def convert(image: np.ndarray, shrink: Callable | None) -> np.ndarray:
    """Convert OpenCV's BGR to RGB, and shrink it -> uint8 (height, width, 3)."""
    rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return shrink(rgb) if shrink else rgb


def why_undecodable(path: Path) -> str:
    """Say why no frame of a file can be decoded, as far as that can be known."""
    if path.stat().st_size == 0:
        return "the file is empty"
    codec = read_header(path).codec
    if not codec:
        return "OpenCV finds no video in it"
    if codec.lower() == "av01":
        codec = "AV1, for which this OpenCV has no decoder; convert it to H.264"
    return f"its codec is {codec}"


# ------------------------------------------------------------------------------
# A picture


def read_picture(path: Path, shrink: Callable | None = None) -> tuple[np.ndarray, tuple]:
    """Read a picture -> (uint8 (height, width, 3), RGB, shrunk; (height, width) as it was)."""
    check_file(path)
    with errors_of(f"{path} cannot be read"):
        image = cv2.imread(str(path))
        if image is None or jpeg.is_cut_off(path.read_bytes()):
            raise OSError(f"{path} cannot be read: it is damaged, or not a picture")
        return convert(image, shrink), image.shape[:2]


def is_animated(head: bytes) -> bool:
    """Say whether a file that begins so is an animated WebP or PNG: OpenCV reads one frame of it.

    WebP has a flag for it in its first chunk, VP8X (RFC 9649); PNG has a chunk acTL before its
    pixels, IDAT (third edition of its specification).
    """
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 20:
        return bool(head[20] & 0b10)
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        before_pixels, _, _ = head.partition(b"IDAT")
        return b"acTL" in before_pixels
    return False


# ------------------------------------------------------------------------------
# What can be known of a path and of an error


def check_file(path: Path):
    """Raise OSError if a path is not a file that can be read as a video or a still picture."""
    kinds = {
        stat.S_IFDIR: "a folder without frames",
        stat.S_IFIFO: "a named pipe, not a file",  # it would be waited for, forever
        stat.S_IFSOCK: "a socket, not a file",
        stat.S_IFCHR: "a device, not a file",
        stat.S_IFBLK: "a device, not a file",
    }
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind in kinds:
            raise OSError(f"{path}: {kinds[kind]}")
        with path.open("rb") as file:
            head = file.read(2**16)
    except OSError as error:
        if error.errno is None:  # it is the one above
            raise
        raise OSError(f"{path}: {error.strerror}") from error
    if is_animated(head):
        raise OSError(f"{path}: an animated picture cannot be read; convert it to .mp4 or .gif")
    if head.startswith(b"#EXTM3U"):  # a live one would be waited for
        raise OSError(f"{path}: a playlist, not a video")


@contextlib.contextmanager
def errors_of(what: str):
    """Turn OpenCV's errors and a lack of memory into an OSError that begins with `what`."""
    try:
        yield
    except cv2.error as error:  # its own text also names a place in OpenCV's source
        raise OSError(f"{what} (OpenCV: {error.err})") from error
    except (MemoryError, RuntimeError) as error:
        if not common.is_out_of_memory(error):
            raise
        raise OSError(f"{what} (there is not enough memory for it)") from error


# ------------------------------------------------------------------------------
# Does this OpenCV decode what it says it decodes?


@functools.cache
def check_opencv():
    """Raise InputError if this OpenCV shows old pictures in place of interlaced ones.

    OpenCV 4.13 to 5.0 cannot convert interlaced frames (DV, DVD, 1080i), says that it could, and
    hands back whatever its buffer had. So a small interlaced video is decoded once a process: it
    takes some milliseconds.
    """
    greys = list(range(20, 212, 24))  # of 8 frames
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "interlaced.mkv"
        try:
            path.write_bytes(
                bytes(4096)
            )  # the video is smaller; OpenCV says nothing of a full disk
        except OSError as error:
            raise common.InputError(
                f"how this OpenCV reads interlaced video cannot be checked: {error}; "
                "TMPDIR names a directory for temporary files"
            ) from error
        write_interlaced(path, [np.full((32, 48, 3), grey, np.uint8) for grey in greys])
        decoded = decode(path, set(range(len(greys))), is_past=lambda number, seconds: False)
    shown = [image.mean() for image in decoded.images.values()]
    if len(shown) != len(greys) or np.abs(np.subtract(shown, greys)).max() > 6:
        raise common.InputError(
            f"OpenCV {cv2.__version__} cannot be used: it shows wrong pictures of interlaced "
            "video. Install the one that requirements.txt names"
        )


def write_interlaced(path: Path, images: list[np.ndarray]):
    """Write an interlaced MPEG-2 video of images, uint8 (height, width, 3), BGR.

    OpenCV writes a progressive one. Two flags make it interlaced: bit 7 of byte 4 after a sequence
    extension's start code (progressive_sequence), and bit 3 of byte 1 after a picture coding
    extension's (ISO 13818-2, 6.2.2.3 and 6.2.3.1; the code's own byte counts as byte 0).
    """
    height, width, _ = images[0].shape
    codec = cv2.VideoWriter_fourcc(*"mpg2")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, 25, (width, height))
    for image in images:
        writer.write(image)
    writer.release()
    data = bytearray(path.read_bytes() if path.exists() else b"")
    place = data.find(b"\0\0\1\xb5")
    if place < 0:
        raise common.InputError(
            f"OpenCV {cv2.__version__} cannot be used: it has no encoder for MPEG-2, so how it "
            "reads interlaced video cannot be checked. Install the one that requirements.txt names"
        )
    while place >= 0:
        extension = data[place + 4] >> 4
        if extension == 1:
            data[place + 5] &= 0b11110111
        elif extension == 8:
            data[place + 8] &= 0b01111111
        place = data.find(b"\0\0\1\xb5", place + 4)
    path.write_bytes(data)
