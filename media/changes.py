"""Refuse a video whose pictures change their size or format on the way.

OpenCV 4.12 sets up its conversion to RGB once, for the first picture, and goes on with that: after
a change (a recorded video call whose bandwidth fell, two joined recordings) it shows old pictures,
or picks its pixels out of wrong places. Nothing of the capture tells. So the packets are read once
without decoding them, and what they say about their pictures is compared.
"""

import re
import tempfile
from pathlib import Path

import cv2

from media.decode import grab_each

# What in a packet says which pictures follow, by codec (the letters that OpenCV gives it). A video
# with another codec is not looked through.
JPEG = rb"\xff[\xc0-\xc2]\x00[\x0b\x11](\x08.{4}(?:\x01...|\x03.{9}))"  # SOF (ITU-T T.81, B.2.2)
VP8 = rb"^...\x9d\x01\x2a(.{4})"  # a key frame's width and height (RFC 6386, 9.1)
VP9 = rb"^.\x49\x83\x42(.{4})"  # and here with its color format (VP9 bitstream, 6.2)
MPEG2 = rb"\x00\x00\x01\xb3(.{3})"  # sequence header (ISO 13818-2, 6.2.2.1)
MPEG4 = rb"\x00\x00\x01[\x20-\x2f](.+?)\x00\x00\x01"  # video object layer (ISO 14496-2, 6.2.3)
H264 = rb"\x00\x00\x01[\x07\x27\x47\x67](.+?)(?=\x00\x00[\x00\x01]|$)"  # sequence parameter set
HEVC = rb"\x00\x00\x01\x42\x01(.+?)(?=\x00\x00[\x00\x01]|$)"  # the same there
PARAMETERS = {
    "mjpg": JPEG,
    "vp80": VP8,
    "vp90": VP9,
    "mpg1": MPEG2,
    "mpg2": MPEG2,
    "mpeg": MPEG2,
    "fmp4": MPEG4,
    "mp4v": MPEG4,
    "xvid": MPEG4,
    "divx": MPEG4,
    "dx50": MPEG4,
    "h264": H264,
    "avc1": H264,
    "x264": H264,
    "hevc": HEVC,
    "hvc1": HEVC,
    "hev1": HEVC,
}
# These parameters say more than size and format, so those are asked for if the parameters differ
SAY_MORE = (MPEG4, H264, HEVC)
HEAD = 4096  # bytes of a packet in which its parameters are; they come first, but for JPEG's tables


def check_same_size(path: Path, codec: str, most_packets: int | None = None):
    """Raise OSError if the pictures of a video change their size or format.

    Args:
        codec: its four letters, as Header has them
        most_packets: look no further than so many packets
    """
    pattern = PARAMETERS.get(codec.lower())
    if pattern is None:
        return
    known = {}  # parameters -> size and format
    for number, packet in enumerate(read_packets(path)):
        if most_packets is not None and number > most_packets:
            return
        for parameters in re.findall(pattern, packet[:HEAD], re.DOTALL):
            if parameters not in known:
                says_more = pattern in SAY_MORE
                known[parameters] = (
                    measure(packet, pattern, parameters) if says_more else parameters
                )
        if len(set(known.values()) - {None}) > 1:
            raise OSError(
                f"{path}: its pictures change their size or format at packet {number}, and OpenCV "
                "cannot follow that; convert it (ffmpeg -i IN OUT.mp4)"
            )


def read_packets(path: Path):
    """Yield the packets of a video file, bytes, without decoding them."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    for _ in grab_each(capture):
        is_packet, packet = capture.retrieve()
        if is_packet:
            yield packet.tobytes()


def measure(packet: bytes, pattern: bytes, parameters: bytes) -> tuple | None:
    """Let OpenCV read the size and format of the pictures from a packet that stands alone.

    It may also have the parameters that the file's header has: those are taken out. None if it
    cannot be read, so is damaged.
    """

    def keep(found):
        return found[0] if found[1] == parameters else b""

    head = re.sub(pattern, keep, packet[:HEAD], flags=re.DOTALL)
    with tempfile.NamedTemporaryFile() as file:
        file.write(head + packet[HEAD:])
        file.flush()
        capture = cv2.VideoCapture(file.name, cv2.CAP_FFMPEG)
        if not capture.isOpened():
            return None
        properties = (
            cv2.CAP_PROP_FRAME_WIDTH,
            cv2.CAP_PROP_FRAME_HEIGHT,
            cv2.CAP_PROP_CODEC_PIXEL_FORMAT,
        )
        return tuple(capture.get(name) for name in properties)
