"""Which frames are taken, and that they are the ones that the file holds."""

import cv2
import numpy as np
import pytest
import torch

import common
import generate


@pytest.mark.parametrize(
    "arguments, expected",
    [
        # seg = 15 / 8 = 1.875; int(0.9375 + round(1.875 i)) with round 0 2 4 6 8 9 11 13
        ((16, 8.0, 8), [0, 2, 4, 6, 8, 9, 11, 13]),
        # seconds 1 to 3 of 40 frames at 10 a second: s = 10, e = 30, seg = 5; int(10 + 2.5 + 5 i)
        ((40, 10.0, 4, 1.0, 3.0), [12, 17, 22, 27]),
        # fewer frames than asked: they repeat. seg = 2 / 5 = 0.4; int(0.2 + round(0.4 i)) with round 0 0 1 1 2
        ((3, 8.0, 5), [0, 0, 1, 1, 2]),
        # an end past the last frame: e = 9; a start past it: clamped to the last frame
        ((10, 10.0, 2, 0.0, 99.0), [2, 6]),
        ((10, 10.0, 2, 50.0, 99.0), [9, 9]),
    ],
)
def test_frame_indices_by_hand(arguments, expected):
    assert common.frame_indices(*arguments) == expected


def test_sampled_frames_are_the_decoder_s_own(video_file):
    capture, decoded = cv2.VideoCapture(str(video_file)), []
    while (frame := capture.read())[0]:
        decoded.append(cv2.cvtColor(frame[1], cv2.COLOR_BGR2RGB))
    assert len(decoded) == 16
    np.testing.assert_array_equal(common.sample_frames(video_file, 8), np.stack(decoded)[[0, 2, 4, 6, 8, 9, 11, 13]])


def test_what_cannot_be_read_is_an_oserror(tmp_path):
    with pytest.raises(OSError, match="no such video"):
        common.sample_frames(tmp_path / "nothing.mp4", 8)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(OSError, match="no frame can be decoded"):
        common.sample_frames(tmp_path / "text.mp4", 8)


def test_pixels_are_normalized_as_imagenet_s():
    grey = np.full((1, 30, 50, 3), 128, np.uint8)
    pixels = common.pixel_values(grey, 14)
    assert pixels.shape == (1, 3, 14, 14)
    expected = [(128 / 255 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(pixels[0, :, 7, 7], torch.tensor(expected))


def test_resizing_does_not_alias():
    # columns white black black white, to a quarter of the size: grey to every eye, but without a filter each point falls between two black ones
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, 0::4] = stripes[:, :, 3::4] = 255
    grey = common.pixel_values(np.full((1, 64, 64, 3), 128, np.uint8), 16)
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # the filter is cut off at the edges
    torch.testing.assert_close(common.pixel_values(stripes, 16)[inside], grey[inside], atol=0.05, rtol=0)


def test_videos_are_drawn_evenly_over_the_inputs(tmp_path):
    for name, n in (("many", 20), ("few", 2)):
        (tmp_path / name).mkdir()
        for number in range(n):
            (tmp_path / name / f"{number:02}.mp4").touch()
    inputs = [tmp_path / "many", tmp_path / "few"]
    root, names = generate.sample_videos(inputs, 8, seed=0)
    assert root == tmp_path and len(names) == len(set(names)) == 8
    assert sum(name.startswith("few/") for name in names) == 2  # all that there are; the rest from the larger input
    assert generate.sample_videos(inputs, 8, seed=1)[1] != names
    assert len(generate.sample_videos(inputs, None, seed=0)[1]) == 22
    with pytest.raises(common.InputError, match="no such file"):
        generate.sample_videos([tmp_path / "nowhere"], None, 0)
