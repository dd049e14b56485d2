"""Is a file as long as it says that it is?

A file that was cut off (an interrupted download or copy) mostly still names its length: in the
first bytes of .avi, .mkv and .webm, in each box of .mp4 and .mov, in the metadata of .flv. What a
file announces in frames or seconds tells less: sound or subtitles may be longer than the video, the
last picture may stay, and a clip that was cut out of a longer one may have hidden frames.
"""

import struct
from pathlib import Path

MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof")


def is_cut_off(path: Path) -> bool:
    """Say whether a video file is shorter than its own structure says. False if it does not say."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
        if head[:4] == b"RIFF" and len(head) >= 8:
            [length] = struct.unpack_from("<I", head, 4)
            return length != 0xFFFFFFFF and 8 + length > size
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return matroska_end(head) > size
        if head[4:8] in MP4_BOXES:
            return mp4_end(file, size) > size
        if head[:3] == b"FLV":
            return flv_end(head) > size
    return False


def mp4_end(file, size: int) -> int:
    """Walk over the boxes of an .mp4 (ISO 14496-12, 4.2) -> where the last one ends."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        length, _, long_length = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        if length == 1:
            length = long_length
        if length < 8:  # 0: to the end of the file; what else is so short is not a box
            return size
        place += length
    return place


def matroska_end(head: bytes) -> int:
    """Give where the segment of a .mkv or .webm ends (RFC 8794, 4 and 11.2.4); 0 if unknown."""
    header_length, content = read_size(head, 4)  # of the EBML header
    place = content + header_length
    if head[place : place + 4] != b"\x18\x53\x80\x67":
        return 0
    length, content = read_size(head, place + 4)
    return content + length if length else 0


def read_size(data: bytes, place: int) -> tuple[int, int]:
    """Read a size of one to eight bytes -> (size, 0 if it is unknown; where its content begins)."""
    if place >= len(data) or data[place] == 0:
        return 0, place + 1
    n_bytes = 9 - data[place].bit_length()  # its leading zeros say how many follow
    value = int.from_bytes(data[place : place + n_bytes], "big")
    all_ones = (1 << 7 * n_bytes) - 1
    value &= all_ones
    return (0 if value == all_ones else value), place + n_bytes


def flv_end(head: bytes) -> int:
    """Give the length that an .flv has in its metadata, a number named filesize; 0 if none."""
    key = b"\x00\x08filesize\x00"
    place = head.find(key)
    if place < 0 or place + len(key) + 8 > len(head):
        return 0
    [length] = struct.unpack_from(">d", head, place + len(key))
    return int(length)
