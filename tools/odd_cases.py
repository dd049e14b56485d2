"""Odd videos and directories, each with what must come of it: the cases of `tools.fuzz`.

A case knows the truth from how it was made, not from reading it back: which frames must be shown,
or which words the reason must have; and of a directory, which videos must be found.
"""

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

import common
import generate
import media
from media.decode import write_interlaced
from tools import odd_files
from tools.odd_files import FPS, HEIGHT, WIDTH, Packet, encode, numbered_packets, picture

N = 24  # frames of most videos


class Shown(NamedTuple):
    """A video, and what must be shown of it."""

    path: Path
    times: list[float | None]  # of its frames by number; None: it cannot be decoded
    start: float | None = None
    end: float | None = None
    warning: str = ""  # words of it; empty: there must be none
    first: int = 0  # number of the first frame that is shown


class Refused(NamedTuple):
    """A video that must be refused, with words of the reason."""

    path: Path
    reason: str
    start: float | None = None
    end: float | None = None


class Listed(NamedTuple):
    """A directory, and the videos that must be found in it."""

    path: Path
    names: list[str]
    passed_over: dict[str, int]


Case = Shown | Refused | Listed

# ------------------------------------------------------------------------------
# Video files


def interlaced(directory: Path, rng) -> Case:
    """Make an interlaced video: OpenCV 4.13 to 5.0 show old pictures."""
    path = directory / "a.avi"
    write_interlaced(path, [picture(number) for number in range(N)])
    return Shown(path, [number / 25 for number in range(N)])


def damaged_packets(directory: Path, rng) -> Case:
    """Damage up to six packets: a decoder says no to each."""
    packets = numbered_packets(N)
    damaged = set(rng.integers(1, N - 2, rng.integers(1, 7)).tolist())
    for number in damaged:
        packets[number] = Packet(rng.bytes(100).replace(b"\xff", b"\0"))
    odd_files.write_avi(directory / "a.avi", packets, N)
    times = [None if number in damaged else number / FPS for number in range(N)]
    return Shown(directory / "a.avi", times)


def slides_with_sound(directory: Path, rng) -> Case:
    """Make a video of still pictures, with thousands of packets of sound between two of them."""
    packets = []
    for number in range(5):
        packets.append(Packet(encode(picture(number))))
        packets += [Packet(b"\x80\x80", is_sound=True)] * 5000
    odd_files.write_avi(directory / "a.avi", packets, 5, seconds_a_frame=100)
    return Shown(directory / "a.avi", [100.0 * number for number in range(5)])


def cut_avi(directory: Path, rng) -> Case:
    """Cut a video off after some of its packets."""
    path = directory / "a.avi"
    ends = odd_files.write_avi(path, numbered_packets(N), N)
    left = int(rng.integers(1, N))
    path.write_bytes(path.read_bytes()[: ends[left - 1]])
    return cut(path, left)


def cut_mp4(directory: Path, rng) -> Case:
    """Cut off an .mp4 whose index is at its front."""
    path = odd_files.write_video(directory / "a.mp4", N, "mp4v")
    begin = odd_files.move_index_to_front(path)
    data = path.read_bytes()
    left = int(rng.integers(1, N))
    path.write_bytes(data[: begin + sum(odd_files.read_sizes(data)[:left])])
    return cut(path, left)


def cut(path: Path, left: int) -> Case:
    """Say what must come of a video of which `left` of N frames are left."""
    share = left / N
    if share < 0.5:
        return Refused(path, f"only {left / FPS:.1f} of {N / FPS:.1f} seconds can be decoded")
    times = [number / FPS for number in range(left)]
    return Shown(path, times, warning="seconds can be decoded" if share < 0.95 else "")


def wrong_count(directory: Path, rng) -> Case:
    """Make a header claim fewer frames than there are, or more."""
    odd_files.write_avi(directory / "a.avi", numbered_packets(N), int(rng.integers(1, 9 * N)))
    return Shown(directory / "a.avi", [number / FPS for number in range(N)])


