"""Odd videos and directories, after bug reports of people who do this job: the right frames, or a row with its reason.

The cases are those of `python -m tools.fuzz`: each knows from how it was made what must come of it.
"""

import argparse
import functools
import json
import os
import sys

import cv2
import numpy as np
import pytest
import transformers

import common
import generate
import media
import outputs
import vlm
from conftest import MODEL
from media import changes, decode, find, jpeg, sample, whole
from tools import fuzz, odd_cases, odd_files
from vlm import families

CASES = {make.__name__: make for make in odd_cases.CASES}


def try_case(name, directory, seed):
    """Make a case and compare, in a process of its own: a hang or a crash is an outcome, too."""
    directory.chmod(0o777)
    rng = np.random.default_rng(seed)
    return fuzz.run_apart(functools.partial(fuzz.try_odd, CASES[name], rng=rng), directory)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [name for name in CASES if name != "unreadable"])
def test_what_must_come_of_it_comes(name, seed, tmp_path):
    assert try_case(name, tmp_path, seed) == "right"


@pytest.mark.parametrize("place", ["stat", "open", "iterdir"])
def test_what_may_not_be_read_is_refused_by_name(place, tmp_path, monkeypatch):
    # For root everything may be read, so the error is raised here (tools.fuzz becomes another user)
    media.check_opencv()
    path = odd_files.write_video(tmp_path / "a.mp4", 4, "mp4v")
    if place == "iterdir":
        path = odd_cases.write_pictures(tmp_path / "a", ["1.png"])

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), place, refuse)
    with pytest.raises(OSError, match=f"{path}: Permission denied"):
        media.sample_frames(path, 2)


# ------------------------------------------------------------------------------
# With a mend taken out again, its case finds the fault

MENDS = {
    "damaged_packets": (decode, "MISSES", 1),
    "slides_with_sound": (decode, "MISSES", 1),
    "cut_avi": (sample, "LEAST_SHARE", 0.0),
    "cut_mp4": (sample, "WHOLE_SHARE", 0.0),
    "variable_rate": (
        sample,
        "indices_by_time",
        lambda total, _, n, start, end: media.frame_indices(total, 8, n, start, end),
    ),
    "seconds_that_are_not_there": (sample, "check_start", lambda *_: None),
    "another_size": (sample, "check_same_size", lambda *_: None),
    "pipe": (decode, "check_file", lambda _: None),
    "pipe_among_frames": (decode, "check_file", lambda _: None),
    "animated_picture": (decode, "is_animated", lambda _: False),
    "hidden_files": (find, "is_shown", lambda _: True),
    "other_suffixes": (find, "VIDEO_SUFFIXES", (".mp4", ".avi")),
    "links_in_a_circle": (find, "keep_one_name", lambda files, _: files),
}


@pytest.mark.parametrize("name", MENDS)
def test_a_fault_that_is_put_back_is_found(name, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 1)  # of a hang
    media.check_opencv()
    monkeypatch.setattr(*MENDS[name])
    outcomes = set()
    for seed in range(1 if "pipe" in name else 3):
        (tmp_path / f"{seed}").mkdir()
        outcomes.add(try_case(name, tmp_path / f"{seed}", seed))
    assert any(outcome.startswith("FAULT") for outcome in outcomes), outcomes


# ------------------------------------------------------------------------------
# Interlaced video


def test_this_opencv_shows_interlaced_video_rightly(tmp_path):
    # 24 pictures whose greys tell their numbers. The flags say that each is made of two fields
    media.check_opencv.__wrapped__()
    decode.write_interlaced(tmp_path / "a.avi", [odd_files.picture(number) for number in range(24)])
    data = (tmp_path / "a.avi").read_bytes()
    extension = data.index(b"\0\0\1\xb5\x14")  # of the sequence: the 1 is its kind
    assert not data[extension + 5] & 0b1000  # progressive_sequence
    frames, *_ = media.sample_frames(tmp_path / "a.avi", 24)
    assert [odd_files.read_number(frame) for frame in frames] == odd_cases.expect_numbers(
        odd_cases.Shown(tmp_path, [number / 25 for number in range(24)]), 24
    )


def test_an_opencv_that_shows_old_pictures_is_refused_by_its_name(monkeypatch):
    # What OpenCV 4.13 to 5.0 do: retrieve() says True, and hands back the picture that its buffer had
    stale = np.full((32, 48, 3), 99, np.uint8)
    monkeypatch.setattr(decode, "retrieve", lambda *_: stale)
    with pytest.raises(common.InputError, match=f"OpenCV {cv2.__version__} cannot be used: .*requirements.txt"):
        media.check_opencv.__wrapped__()

    # A build that cannot write MPEG-2 cannot be checked
    monkeypatch.undo()
    monkeypatch.setattr(cv2, "VideoWriter_fourcc", lambda *_: 0)
    with pytest.raises(common.InputError, match="cannot be used"):
        media.check_opencv.__wrapped__()


# ------------------------------------------------------------------------------
# Pictures that change their size


