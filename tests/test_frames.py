"""Which frames of a video are taken, and that they are the frames that the file contains."""

import cv2
import numpy as np
import pytest
import torch

import common
import generate
import media
import vlm


def decode_all(path):
    """Decode a video with OpenCV alone -> list of uint8 (height, width, 3), RGB."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        is_frame, image = capture.read()
        if not is_frame:
            return frames
        frames.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


# ------------------------------------------------------------------------------
# Which frames


@pytest.mark.parametrize(
    "arguments, expected",
    [
        # part = 15 / 8 = 1.875; int(0.9375 + round(1.875 i)) with round 0 2 4 6 8 9 11 13
        ((16, 8.0, 8), [0, 2, 4, 6, 8, 9, 11, 13]),
        # Seconds 1 to 3 of 40 frames at 10 a second: begin = 10, stop = 30, part = 5; int(10 + 2.5 + 5 i)
        ((40, 10.0, 4, 1.0, 3.0), [12, 17, 22, 27]),
        # Fewer frames than asked for: they repeat. part = 2 / 5 = 0.4; int(0.2 + round(0.4 i)) with round 0 0 1 1 2
        ((3, 8.0, 5), [0, 0, 1, 1, 2]),
        # An end after the last frame: stop = 9, part = 4.5; int(2.25 + round(4.5 i)) with round 0 4
        ((10, 10.0, 2, 0.0, 99.0), [2, 6]),
        # A start after the last frame: clamped to it
        ((10, 10.0, 2, 50.0, 99.0), [9, 9]),
    ],
)
def test_frame_indices_by_hand(arguments, expected):
    assert media.frame_indices(*arguments) == expected


def test_sampled_frames_are_those_of_the_decoder(video_file):
    decoded = decode_all(video_file)
    assert len(decoded) == 16
    expected = np.stack(decoded)[[0, 2, 4, 6, 8, 9, 11, 13]]
    np.testing.assert_array_equal(media.sample_frames(video_file, 8).frames, expected)


def test_each_frame_has_the_second_in_which_it_is_shown(video_file):
    """Of 16 frames at 8 a second; as the file's own times say."""
    expected = [number / 8 for number in (0, 2, 4, 6, 8, 9, 11, 13)]
    assert media.sample_frames(video_file, 8).seconds == pytest.approx(expected, abs=1e-3)


def test_what_cannot_be_read_is_an_oserror(tmp_path):
    with pytest.raises(OSError, match="missing.mp4: No such file"):
        media.sample_frames(tmp_path / "missing.mp4", 8)

    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(OSError, match="no frame can be decoded"):
        media.sample_frames(tmp_path / "text.mp4", 8)


# ------------------------------------------------------------------------------
# From frames to pixels


def test_pixels_are_normalized_with_imagenet_mean_and_std():
    grey = np.full((1, 30, 50, 3), 128, np.uint8)
    pixels = vlm.pixel_values(grey, (14, 14))
    assert pixels.shape == (1, 3, 14, 14)
    red = (128 / 255 - 0.485) / 0.229
    green = (128 / 255 - 0.456) / 0.224
    blue = (128 / 255 - 0.406) / 0.225
    torch.testing.assert_close(pixels[0, :, 7, 7], torch.tensor([red, green, blue]))


def test_resizing_does_not_alias():
    # Columns white black black white, resized to a quarter: grey to every eye. Without a filter each point of the small
    # image would fall between two black columns, and all would be black.
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, 0::4] = 255
    stripes[:, :, 3::4] = 255
    grey = np.full((1, 64, 64, 3), 128, np.uint8)

    resized = vlm.pixel_values(stripes, (16, 16))[:, :, 2:-2, 2:-2]  # at the edges the filter is cut off
    expected = vlm.pixel_values(grey, (16, 16))[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(resized, expected, atol=0.05, rtol=0)


# ------------------------------------------------------------------------------
# Which videos


def test_videos_are_drawn_evenly_over_the_inputs(tmp_path):
    for name, n_videos in (("many", 20), ("few", 2)):
        (tmp_path / name).mkdir()
        for number in range(n_videos):
            (tmp_path / name / f"{number:02}.mp4").touch()
    inputs = [tmp_path / "many", tmp_path / "few"]

    order = generate.order_pool(inputs, seed=0)
    assert len(order) == len(set(order)) == 22
    folders = [file.parent.name for file in order]
    assert folders[:4] == ["many", "few", "many", "few"]  # in turn, until the smaller one has no more
    assert set(folders[4:]) == {"many"}

    assert generate.order_pool(inputs, seed=1) != order
    with pytest.raises(common.InputError, match="no such file"):
        generate.order_pool([tmp_path / "missing"], 0)


def test_a_video_that_is_found_twice_counts_once(tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (pool / name).touch()
    (tmp_path / "link").symlink_to(pool)
    (tmp_path / "c.mp4").symlink_to(pool / "a.mp4")
    order = generate.order_pool([pool, pool, tmp_path / "link", tmp_path / "c.mp4", pool / "b.mp4"], seed=0)
    assert sorted(file.resolve().name for file in order) == ["a.mp4", "b.mp4"]