def hidden_start(directory: Path, rng) -> Case:
    """Hide the first frames, as is done to cut a clip out of a longer video without encoding it."""
    path = odd_files.write_video(directory / "a.mp4", N, "mp4v")
    shown = int(rng.integers(2, N))
    odd_files.show_last(path, shown, N)
    return Shown(path, [number / FPS for number in range(shown)], first=N - shown)


def held_last_frame(directory: Path, rng) -> Case:
    """Let the last frame of an animation stay for ten times as long as all others."""
    animation = cv2.Animation()
    animation.frames = [picture(number) for number in range(8)]
    animation.durations = np.array([100] * 7 + [8000])
    cv2.imwriteanimation(str(directory / "a.gif"), animation)
    return Shown(directory / "a.gif", [number / 10 for number in range(8)])


def hole(directory: Path, rng) -> Case:
    """Put zeros in place of some packets of an .mp4, as a download with gaps has them."""
    path = odd_files.write_video(directory / "a.mp4", N, "mp4v")
    begin = odd_files.move_index_to_front(path)
    sizes = odd_files.read_sizes(path.read_bytes())
    data = bytearray(path.read_bytes())
    first, last = 13, 24  # the second of two groups of pictures begins at 12
    place = begin + sum(sizes[:first])
    length = sum(sizes[first:last])
    data[place : place + length] = bytes(length)
    path.write_bytes(data)
    return Shown(path, [number / FPS for number in range(first)])


def playlist(directory: Path, rng) -> Case:
    """Make a playlist of a live stream, which has no end, with the name of a video."""
    odd_files.write_video(directory / "b.ts", N, "mpg2")
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXT-X-VERSION:3", "#EXTINF:1,", "b.ts", ""]
    (directory / "a.mp4").write_text("\n".join(lines))
    return Refused(directory / "a.mp4", "a playlist, not a video")


def thumbnails(directory: Path, rng) -> Case:
    """Make motion JPEG whose packets have thumbnails in them: their size is not the picture's."""
    packets = []
    for number in range(N):
        thumbnail = b"Exif" + encode(picture(0, 8 + 8 * (number % 2), 8))
        jpeg = encode(picture(number))
        segment = b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
        packets.append(Packet(jpeg[:2] + segment + jpeg[2:]))
    odd_files.write_avi(directory / "a.avi", packets, N)
    return Shown(directory / "a.avi", [number / FPS for number in range(N)])


def variable_rate(directory: Path, rng) -> Case:
    """Make a video whose frames are not evenly spaced, and ask for some seconds of it."""
    suffix, codec, set_times = [
        (".mp4", "mp4v", odd_files.set_times_mp4),
        (".webm", "VP80", odd_files.set_times_webm),
    ][rng.integers(2)]
    path = odd_files.write_video(directory / f"a{suffix}", N, codec)
    steps = rng.choice([0.05, 0.1, 0.5, 2.0], N - 1)
    times = [0.0, *np.cumsum(steps).round(3).tolist()]
    set_times(path, times)
    start, end = sorted(rng.uniform(0, times[-1], 2).round(3).tolist())
    return Shown(path, times, start, end)


def repeated_frames(directory: Path, rng) -> Case:
    """Make an .avi announce three times its frames: an empty packet repeats the one before."""
    packets = []
    for packet in numbered_packets(N):
        packets += [packet, Packet(b""), Packet(b"")]
    odd_files.write_avi(directory / "a.avi", packets, 3 * N)
    times = [3 * number / FPS for number in range(N)]
    start, end = sorted(rng.uniform(0, times[-1], 2).round(3).tolist())
    return Shown(directory / "a.avi", times, start, end)


def times_that_stand_still(directory: Path, rng) -> Case:
    """Make a video whose frames all have the same time: the rate tells."""
    path = odd_files.write_video(directory / "a.webm", N, "VP80")
    odd_files.set_times_webm(path, [0.0] * N)
    start, end = sorted(rng.uniform(0, N / FPS, 2).round(3).tolist())
    return Shown(path, [number / FPS for number in range(N)], start, end)


