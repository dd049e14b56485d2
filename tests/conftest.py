"""What several tests share. Run with `make test`, or `python -m pytest` from the root."""

import contextlib
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import common
import media
import vlm
from forked import forked_python
from shapes import world

torch.set_num_threads(1)  # at this size a second thread only costs

MODEL = Path(__file__).parent.parent / "shapes" / "model"


@pytest.fixture(scope="session")
def model():
    return vlm.load_model(MODEL, ["cpu"])


@pytest.fixture(scope="session")
def tokenizer():
    return vlm.load_tokenizer(MODEL)


@pytest.fixture(scope="session")
def video_file(tmp_path_factory):
    """A collision, as a real .mp4 file of 16 frames."""
    path = tmp_path_factory.mktemp("video") / "scene.mp4"
    world.render(world.make_scene(0, "dev", 2), path)
    return path


@pytest.fixture
def frames(video_file):
    """8 frames of it, uint8 (8, 128, 128, 3), RGB."""
    return media.sample_frames(video_file, 8).frames


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory):
    """The environment of processes that start in no time, for Processes of forked.py.

    They are forked from this process before the first test: later it may have threads, whose locks a fork would copy
    as they are, held for ever.
    """
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "PATIENCE", 1)  # seconds, in the processes alone
        server = forked_python(tmp_path_factory.mktemp("python"))
        environment = stack.enter_context(server)
        patch.undo()
        yield environment