def test_where_each_codec_says_its_size(tmp_path):
    # What OpenCV can write: each codec's own parameters are found in its packets, and they stay the same
    for name, codec, letters in (
        ("a.avi", "MJPG", "mjpg"),
        ("a.webm", "VP80", "vp80"),
        ("b.webm", "VP90", "vp90"),
        ("a.ts", "mpg2", "mpg2"),
        ("b.avi", "XVID", "fmp4"),
    ):
        path = odd_files.write_video(tmp_path / name, 24, codec)
        assert decode.read_header(path).codec.lower() == letters
        [first, *_] = changes.read_packets(path)
        assert changes.find_parameters(first, letters), name
        changes.check_same_size(path, letters)


def test_the_size_that_a_jpeg_says_is_its_own():
    # SOF0: precision 8, height 32, width 48, three components; a thumbnail in another segment is skipped
    data = odd_files.encode(odd_files.picture(0))
    thumbnail = odd_files.encode(odd_files.picture(0, 8, 8))
    segment = b"\xff\xe1" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail
    for picture in (data, data[:2] + segment + data[2:]):
        assert jpeg.find_frame_header(picture)[:6] == b"\x08\x00\x20\x00\x30\x03"
        assert not jpeg.is_cut_off(picture)
        assert not jpeg.is_cut_off(picture + b"a trailer \xff\xda")
        for n_bytes in (3, 20, len(picture) // 2, len(picture) - 2):
            assert jpeg.is_cut_off(picture[:n_bytes])
    assert jpeg.find_frame_header(b"\x89PNG") is None
    assert not jpeg.is_cut_off(b"\x89PNG")


def test_the_size_in_a_key_frame_of_vp9_counts_to_its_last_bit():
    # 49 83 42; color 000, range 0, width - 1 and height - 1 in 16 bits each; four bits of something else
    def packet(width, height, rest):
        bits = f"{0:04b}{width - 1:016b}{height - 1:016b}{rest:04b}"
        return b"\x82\x49\x83\x42" + int(bits, 2).to_bytes(5, "big") + b"\0" * 9

    [size] = changes.find_parameters(packet(160, 114, 0), "vp90")
    assert changes.find_parameters(packet(160, 114, 0b1111), "vp90") == [size]
    assert changes.find_parameters(packet(160, 115, 0), "vp90") != [size]


# ------------------------------------------------------------------------------
# Cut off, or as long as it says


@pytest.mark.parametrize(
    "name, codec",
    [("a.avi", "MJPG"), ("a.mp4", "mp4v"), ("a.mov", "mp4v"), ("a.mkv", "mp4v"), ("a.webm", "VP80"), ("a.flv", "FLV1")],
)
def test_a_file_that_is_shorter_than_it_says_was_cut_off(tmp_path, name, codec):
    path = odd_files.write_video(tmp_path / name, 24, codec)
    assert not whole.is_cut_off(path)
    data = path.read_bytes()
    path.write_bytes(data + b"\0" * 10)  # what follows a video does no harm
    assert not whole.is_cut_off(path)
    path.write_bytes(data[: len(data) * 2 // 3])
    assert whole.is_cut_off(path)


def test_a_recording_that_does_not_know_its_length_is_not_cut_off(tmp_path):
    # Matroska: a size whose bits are all ones is unknown. RIFF: ffffffff. MP4: 0 is to the end of the file
    path = odd_files.write_video(tmp_path / "a.webm", 24, "VP80")
    data = bytearray(path.read_bytes())
    place = data.index(b"\x18\x53\x80\x67") + 4
    assert data[place] == 1  # the size has eight bytes
    data[place : place + 8] = b"\x01" + b"\xff" * 7
    path.write_bytes(data[: len(data) // 2])
    assert not whole.is_cut_off(path)

    path = odd_files.write_video(tmp_path / "a.avi", 24, "MJPG")
    data = bytearray(path.read_bytes())
    data[4:8] = b"\xff" * 4
    path.write_bytes(data[: len(data) // 2])
    assert not whole.is_cut_off(path)

    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x08free" + b"\0\0\0\0mdat" + b"\0" * 100)
    assert not whole.is_cut_off(tmp_path / "a.mp4")


# ------------------------------------------------------------------------------
# Memory


def test_a_frame_that_is_shrunk_at_once_gives_the_pixels_of_the_full_frame():
    rng = np.random.default_rng(0)
    config = transformers.InternVLConfig(vision_config={"image_size": [56, 56]})
    for height, width in ((64, 64), (97, 131), (480, 270), (30, 20)):
        frames = rng.integers(0, 256, (2, height, width, 3), np.uint8)
        shrunk = np.stack([families.shrink(frame, config) for frame in frames])
        assert shrunk.shape == (2, 56, 56, 3)
        assert vlm.pixel_values(shrunk, (56, 56)).equal(vlm.pixel_values(frames, (56, 56)))


def test_no_frame_is_kept_at_its_full_size(tmp_path):
    path = odd_files.write_video(tmp_path / "a.mp4", 8, "mp4v")
    seen = []

    def shrink(frame):
        seen.append(frame.shape)
        return frame[:2, :2]

    assert media.sample_frames(path, 4, shrink=shrink).frames.shape == (4, 2, 2, 3)
    assert seen == [(32, 48, 3)] * 4  # once each


def test_what_is_after_the_end_is_not_decoded(tmp_path, monkeypatch):
    # Of 24 frames, 8 a second, second 1 ends with frame 8; frame 9 is the first that is too late
    path = odd_files.write_video(tmp_path / "a.mp4", 24, "mp4v")
    grabbed = []
    grab_each = decode.grab_each

    def note(capture):
        for number in grab_each(capture):
            grabbed.append(number)
            yield number

    media.check_opencv()
    monkeypatch.setattr(decode, "grab_each", note)
    for by_rate in (False, True):
        grabbed.clear()
        frames, *_ = media.sample_frames(path, 2, start=0.0, end=1.0, by_rate=by_rate)
        assert [odd_files.read_number(frame) for frame in frames] == [2, 6]  # part 4; int(2 + 4 i)
        assert max(grabbed) == 9


def test_memory_that_cannot_be_had_is_one_line(monkeypatch, capsys):
    for error in (
        MemoryError(),
        MemoryError("Unable to allocate 1. TiB\nfor an array"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\nstack"),
    ):

        def main(error=error):
            raise error

        with pytest.raises(SystemExit) as end:
            common.run(main)
        message = str(end.value.code).strip()
        assert message.startswith("stopped, too little memory: ")
        assert "stack" not in message
    with pytest.raises(RuntimeError, match="something else"):
        common.run(lambda: (_ for _ in ()).throw(RuntimeError("something else")))


def test_a_file_too_large_for_memory_is_a_row_and_the_run_goes_on(tmp_path, monkeypatch):
    path = odd_files.write_video(tmp_path / "a.mp4", 4, "mp4v")

    def convert(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(decode, "convert", convert)
    with pytest.raises(OSError, match="frame 0 cannot be decoded .there is not enough memory for it."):
        media.sample_frames(path, 4)


# ------------------------------------------------------------------------------
# A whole run over all of it


def test_a_run_goes_on_over_odd_files_and_accounts_for_each(tmp_path, monkeypatch, capsys):
    videos = tmp_path / "videos"
    for name in ("cut_avi", "av1", "link_to_itself", "pipe", "unix_socket", "huge_picture", "another_size"):
        (videos / name).mkdir(parents=True)
        CASES[name](videos / name, np.random.default_rng(0))
    odd_files.write_video(videos / "good.mp4", 8, "mp4v")
    (videos / "notes.txt").touch()

    output = tmp_path / "responses.jsonl"
    arguments = ["--model", MODEL, "--input", videos, "--output", output, "--devices", "cpu", "--max-bad", "1"]
    monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, arguments)])
    generate.main()
    assert "passed over: .txt 1" in capsys.readouterr().out
    rows = common.read_jsonl(output)
    errors = {row["video"]: row.get("error", "") for row in rows}
    assert errors.pop("good.mp4") == ""
    for video, reason in (
        ("cut_avi/a.avi", "seconds can be decoded"),
        ("av1/a.avi", "AV1"),
        ("link_to_itself/a.mp4", ""),
        ("pipe/a.mp4", "a named pipe"),
        ("unix_socket/a.mp4", "a socket"),
        ("huge_picture", "cannot be read"),
        ("another_size/a.avi", "change their size"),
    ):
        said = errors.pop(video)
        assert reason in said or reason in rows_of(rows, video)[0].get("warning", "")
        assert said or "warning" in rows_of(rows, video)[0]
    assert set(errors) <= {"link_to_itself/b.mp4"}


def rows_of(rows, video):
    return [row for row in rows if row["video"] == video]


def test_a_cut_video_says_so_in_its_rows_and_in_the_account(tmp_path, model, tokenizer, capsys):
    path = tmp_path / "a.avi"
    ends = odd_files.write_avi(path, odd_files.numbered_packets(20), 20)
    path.write_bytes(path.read_bytes()[: ends[13]])
    rows = [{"id": "1", "video": "a.avi"}, {"id": "2", "video": "a.avi", "dropped": "bad_question"}]
    args = argparse.Namespace(frames=4)
    [(watched, video)] = vlm.watch_each(model, tokenizer, [("a.avi", rows)], tmp_path, args)
    assert video is not None
    assert watched[0]["warning"] == "1.8 of 2.5 seconds can be decoded (70%)"
    assert "warning" not in watched[1]

    meta = {"content": {}, "process": os.getpid(), "finished": None}
    args = argparse.Namespace(overwrite=False, max_bad=0.5, videos_per_batch=1)
    out = outputs.Output(tmp_path / "rows.jsonl", args, meta, [("a.avi", rows)])
    out.write(rows)
    out.finish("answers")
    assert "1 videos cannot be decoded to their end" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", ["NaN", "Infinity", '"3"', "[1]"])
def test_seconds_of_a_row_are_numbers(tmp_path, seconds):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "a", "video": "v"})[:-1] + f', "start": {seconds}}}\n')
    with pytest.raises(common.InputError, match="rows.jsonl, line 1: 'start'"):
        common.read_jsonl(path)