def only_what_is_wanted(directory: Path, rng) -> Case:
    """Damage what is after `end`: it is not looked at, so nothing is missing."""
    end = float(rng.uniform(0.2, 1.5))
    packets = numbered_packets(N)
    last = int(end * FPS)
    for number in range(last + 2, N):
        packets[number] = Packet(rng.bytes(50).replace(b"\xff", b"\0"))
    odd_files.write_avi(directory / "a.avi", packets, N)
    times = [number / FPS if number < last + 2 else None for number in range(N)]
    return Shown(directory / "a.avi", times, 0.0, end)


def seconds_that_are_not_there(directory: Path, rng) -> Case:
    """Ask for seconds after the end, or for an end before the start."""
    path = odd_files.write_video(directory / "a.mp4", N, "mp4v")
    if rng.integers(2):
        return Refused(path, "but the video has 3.0 seconds", start=3.5, end=9.0)
    return Refused(path, "which is before start", start=2.0, end=1.0)


def another_size(directory: Path, rng) -> Case:
    """Let the pictures change their size on the way."""
    before = int(rng.integers(1, N))
    scale = int(rng.choice([2, 3]))
    packets = numbered_packets(before)
    larger = picture(0, scale * WIDTH, scale * HEIGHT)
    packets += [Packet(encode(larger))] * (N - before)
    odd_files.write_avi(directory / "a.avi", packets, N)
    return Refused(directory / "a.avi", "change their size or format")


def av1(directory: Path, rng) -> Case:
    """Make a video of real AV1, which OpenCV 4.12 cannot decode."""
    packets = [odd_files.av1_packet()] * 4
    odd_files.write_avi(directory / "a.avi", packets, 4, codec=b"AV01")
    return Refused(directory / "a.avi", "codec is AV1")


def no_video(directory: Path, rng) -> Case:
    """Make a file that has the name of a video alone."""
    path = directory / f"a{rng.choice(media.VIDEO_SUFFIXES)}"
    contents = [
        b"",
        b"RIFF\x10\0\0\0WEBPVP8X",
        b"version https://git-lfs.github.com/spec/v1\n",
        rng.bytes(1000),
        bytes(10_000),
    ]
    path.write_bytes(contents[rng.integers(len(contents))])
    return Refused(path, "no frame can be decoded")


# ------------------------------------------------------------------------------
# What is not a file that can be read


def link_to_itself(directory: Path, rng) -> Case:
    """Make a link that leads to itself, to another that leads back, or nowhere."""
    path = directory / "a.mp4"
    target = directory / ["a.mp4", "b.mp4", "c.mp4"][rng.integers(3)]
    path.symlink_to(target)
    (directory / "b.mp4").symlink_to(path)
    reason = "No such file" if target.name == "c.mp4" else "Too many levels of symbolic links"
    return Refused(path, reason)


def pipe(directory: Path, rng) -> Case:
    """Make a named pipe: to open it would wait forever."""
    os.mkfifo(directory / "a.mp4")
    return Refused(directory / "a.mp4", "a named pipe, not a file")


def pipe_among_frames(directory: Path, rng) -> Case:
    """Make a named pipe in a folder of frames."""
    os.mkfifo(directory / "1.png")
    return Refused(directory, "a named pipe, not a file")


def unix_socket(directory: Path, rng) -> Case:
    """Make a socket."""
    path = directory / "a.mp4"
    here = Path.cwd()
    os.chdir(directory)  # a socket's path may have 108 bytes
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)
    return Refused(path, "a socket, not a file")


def unreadable(directory: Path, rng) -> Case:
    """Make a file, or a folder of frames, that may not be read."""
    if rng.integers(2):
        path = odd_files.write_video(directory / "a.mp4", N, "mp4v")
    else:
        path = write_pictures(directory / "a", ["1.png"])
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything: be somebody else
        os.seteuid(65534)
    return Refused(path, "Permission denied")


# ------------------------------------------------------------------------------
# Pictures


