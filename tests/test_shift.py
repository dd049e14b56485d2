"""tools.shift: copies of videos, shifted by some pixels."""

import sys

import cv2
import numpy as np
import pytest

import common
import media
from shapes import world
from tools import shift


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["shift", *map(str, words)])
    shift.main()


def write_rows(directory, *rows):
    """Write rows of refine.py -> their path."""
    path = directory / "pairs.jsonl"
    common.write_jsonl(path, rows)
    return path


def read_brightness(path):
    """Read the 16 frames of a video of the tiny world -> (16, 128, 128); the codec keeps colors at half the size."""
    return media.sample_frames(path, 16).frames @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("right, down", [(3, 0), (0, -3), (-2, 5)])
def test_a_pixel_of_the_copy_is_the_one_that_was_there(tmp_path, monkeypatch, right, down):
    """Oracle: of numpy's roll by up to 6 pixels, without its edges, the one that was asked for is nearest."""
    (tmp_path / "videos").mkdir()
    world.render(world.make_scene(0, "dev", 2), tmp_path / "videos" / "a.mp4")
    rows = write_rows(tmp_path, {"id": "a", "video": "a.mp4"})
    there = ("--input", rows, "--videos", tmp_path / "videos", "--output", tmp_path / "moved")
    run(monkeypatch, *there, "--right", right, "--down", down)

    before = read_brightness(tmp_path / "videos" / "a.mp4")
    after = read_brightness(tmp_path / "moved" / "a.mp4")
    assert after.shape == before.shape
    errors = {}
    for x in range(-6, 7):
        for y in range(-6, 7):
            moved = np.roll(before, (y, x), axis=(1, 2))
            errors[x, y] = (after - moved)[:, 6:-6, 6:-6].std()
    assert min(errors, key=errors.get) == (right, down)


def test_what_moves_in_repeats_the_edge(tmp_path):
    """Dark on the left, bright on the right. Moved to the right by 8 it is dark for 8 pixels more, nowhere black."""
    writer = cv2.VideoWriter(str(tmp_path / "a.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 8, (64, 64))
    frame = np.full((64, 64, 3), 200, np.uint8)
    frame[:, :32] = 50
    writer.write(frame)
    writer.release()
    shift.shift_video(tmp_path / "a.mp4", tmp_path / "b.mp4", right=8, down=0)
    before = media.sample_frames(tmp_path / "a.mp4", 1).frames[0].mean(-1)  # (64, 64)
    after = media.sample_frames(tmp_path / "b.mp4", 1).frames[0].mean(-1)
    dark, bright = before[:, :30].mean(), before[:, 34:].mean()
    assert after[:, :38] == pytest.approx(dark, abs=10)
    assert after[:, 42:] == pytest.approx(bright, abs=10)


def test_videos_of_rows_that_nothing_is_learned_from_have_no_copy_and_a_broken_one_does_no_harm(
    tmp_path, monkeypatch, capsys
):
    world.write_split(tmp_path, "round1", 3, seed=0)
    videos = tmp_path / "round1"
    first, second, third = sorted(path.name for path in videos.glob("*.mp4"))
    (videos / "0.mp4").write_text("not a video")
    passed = {"question": "what?", "initial": "a square.", "dropped": "no_error_found"}
    rows = write_rows(
        tmp_path,
        {"id": "0", "video": "0.mp4"},
        {"id": "1", "video": first},
        {"id": "2", "video": second, "dropped": "bad_question"},
        {"id": "3", "video": third} | passed,
    )
    there = ("--input", rows, "--videos", videos, "--output", tmp_path / "moved", "--right", 3)
    run(monkeypatch, *there)
    said = capsys.readouterr().out
    assert "left out: " in said and "0.mp4: OpenCV cannot read it" in said
    assert "copies of 2 of 3 videos" in said
    assert sorted(path.name for path in (tmp_path / "moved").glob("*.mp4")) == [first, third]

    # It resumes: a copy that is there is kept as it is
    (tmp_path / "moved" / first).write_text("kept")
    (tmp_path / "moved" / third).unlink()
    run(monkeypatch, *there)
    assert (tmp_path / "moved" / first).read_text() == "kept"
    assert (tmp_path / "moved" / third).exists()


def test_copies_of_two_shifts_are_not_mixed(tmp_path, monkeypatch):
    world.write_split(tmp_path, "round1", 1, seed=0)
    rows = write_rows(tmp_path, {"id": "0", "video": "round1_0000.mp4"})
    there = ("--input", rows, "--videos", tmp_path / "round1", "--output", tmp_path / "moved")
    run(monkeypatch, *there, "--right", 3)
    before = (tmp_path / "moved" / "round1_0000.mp4").read_bytes()
    with pytest.raises(common.InputError, match="has copies of another shift"):
        run(monkeypatch, *there, "--right", 4)
    assert (tmp_path / "moved" / "round1_0000.mp4").read_bytes() == before


def test_a_copy_that_was_not_written_as_a_whole_is_none(tmp_path, monkeypatch):
    """A full disk: OpenCV's writer drops frames, and says nothing."""
    world.write_split(tmp_path, "round1", 1, seed=0)
    rows = write_rows(tmp_path, {"id": "0", "video": "round1_0000.mp4"})
    written = cv2.VideoWriter

    class Full:
        def __init__(self, *words):
            self.writer, self.n = written(*words), 0

        def isOpened(self):
            return True

        def write(self, frame):
            self.n += 1
            if self.n <= 10:
                self.writer.write(frame)

        def release(self):
            self.writer.release()

    monkeypatch.setattr(cv2, "VideoWriter", Full)
    there = ("--input", rows, "--videos", tmp_path / "round1", "--output", tmp_path / "moved", "--right", 3)
    with pytest.raises(common.InputError, match="none of 1 videos has a copy"):
        run(monkeypatch, *there)
    assert not list((tmp_path / "moved").glob("*.mp4"))


@pytest.mark.parametrize("name", ["../a.mp4", "/a.mp4"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, monkeypatch, name):
    rows = write_rows(tmp_path, {"id": "a", "video": name})
    with pytest.raises(common.InputError, match="does not lie below"):
        run(monkeypatch, "--input", rows, "--videos", tmp_path, "--output", tmp_path / "moved", "--right", 3)


@pytest.mark.parametrize(
    "words, complaint",
    [
        ((), "--right or --down says by how much"),
        (("--right", "1.5"), "invalid int value"),
    ],
)
def test_bad_options_are_refused(monkeypatch, capsys, words, complaint):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--input", "a", "--output", "b", *words)
    assert complaint in capsys.readouterr().err


def test_the_videos_themselves_are_never_written_over(tmp_path, monkeypatch):
    rows = write_rows(tmp_path, {"id": "a", "video": "a.mp4"})
    (tmp_path / "a.mp4").write_text("mine")
    with pytest.raises(common.InputError, match="is where the videos are"):
        run(monkeypatch, "--input", rows, "--videos", tmp_path, "--output", tmp_path, "--right", 3)
    assert (tmp_path / "a.mp4").read_text() == "mine"
