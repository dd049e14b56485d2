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

from media import jpeg
from media.decode import grab_each

# What in a packet says which pictures follow, by codec (the letters that OpenCV gives it). A video
# with another codec is not looked through.
VP8 = rb"^...\x9d\x01\x2a(.{4})"  # a key frame's width and height (RFC 6386, 9.1)
VP9 = rb"^.\x49\x83\x42(.{5})"  # and here with its color format (VP9 bitstream, 6.2)
MPEG2 = rb"\x00\x00\x01\xb3(.{3})"  # sequence header (ISO 13818-2, 6.2.2.1)
MPEG4 = rb"\x00\x00\x01[\x20-\x2f](.+?)\x00\x00\x01"  # video object layer (ISO 14496-2, 6.2.3)
H264 = rb"\x00\x00\x01[\x07\x27\x47\x67](.+?)(?=\x00\x00[\x00\x01]|$)"  # sequence parameter set
HEVC = rb"\x00\x00\x01\x42\x01(.+?)(?=\x00\x00[\x00\x01]|$)"  # the same there
PARAMETERS = {
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
HEAD = 4096  # bytes of a packet in which its parameters are


def check_same_size(path: Path, codec: str, most_packets: int | None = None):
    """Raise OSError if the pictures of a video change their size or format.

    Args:
        codec: its four letters, as Header has them
        most_packets: look no further than so many packets
    """
    if codec.lower() not in ("mjpg", *PARAMETERS):
        return
    known = {}  # parameters -> size and format
    for number, packet in enumerate(read_packets(path)):
        if most_packets is not None and number > most_packets:
            return
        for parameters in find_parameters(packet, codec.lower()):
            if parameters not in known:
                known[parameters] = find_size(packet, parameters, codec.lower())
        if len(set(known.values()) - {None}) > 1:
            raise OSError(
                f"{path}: its pictures change their size or format at packet {number}, and OpenCV "
                "cannot follow that; convert it (ffmpeg -i IN OUT.mp4)"
            )


def find_parameters(packet: bytes, codec: str) -> list[bytes]:
    """Find what a packet says about the pictures that follow; empty if it says nothing."""
    if codec == "mjpg":
        frame_header = jpeg.find_frame_header(packet)
        return [frame_header] if frame_header else []
    found = re.findall(PARAMETERS[codec], packet[:HEAD], re.DOTALL)
    if codec == "vp90":  # 36 bits: 3 of color, 1 of range, 16 of width, 16 of height
        return [parameters[:4] + bytes([parameters[4] & 0xF0]) for parameters in found]
    return found


def find_size(packet: bytes, parameters: bytes, codec: str) -> tuple | bytes | None:
    """Give what stands for the size and format of the pictures with these parameters."""
    pattern = PARAMETERS.get(codec)
    if pattern in SAY_MORE:
        return measure(packet, pattern, parameters)
    return parameters


def read_packets(path: Path):
    """Yield the packets of a video file, bytes, without decoding them."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    for _ in grab_each(capture):
        _, packet = capture.retrieve()
        yield b"" if packet is None else packet.tobytes()  # None: an empty one


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
        properties = (
            cv2.CAP_PROP_FRAME_WIDTH,
            cv2.CAP_PROP_FRAME_HEIGHT,
            cv2.CAP_PROP_CODEC_PIXEL_FORMAT,
        )
        size = tuple(capture.get(name) for name in properties)
    return size if size[0] else None