def write_pictures(folder: Path, names: list[str]) -> Path:
    """Write numbered pictures with these names, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        cv2.imwrite(str(folder / name), picture(number))
    return folder


def huge_picture(directory: Path, rng) -> Case:
    """Make a picture whose header claims 99,999 x 99,999 pixels."""
    side = int(rng.choice([40_000, 65_000, 99_999]))
    suffix = [".png", ".bmp"][rng.integers(2)]
    data = bytearray(encode(picture(0), suffix))
    if suffix == ".png":
        struct.pack_into(">II", data, 16, side, side)
    else:
        struct.pack_into("<ii", data, 18, side, side)
    (directory / f"1{suffix}").write_bytes(data)
    return Refused(directory, "cannot be read")


def cut_picture(directory: Path, rng) -> Case:
    """Cut a picture off: it would be shown partly grey."""
    suffix = [".jpg", ".png"][rng.integers(2)]
    noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(noise, suffix)
    (directory / f"1{suffix}").write_bytes(data[: int(len(data) * rng.uniform(0.3, 0.95))])
    return Refused(directory, "it is damaged")


def animated_picture(directory: Path, rng) -> Case:
    """Make an animated WebP or PNG: not a folder of one frame."""
    animation = cv2.Animation()
    animation.frames = [picture(number) for number in range(4)]
    animation.durations = np.full(4, 100)
    name = ["1.webp", "1.png"][rng.integers(2)]
    cv2.imwriteanimation(str(directory / name), animation)
    return Refused(directory, "animated picture")


def frames_by_seconds(directory: Path, rng) -> Case:
    """Name frames by seconds: 10.25 is before 10.5."""
    seconds = np.unique(rng.integers(0, 80, 12)) / 8 + 9
    before, after = [("", ""), ("frame_", ""), ("t=", "s"), ("clip7-", "sec")][rng.integers(4)]
    names = [f"{before}{second:g}{after}.png" for second in seconds]
    return in_order(write_pictures(directory / "a", names), len(names))


def frames_by_count(directory: Path, rng) -> Case:
    """Name frames by counts, without leading zeros: 9 is before 10, and 1.9 before 1.10."""
    before = ["", "frame", "shot1.", "2024.01.", "img_", "clip.mp4."][rng.integers(6)]
    names = [f"{before}{number}.png" for number in range(1, 13)]
    return in_order(write_pictures(directory / "a", names), len(names))


def in_order(folder: Path, n: int) -> Case:
    """Say that n pictures must be shown in the order in which they were written."""
    return Shown(folder, [number / media.FOLDER_FPS for number in range(n)])


# ------------------------------------------------------------------------------
# Directories


def hidden_files(directory: Path, rng) -> Case:
    """Put hidden and system files beside a video and a folder of frames."""
    odd_files.write_video(directory / "a.mp4", 2, "mp4v")
    write_pictures(directory / "b", ["1.png", "2.png", "._1.png"])
    hidden = ["._a.mp4", ".ipynb_checkpoints/a.mp4", "__MACOSX/a.mp4", ".cache/1.png"]
    for name in hidden:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(b"")
    return Listed(directory, ["a.mp4", "b"], {})


def other_suffixes(directory: Path, rng) -> Case:
    """Use suffixes of many kinds: videos are taken, all else is counted."""
    videos = [f"a{suffix}" for suffix in rng.choice(media.VIDEO_SUFFIXES, 4, replace=False)]
    upper = videos[0].upper()
    for name in [upper, *videos[1:], "b.txt", "c.txt", "d.json", "LICENSE"]:
        (directory / name).touch()
    return Listed(directory, [upper, *videos[1:]], {".txt": 2, ".json": 1, "without a suffix": 1})


def picture_beside_videos(directory: Path, rng) -> Case:
    """Put a cover beside folders of videos, or of frames."""
    write_pictures(directory, ["cover.jpg"])
    (directory / "1").mkdir()
    if rng.integers(2):
        (directory / "1" / "a.mp4").touch()
        names = ["1/a.mp4"]
    else:
        write_pictures(directory / "1" / "a", ["1.png"])
        names = ["1/a"]
    return Listed(directory, names, {"pictures beside videos": 1})


def cache_of_the_hub(directory: Path, rng) -> Case:
    """Lay videos out as the hub's cache does: the names are links into blobs/."""
    blobs = directory / "blobs"
    snapshot = directory / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name in ("a", "b"):
        odd_files.write_video(directory / f"{name}.mp4", 2, "mp4v").rename(blobs / f"{name}0")
        (snapshot / f"{name}.mp4").symlink_to(f"../../blobs/{name}0")
    return Listed(snapshot, ["a.mp4", "b.mp4"], {})


