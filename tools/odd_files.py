"""Write small video files with exactly known contents and faults, without ffmpeg.

What OpenCV's writer cannot make is made by hand (an .avi of any packets), or by changing bytes of
what it wrote (the times in .webm and .mp4). tools.odd_cases uses it, and so do the tests.

A frame tells its number: its left half has the grey of number % 16, its right half of number // 16.
"""

import itertools
import struct
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

WIDTH = 48
HEIGHT = 32
FPS = 8

# ------------------------------------------------------------------------------
# Frames that tell their numbers


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Draw frame `number`, 0 to 255 -> uint8 (height, width, 3)."""
    image = np.empty((height, width, 3), np.uint8)
    image[:, : width // 2] = 16 * (number % 16) + 8
    image[:, width // 2 :] = 16 * (number // 16) + 8
    return image


def read_number(image: np.ndarray) -> int:
    """Tell which frame this is, from an image of any size."""
    middle = image.shape[1] // 2
    low = image[:, : middle - 2].mean()
    high = image[:, middle + 2 :].mean()
    return int(low // 16 + 16 * (high // 16))


def write_video(path: Path, n: int, codec: str) -> Path:
    """Write a video of n numbered frames, FPS a second, with OpenCV's writer."""
    fourcc = cv2.VideoWriter_fourcc(*codec)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, FPS, (WIDTH, HEIGHT))
    for number in range(n):
        writer.write(picture(number))
    writer.release()
    return path


# ------------------------------------------------------------------------------
# .avi, made by hand: RIFF chunks (Microsoft's AVI RIFF file reference)


class Packet(NamedTuple):
    """A chunk of the list `movi`."""

    data: bytes
    is_sound: bool = False


def encode(image: np.ndarray, suffix: str = ".jpg") -> bytes:
    """Encode an image as a packet of motion JPEG, or of another format that OpenCV writes."""
    _, data = cv2.imencode(suffix, image)
    return data.tobytes()


def write_avi(
    path: Path,
    packets: list[Packet],
    announced: int,
    *,
    codec: bytes = b"MJPG",
    seconds_a_frame: int = 0,
) -> list[int]:
    """Write an .avi of any packets; the ends of the packets in the file are returned.

    Args:
        announced: the number of frames that its header claims
        seconds_a_frame: 0: FPS frames a second
    """
    scale, rate = (seconds_a_frame, 1) if seconds_a_frame else (1, FPS)
    n_streams = 2 if any(packet.is_sound for packet in packets) else 1
    fields = (1_000_000 * scale // rate, 0, 0, 0x110, announced, 0, n_streams, 0, WIDTH, HEIGHT)
    header = chunk(b"avih", struct.pack("<14I", *fields, 0, 0, 0, 0))
    header += describe_stream(b"vids", codec, scale, rate, announced)
    if n_streams == 2:
        header += describe_stream(b"auds", b"\0\0\0\0", 1, SOUND_RATE, 0)

    body = b""
    index = b""
    ends = []
    for packet in packets:
        name = b"01wb" if packet.is_sound else b"00dc"
        index += name + struct.pack("<III", 0x10, 4 + len(body), len(packet.data))
        body += chunk(name, packet.data)
        ends.append(len(body))
    before = chunk(b"LIST", b"hdrl" + header)
    data = before + chunk(b"LIST", b"movi" + body) + chunk(b"idx1", index)
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(data)) + b"AVI " + data)
    begin = 12 + len(before) + 12  # of the first packet: after RIFF's header and LIST's
    return [begin + end for end in ends]


SOUND_RATE = 100  # bytes a second: a packet of 2 bytes is 20 ms, as in AAC


def describe_stream(kind: bytes, codec: bytes, scale: int, rate: int, length: int) -> bytes:
    """Make the list `strl` of a stream: its header and its format."""
    header = struct.pack("<4s4sIHHIIIIIIIIHHHH", kind, codec, *[0] * 4, scale, rate, 0, length,
                         100_000, 0xFFFFFFFF, 0, 0, 0, WIDTH, HEIGHT)  # fmt: skip
    if kind == b"vids":
        size = 3 * WIDTH * HEIGHT
        form = struct.pack("<IiiHH4sIiiII", 40, WIDTH, HEIGHT, 1, 24, codec, size, 0, 0, 0, 0)
    else:  # PCM, one channel of 8 bits
        form = struct.pack("<HHIIHH", 1, 1, rate, rate, 1, 8)
    return chunk(b"LIST", b"strl" + chunk(b"strh", header) + chunk(b"strf", form))


def chunk(name: bytes, data: bytes) -> bytes:
    """Make a RIFF chunk, padded to an even length."""
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def numbered_packets(n: int) -> list[Packet]:
    """Make the packets of n numbered frames."""
    return [Packet(encode(picture(number))) for number in range(n)]


