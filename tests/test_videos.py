"""Odd videos: each is either read right or refused with its name; none harms the others."""

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
import refine
from conftest import MODEL
from tools import clips

SIZE = (48, 32)  # width, height


def write_video(path, n, code="mp4v", size=SIZE):
    """n frames, each of one grey that tells its number: 10 * number + 20."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), 8, size)
    assert writer.isOpened(), code
    for number in range(n):
        writer.write(np.full((size[1], size[0], 3), 10 * number + 20, np.uint8))
    writer.release()
    return path


def numbers(frames):
    """Which frames they are, read off their greys."""
    return [round((frame.mean() - 20) / 10) for frame in frames.astype(float)]


@pytest.mark.parametrize(
    "name, code",
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
def test_containers_and_names(tmp_path, name, code):
    frames = common.sample_frames(write_video(tmp_path / name, 16, code), 8)
    assert frames.shape == (8, 32, 48, 3) and frames.dtype == np.uint8
    assert numbers(frames) == [0, 2, 4, 6, 8, 9, 11, 13]


def test_a_gif_of_odd_size(tmp_path):
    animation = cv2.Animation()
    animation.frames, animation.durations = (
        [np.full((23, 37, 3), 10 * n + 20, np.uint8) for n in range(4)],
        np.full(4, 100),
    )
    assert cv2.imwriteanimation(str(tmp_path / "a.gif"), animation)
    frames = common.sample_frames(tmp_path / "a.gif", 2)
    assert frames.shape == (2, 23, 37, 3) and common.pixel_values(frames, 64).shape == (2, 3, 64, 64)
    assert numbers(frames) == [0, 2]  # part = 1.5; int(0.75 + round(1.5 i))


def test_the_wrong_extension_is_no_matter(tmp_path):
    os.rename(write_video(tmp_path / "a.mp4", 4), tmp_path / "a.avi")
    assert numbers(common.sample_frames(tmp_path / "a.avi", 4)) == [0, 1, 2, 2]


@pytest.mark.parametrize("n", [1, 3])
def test_short_videos_repeat_frames(tmp_path, n):
    frames = common.sample_frames(write_video(tmp_path / "a.mp4", n), 8)
    assert len(frames) == 8 and set(numbers(frames)) == set(range(n))


def test_a_wrong_frame_count_is_found_out(tmp_path):
    # an .avi says in its stream header, 32 bytes into the chunk `strh`, how many frames there are
    data = bytearray(write_video(tmp_path / "a.avi", 16, "MJPG").read_bytes())
    place = data.index(b"strh") + 8 + 32
    assert struct.unpack_from("<I", data, place) == (16,)
    for claimed in (5, 400):
        struct.pack_into("<I", data, place, claimed)
        (tmp_path / "b.avi").write_bytes(data)
        assert numbers(common.sample_frames(tmp_path / "b.avi", 8)) == [0, 2, 4, 6, 8, 9, 11, 13]


def test_a_rotation_flag_is_obeyed(tmp_path):
    # a phone held upright: the file keeps the picture as it lies, and a matrix in `tkhd` says how to turn it
    path = tmp_path / "a.mp4"
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:, :24] = 255  # white on the left
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 8, SIZE)
    for _ in range(4):
        writer.write(picture)
    writer.release()
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", data, place) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(
        ">9i", data, place, 0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30
    )  # a quarter turn clockwise
    path.write_bytes(data)
    [frame] = common.sample_frames(path, 1)
    assert (
        frame.shape == (48, 32, 3) and frame[:20].mean() > 240 and frame[-20:].mean() < 15
    )  # what was left is now on top


def test_a_truncated_video_gives_what_is_left_or_is_refused(tmp_path):
    data = write_video(tmp_path / "a.avi", 16, "MJPG").read_bytes()
    (tmp_path / "half.avi").write_bytes(
        data[: (data.index(b"movi") + data.rindex(b"idx1")) // 2]
    )  # in the midst of the frames
    left = numbers(common.sample_frames(tmp_path / "half.avi", 16))
    assert left[0] == 0 and left == sorted(left) and 4 < left[-1] < 12
    data = write_video(tmp_path / "a.mp4", 16).read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) // 2])  # an .mp4 has its index at the end
    with pytest.raises(OSError, match="half.mp4: no frame can be decoded"):
        common.sample_frames(tmp_path / "half.mp4", 8)


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "folder.mp4").mkdir()
    sound = bytearray(write_video(tmp_path / "a.mp4", 4).read_bytes())
    sound[sound.index(b"vide") : sound.index(b"vide") + 4] = b"soun"  # its only stream calls itself sound
    (tmp_path / "sound.mp4").write_bytes(sound)
    with (tmp_path / "zeros.mp4").open("wb") as file:
        file.truncate(4 * 2**30)  # 4 GB on paper, none on the disk
    for name in ("empty.mp4", "text.mp4", "folder.mp4", "sound.mp4", "zeros.mp4"):
        with pytest.raises(OSError, match=f"{name}: no frame can be decoded"):
            common.sample_frames(tmp_path / name, 8)


def test_a_folder_of_frames_is_a_video(tmp_path):
    # numbered from 1, without leading zeros: 10 comes after 9. Without bounds: s = 1, e = 12, part = 11 / 4; int(1 + 1.375 + round(2.75 i))
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(1, 13):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((32, 48, 3), 10 * number + 20, np.uint8))
    assert numbers(common.sample_frames(folder, 4)) == [2, 5, 8, 10]
    # seconds 1 to 3 at 3 frames a second: s = 3, e = 9, part = 3; int(3 + 1.5 + 3 i)
    assert numbers(common.sample_frames(folder, 2, start=1.0, end=3.0)) == [4, 7]
    assert generate.sample_videos([tmp_path], None, 0) == (tmp_path, ["frames"])
    (folder / "8.png").write_text("no image")
    with pytest.raises(OSError, match="frames: "):
        common.sample_frames(folder, 4)
    cv2.imwrite(str(folder / "8.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(OSError, match="frames: .*shape"):
        common.sample_frames(folder, 4)


def test_links_are_followed_and_a_loop_of_them_ends(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write_video(tmp_path / "elsewhere" / "a.mp4", 1)
    (tmp_path / "in" / "data").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "in")
    assert generate.sample_videos([tmp_path / "in"], None, 0) == (tmp_path / "elsewhere", ["a.mp4"])


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.mp4")).touch()
    with pytest.raises(common.InputError, match="rename it"):
        generate.sample_videos([tmp_path], None, 0)


@pytest.fixture(scope="session")
def real_clips():
    try:
        return clips.fetch("runs/clips")
    except OSError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_frames_of_real_clips_are_those_of_sequential_decoding(real_clips):
    for path in real_clips:
        capture, decoded = cv2.VideoCapture(str(path)), []
        while (frame := capture.read())[0]:
            decoded.append(frame[1][:, :, ::-1])
        wanted = common.frame_indices(len(decoded), 1.0, 32)
        for index, frame in zip(wanted, common.sample_frames(path, 32), strict=True):
            np.testing.assert_array_equal(frame, decoded[index])


@pytest.mark.slow
def test_resizing_of_real_frames_is_pillow_s(real_clips):
    image = pytest.importorskip("PIL.Image")
    mean, std = np.array(common.IMAGE_MEAN), np.array(common.IMAGE_STD)
    for path in real_clips:
        frames = common.sample_frames(path, 2)
        for frame, pixels in zip(frames, common.pixel_values(frames, 448)):
            expected = (
                np.asarray(image.fromarray(frame).resize((448, 448), image.Resampling.BICUBIC)) / 255 - mean
            ) / std
            difference = (pixels.permute(1, 2, 0) - torch.from_numpy(expected)).abs()
            assert difference.mean() < 2e-3 and difference.max() < 0.05  # a grey level is 0.017


@pytest.mark.slow
def test_all_five_stages_run_on_real_clips(real_clips, tmp_path, monkeypatch):
    # the tiny model says tiny-world things about them; decoding, files, training and checkpoint are real
    def run(stage, input, output, *more):
        arguments = ["--model", MODEL, "--input", input, "--output", tmp_path / output, "--devices", "cpu", *more]
        monkeypatch.setattr(sys, "argv", [f"{stage.__name__}.py", *map(str, arguments)])
        stage.main()
        return tmp_path / output

    pairs = run(
        refine, run(critique, run(generate, real_clips[0].parent, "responses.jsonl"), "critiques.jsonl"), "pairs.jsonl"
    )
    rows = common.read_jsonl(pairs)
    assert (
        len(rows) == 8 * 6
        and not any(row.get("dropped") == "unreadable_video" for row in rows)
        and any("chosen" in row for row in rows)
    )
    run(dpo, pairs, "model", "--lr", "1e-5")
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "videos").symlink_to(real_clips[0].parent.resolve())
    items = [
        {
            "video": path.name,
            "type": "count",
            "kind": "spatial",
            "question": "how many shapes are there?",
            "answer": "there are no shapes.",
            "error_type": "factual_inaccuracy",
        }
        for path in real_clips
    ]
    (tmp_path / "benchmark" / "questions.json").write_text(json.dumps(items))
    monkeypatch.setitem(globals(), "MODEL", tmp_path / "model")
    results = run(evaluate, tmp_path / "benchmark", "eval", "--benchmark", "shapes") / "results.json"
    assert json.loads(results.read_text())["n"] == 8
