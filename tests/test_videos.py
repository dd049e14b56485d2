"""Strange videos: each is read correctly, or refused by its name, and none harms the others."""

import json
import os
import struct
import sys

import cv2
import numpy as np
import pytest
import torch

import common
import critique
import dpo
import evaluate
import generate
import media
import refine
import vlm
from conftest import MODEL
from test_frames import decode_all
from tools import clips

SIZE = (48, 32)  # width, height
SPREAD = [0, 2, 4, 6, 8, 9, 11, 13]  # 8 frames of 16; test_frames.py works them out


def grey_frame(number, width=48, height=32):
    """Make a frame of one grey, which tells the frame's number: 10 * number + 20."""
    return np.full((height, width, 3), 10 * number + 20, np.uint8)


def read_numbers(frames):
    """Tell from their greys which frames these are."""
    return [round((frame.mean() - 20) / 10) for frame in frames.astype(float)]


def write_video(path, frames, codec="mp4v"):
    """Write frames of SIZE as a video of 8 frames a second."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 8, SIZE)
    assert writer.isOpened(), codec
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def write_numbered(path, n, codec="mp4v"):
    """Write a video of n frames whose greys tell their numbers."""
    return write_video(path, [grey_frame(number) for number in range(n)], codec)


# ------------------------------------------------------------------------------
# What is read correctly


@pytest.mark.parametrize(
    "name, codec",
    [
        ("a.mp4", "mp4v"),
        ("a.avi", "MJPG"),
        ("a.webm", "VP80"),
        ("a.mkv", "mp4v"),
        ("blank and ünïcode 视频.mp4", "mp4v"),
        ("100%25_done.mp4", "mp4v"),
        ("clip_0001.mp4", "mp4v"),
    ],
)
def test_containers_and_names(tmp_path, name, codec):
    path = write_numbered(tmp_path / name, 16, codec)
    frames = media.sample_frames(path, 8).frames
    assert frames.shape == (8, 32, 48, 3)
    assert frames.dtype == np.uint8
    assert read_numbers(frames) == SPREAD


def test_a_gif_whose_size_is_odd(tmp_path):
    animation = cv2.Animation()
    animation.frames = [grey_frame(number, width=37, height=23) for number in range(4)]
    animation.durations = np.full(4, 100)
    assert cv2.imwriteanimation(str(tmp_path / "a.gif"), animation)

    frames = media.sample_frames(tmp_path / "a.gif", 2).frames
    assert frames.shape == (2, 23, 37, 3)
    assert vlm.pixel_values(frames, (64, 64)).shape == (2, 3, 64, 64)
    assert read_numbers(frames) == [0, 2]  # part = 1.5; int(0.75 + round(1.5 i))


def test_a_wrong_extension_does_not_matter(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 4)
    path.rename(tmp_path / "a.avi")
    assert read_numbers(media.sample_frames(tmp_path / "a.avi", 4).frames) == [0, 1, 2, 2]


@pytest.mark.parametrize("n", [1, 3])
def test_short_videos_repeat_frames(tmp_path, n):
    frames = media.sample_frames(write_numbered(tmp_path / "a.mp4", n), 8).frames
    assert len(frames) == 8
    assert set(read_numbers(frames)) == set(range(n))


def test_a_wrong_frame_count_is_noticed(tmp_path):
    # An .avi says in its stream header, 32 bytes into the chunk `strh`, how many frames there are
    data = bytearray(write_numbered(tmp_path / "a.avi", 16, "MJPG").read_bytes())
    place = data.index(b"strh") + 8 + 32
    assert struct.unpack_from("<I", data, place) == (16,)
    for claimed in (5, 400):  # the file is as long as it says, so it was not cut off
        struct.pack_into("<I", data, place, claimed)
        (tmp_path / "b.avi").write_bytes(data)
        frames, _, warning = media.sample_frames(tmp_path / "b.avi", 8)
        assert read_numbers(frames) == SPREAD
        assert warning is None


def test_a_rotation_flag_is_obeyed(tmp_path):
    # A phone held upright: the file has the picture as the sensor lies, and a matrix in `tkhd` says how to turn it
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:, :24] = 255  # white on the left
    path = write_video(tmp_path / "a.mp4", [picture] * 4)

    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    as_it_is = (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    quarter_turn_clockwise = (0, one, 0, -one, 0, 0, 32 * one, 0, 1 << 30)
    assert struct.unpack_from(">9i", data, place) == as_it_is
    struct.pack_into(">9i", data, place, *quarter_turn_clockwise)
    path.write_bytes(data)

    [frame] = media.sample_frames(path, 1).frames
    assert frame.shape == (48, 32, 3)
    assert frame[:20].mean() > 240  # what was on the left is now on top
    assert frame[-20:].mean() < 15


def test_a_folder_of_frames_is_a_video(tmp_path):
    # Numbered from 1, without leading zeros: 10 comes after 9
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(1, 13):
        cv2.imwrite(str(folder / f"{number}.png"), grey_frame(number))

    # All of it: begin = 1, stop = 12, part = 11 / 4; int(1 + 1.375 + round(2.75 i))
    sample = media.sample_frames(folder, 4)
    assert read_numbers(sample.frames) == [2, 5, 8, 10]
    assert sample.seconds == pytest.approx([1 / 3, 4 / 3, 7 / 3, 9 / 3])  # the first one at 0
    # Seconds 1 to 3 at 3 frames a second: begin = 3, stop = 9, part = 3; int(3 + 1.5 + 3 i)
    assert read_numbers(media.sample_frames(folder, 2, start=1.0, end=3.0).frames) == [4, 7]
    assert generate.order_pool([tmp_path], 0) == [tmp_path / "frames"]

    (folder / "8.png").write_text("not an image")
    with pytest.raises(OSError, match="frames/8.png cannot be read: it is damaged"):
        media.sample_frames(folder, 4)
    cv2.imwrite(str(folder / "8.png"), grey_frame(8, width=8, height=8))
    with pytest.raises(OSError, match="frames: the frames differ in size"):
        media.sample_frames(folder, 4)


# ------------------------------------------------------------------------------
# What is refused


def test_of_a_truncated_video_what_is_left_is_read_or_it_is_refused(tmp_path):
    # An .avi that is cut after three quarters of its frames
    data = write_numbered(tmp_path / "a.avi", 16, "MJPG").read_bytes()
    first = data.index(b"movi")
    cut = first + (data.rindex(b"idx1") - first) * 3 // 4
    (tmp_path / "cut.avi").write_bytes(data[:cut])
    frames, _, warning = media.sample_frames(tmp_path / "cut.avi", 16)
    left = read_numbers(frames)
    assert left[0] == 0
    assert left == sorted(left)
    assert 8 < left[-1] < 13
    assert "of 2.0 seconds can be decoded" in warning

    # An .mp4 has its index at the end
    data = write_numbered(tmp_path / "a.mp4", 16).read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match="half.mp4: no frame can be decoded"):
        media.sample_frames(tmp_path / "half.mp4", 8)


def test_what_is_not_a_video_is_refused(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "folder.mp4").mkdir()

    # A file whose only stream says that it is sound
    sound = bytearray(write_numbered(tmp_path / "a.mp4", 4).read_bytes())
    place = sound.index(b"vide")
    sound[place : place + 4] = b"soun"
    (tmp_path / "sound.mp4").write_bytes(sound)

    # 4 GiB of zeros, which take no place on the disk
    with (tmp_path / "zeros.mp4").open("wb") as file:
        file.truncate(4 * 2**30)

    for name, reason in (
        ("empty.mp4", "no frame can be decoded; the file is empty"),
        ("text.mp4", "no frame can be decoded; OpenCV finds no video in it"),
        ("folder.mp4", "a folder without frames"),
        ("sound.mp4", "no frame can be decoded; OpenCV finds no video in it"),
        ("zeros.mp4", "no frame can be decoded; OpenCV finds no video in it"),
    ):
        with pytest.raises(OSError, match=f"{name}: {reason}"):
            media.sample_frames(tmp_path / name, 8)


def test_links_are_followed_and_a_loop_of_links_ends(tmp_path):
    # in/data -> elsewhere, elsewhere/loop -> in. The names are those below the input
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write_numbered(tmp_path / "elsewhere" / "a.mp4", 1)
    (tmp_path / "in" / "data").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "in")
    assert generate.order_pool([tmp_path / "in"], 0) == [tmp_path / "in" / "data" / "a.mp4"]


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.mp4")).touch()
    with pytest.raises(common.InputError, match="rename the file"):
        generate.order_pool([tmp_path], 0)


# ------------------------------------------------------------------------------
# Real clips, which are downloaded once


@pytest.fixture(scope="session")
def real_clips():
    try:
        return clips.fetch("runs/clips")
    except OSError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_frames_of_real_clips_are_those_of_sequential_decoding(real_clips):
    for path in real_clips:
        decoded = decode_all(path)
        wanted = media.frame_indices(len(decoded), 1.0, 32)
        for index, frame in zip(wanted, media.sample_frames(path, 32).frames, strict=True):
            np.testing.assert_array_equal(frame, decoded[index])


@pytest.mark.slow
def test_real_frames_are_resized_as_by_pillow(real_clips):
    image = pytest.importorskip("PIL.Image")
    mean = np.array(vlm.IMAGE_MEAN)
    std = np.array(vlm.IMAGE_STD)
    for path in real_clips:
        frames = media.sample_frames(path, 2).frames
        for frame, pixels in zip(frames, vlm.pixel_values(frames, (448, 448))):
            resized = image.fromarray(frame).resize((448, 448), image.Resampling.BICUBIC)
            expected = (np.asarray(resized) / 255 - mean) / std  # (448, 448, 3)
            difference = (pixels.permute(1, 2, 0) - torch.from_numpy(expected)).abs()
            assert difference.mean() < 2e-3  # a grey level is 0.017
            assert difference.max() < 0.05


@pytest.mark.slow
def test_all_five_stages_run_on_real_clips(real_clips, tmp_path, monkeypatch):
    # The tiny model says tiny-world things about them; decoding, files, training and checkpoint are real
    def run(stage, model, input, output, *more):
        arguments = ["--model", model, "--input", input, "--output", tmp_path / output, "--devices", "cpu", *more]
        monkeypatch.setattr(sys, "argv", [f"{stage.__name__}.py", *map(str, arguments)])
        stage.main()
        return tmp_path / output

    responses = run(generate, MODEL, real_clips[0].parent, "responses.jsonl")
    critiques = run(critique, MODEL, responses, "critiques.jsonl")
    pairs = run(refine, MODEL, critiques, "pairs.jsonl")
    rows = common.read_jsonl(pairs)
    assert len(rows) == 8 * 6
    assert not any(row.get("dropped") == "unreadable_video" for row in rows)
    assert any("chosen" in row for row in rows)
    trained = run(dpo, MODEL, pairs, "model", "--lr", "1e-5")

    # A benchmark of one question about each clip
    items = []
    for path in real_clips:
        item = {
            "video": path.name,
            "type": "count",
            "kind": "spatial",
            "question": "how many shapes are there?",
            "answer": "there are no shapes.",
            "error_type": "factual_inaccuracy",
        }
        items.append(item)
    benchmark = tmp_path / "benchmark"
    benchmark.mkdir()
    (benchmark / "videos").symlink_to(real_clips[0].parent.resolve())
    (benchmark / "questions.json").write_text(json.dumps(items))
    directory = run(evaluate, trained, benchmark, "eval", "--benchmark", "shapes")
    results = json.loads((directory / "results.json").read_text())
    assert results["n"] == 8