def links_in_a_circle(directory: Path, rng) -> Case:
    """Let links lead back to folders above them, and one video have two names."""
    (directory / "a").mkdir()
    (directory / "a" / "1.mp4").touch()
    (directory / "a" / "up").symlink_to(directory)
    (directory / "b").symlink_to(directory / "a")
    (directory / "a" / "2.mp4").symlink_to("1.mp4")
    (directory / "a" / "3.mp4").symlink_to("3.mp4")
    return Listed(directory, ["a/1.mp4", "a/3.mp4"], {"links to videos that are there": 1})


CASES: list[Callable[[Path, np.random.Generator], Case]] = [
    interlaced,
    damaged_packets,
    slides_with_sound,
    cut_avi,
    cut_mp4,
    wrong_count,
    hidden_start,
    held_last_frame,
    hole,
    playlist,
    thumbnails,
    variable_rate,
    repeated_frames,
    times_that_stand_still,
    only_what_is_wanted,
    seconds_that_are_not_there,
    another_size,
    av1,
    no_video,
    link_to_itself,
    pipe,
    pipe_among_frames,
    unix_socket,
    unreadable,
    huge_picture,
    cut_picture,
    animated_picture,
    frames_by_seconds,
    frames_by_count,
    hidden_files,
    other_suffixes,
    picture_beside_videos,
    cache_of_the_hub,
    links_in_a_circle,
]

# ------------------------------------------------------------------------------
# Is it so?


def check(case: Case, n: int) -> str | None:
    """Try a case with n frames -> what is wrong, or None."""
    if isinstance(case, Listed):
        return check_listed(case)
    try:
        sample = media.sample_frames(case.path, n, case.start, case.end)
    except OSError as error:
        if isinstance(case, Refused) and case.reason in str(error):
            return None
        return f"refused: {error}"
    shown = [odd_files.read_number(frame) for frame in sample.frames]
    if isinstance(case, Refused):
        return f"shows {shown}, where it must be refused: {case.reason}"
    expected = expect_numbers(case, n)
    if shown != expected:
        return f"shows {shown}, not {expected}"
    if bool(case.warning) != bool(sample.warning) or case.warning not in (sample.warning or ""):
        return f"warns {sample.warning!r}, not {case.warning!r}"
    return None


def expect_numbers(case: Shown, n: int) -> list[int]:
    """Say which frames must be shown, by InternVL's rule, of those on screen in [start, end]."""
    decodable = [number for number, time in enumerate(case.times) if time is not None]
    first = 0
    last = len(decodable) - 1
    for place, number in enumerate(decodable):
        if case.start is not None and case.times[number] <= case.start:
            first = place
        if case.end is not None and case.times[number] <= case.end:
            last = place
    if case.end is not None and case.times[decodable[0]] > case.end:
        last = 0
    segment = (last - first) / n
    places = [int(first + segment / 2 + np.round(segment * number)) for number in range(n)]
    return [case.first + decodable[place] for place in places]


def check_listed(case: Listed) -> str | None:
    """Look for videos in a directory, as generate.py does -> what is wrong, or None."""
    found, passed_over = media.find_videos(case.path)
    names = sorted(video.relative_to(case.path).as_posix() for video in found)
    if names != sorted(case.names):
        return f"finds {names}, not {sorted(case.names)}"
    if dict(passed_over) != case.passed_over:
        return f"passes over {dict(passed_over)}, not {case.passed_over}"
    try:
        pool = generate.order_pool([case.path], seed=0)
    except common.InputError as error:
        return f"refused: {error}"
    below = sorted(video.relative_to(case.path.resolve()).as_posix() for video in pool)
    return None if below == names else f"draws {below}, not {names}"
