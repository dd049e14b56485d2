"""The segments of a JPEG (ITU-T T.81, B.1): its size, and whether it was cut off."""

FRAME_HEADERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF, of any kind of encoding
SCAN = 0xDA  # SOS: the compressed pixels follow
END = b"\xff\xd9"  # EOI


def segments(data: bytes):
    """Yield (marker, its content, where it ends) of the segments up to the pixels.

    A segment is skipped as a whole: the thumbnail that EXIF has in one is a JPEG of its own.
    """
    place = 2
    while data[:2] == b"\xff\xd8" and data[place : place + 1] == b"\xff":
        marker = data[place + 1] if place + 1 < len(data) else 0
        if marker == 0xFF:  # padding
            place += 1
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        end = place + 2 + max(length, 2)
        yield marker, data[place + 4 : end], end
        if marker == SCAN:
            return
        place = end


def find_frame_header(data: bytes) -> bytes | None:
    """Find precision, height, width and components of a JPEG; None if it is not one."""
    for marker, content, _ in segments(data):
        if marker in FRAME_HEADERS:
            return content
    return None


def is_cut_off(data: bytes) -> bool:
    """Say whether a JPEG ends before its pixels do. False for what is not a JPEG."""
    if data[:2] != b"\xff\xd8":
        return False
    for marker, _, end in segments(data):
        if marker == SCAN:  # the end's marker cannot be among compressed pixels
            return data.find(END, end) < 0
    return True