def av1_packet() -> Packet:
    """Make a packet of real AV1: what is in an .avif, which OpenCV writes."""
    _, data = cv2.imencode(".avif", picture(0, 64, 64))
    data = data.tobytes()
    place = data.index(b"mdat")
    [length] = struct.unpack(">I", data[place - 4 : place])
    temporal_delimiter = b"\x12\0"
    return Packet(temporal_delimiter + data[place + 4 : place - 4 + length])


# ------------------------------------------------------------------------------
# .mp4: boxes (ISO 14496-12)

CONTAINERS = (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl")


def boxes(data: bytes):
    """Yield (kind, content) of the boxes in data."""
    place = 0
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        yield kind, data[place + 8 : place + length]
        place += length


def rewrite(data: bytes, changes: dict) -> bytes:
    """Change boxes at any depth: {kind: function from its content to another, or None}."""
    out = b""
    for kind, content in boxes(data):
        changed = content
        if kind in CONTAINERS:
            changed = rewrite(content, changes)
        elif kind in changes:
            changed = changes[kind](content)
        if changed is not None:
            out += struct.pack(">I4s", 8 + len(changed), kind) + changed
    return out


def set_times_mp4(path: Path, times: list[float]):
    """Change when the frames of an .mp4 by write_video are shown; the last one for 1 / FPS."""
    data = path.read_bytes()
    ticks = read_timescale(data)
    steps = [round(ticks * (after - before)) for before, after in itertools.pairwise(times)]
    steps.append(ticks // FPS)
    runs = b"".join(struct.pack(">II", 1, step) for step in steps)

    def set_duration(content):
        return content[:16] + struct.pack(">I", sum(steps)) + content[20:]

    changes = {
        b"stts": lambda content: struct.pack(">II", 0, len(steps)) + runs,
        b"mdhd": set_duration,
        b"elst": lambda content: None,
    }
    path.write_bytes(rewrite(data, changes))  # moov is at the end: no offset changes


def show_last(path: Path, n: int, total: int):
    """Let an .mp4 by write_video show only the last n of its frames, by its edit list (elst)."""
    data = path.read_bytes()
    ticks = read_timescale(data)
    [movie_ticks] = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)

    def start_later(content):
        edit = (n * movie_ticks // FPS, (total - n) * ticks // FPS, 1 << 16)
        return struct.pack(">IIIiI", 0, 1, *edit)

    path.write_bytes(rewrite(data, {b"elst": start_later}))


def read_timescale(data: bytes) -> int:
    """Read how many ticks a second the only track of an .mp4 has."""
    place = data.index(b"mdhd")
    [ticks] = struct.unpack_from(">I", data, place + 16)
    return ticks


def move_index_to_front(path: Path) -> int:
    """Move moov before the frames, as a file for streaming has it -> where the frames begin."""
    found = dict(boxes(path.read_bytes()))

    def box(kind, content):
        return struct.pack(">I4s", 8 + len(content), kind) + content

    def shift(content):
        n = struct.unpack_from(">I", content, 4)[0]
        offsets = struct.unpack_from(f">{n}I", content, 8)
        moved = [offset + length for offset in offsets]
        return content[:8] + struct.pack(f">{n}I", *moved)

    length = len(found[b"moov"]) + 8
    moov = rewrite(box(b"moov", found[b"moov"]), {b"stco": shift})
    before = box(b"ftyp", found[b"ftyp"]) + moov + box(b"free", found[b"free"])
    path.write_bytes(before + box(b"mdat", found[b"mdat"]))
    return len(before) + 8


def read_sizes(data: bytes) -> list[int]:
    """Read the lengths of the packets of an .mp4 (stsz)."""
    place = data.index(b"stsz") + 4
    _, same, n = struct.unpack_from(">III", data, place)
    return [same] * n if same else list(struct.unpack_from(f">{n}I", data, place + 12))


# ------------------------------------------------------------------------------
# .webm


def set_times_webm(path: Path, times: list[float]):
    """Change when the frames of a .webm by write_video are shown, up to 32 seconds.

    A SimpleBlock (0xA3) has its length in one to four bytes, the track 0x81, and two bytes of
    milliseconds since the cluster's time (RFC 9559, 5.1.3.4).
    """
    data = bytearray(path.read_bytes())
    place = data.index(b"\x1f\x43\xb6\x75")  # the cluster
    for seconds in times:
        place = data.index(b"\xa3", place)
        n_length = 9 - data[place + 1].bit_length()  # bytes of the length
        length = int.from_bytes(data[place + 1 : place + 1 + n_length], "big")
        length &= (1 << 7 * n_length) - 1
        content = place + 1 + n_length
        assert data[content] == 0x81
        struct.pack_into(">h", data, content + 1, round(1000 * seconds))
        place = content + length
    path.write_bytes(data)
