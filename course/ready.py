"""Lay out the files of a finished `make loop`, for whoever came too late to run it.

    python -m course.ready

They are all that a run has but the weights of its four models: questions,
answers, critiques, pairs, metrics, scores. Lessons 0 to 6 need no more. The
videos are rendered where they are missing, which takes half a minute or two.

reads    course/ready.tar.xz, which python -m course.ready --pack runs/loop made
writes   runs/loop/, runs/shapes/
"""

import argparse
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import common
from course.leaderboard import call

ROOT = Path(common.__file__).resolve().parent
ARCHIVE = ROOT / "course" / "ready.tar.xz"
RUN = Path("runs/loop")
WORLD = Path("runs/shapes")
LEFT_OUT = (".safetensors", ".log", ".html", ".png", ".lock", ".process")


def main():
    """Lay out the files, or pack them."""
    args = parse_args()
    if args.pack:
        pack(args.pack, ARCHIVE)
        return
    if RUN.exists():
        raise common.InputError(
            f"{RUN} is there already, finished or not: `make loop` resumes it. "
            f"To have the ready files in its place, move it away: mv {RUN} runs/mine"
        )
    if not (WORLD / "test" / "questions.json").exists():  # the last file that is written
        call(sys.executable, "-m", "shapes.world", WORLD)
    unpack(ARCHIVE, RUN)
    print(
        f"{RUN} is as `make loop` leaves it, without its models' weights.\n"
        f"What needs a trained model needs a run of your own: rm -r {RUN}, then make loop."
    )


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument(
        "--pack", type=Path, metavar="RUN", help="write course/ready.tar.xz from a finished run"
    )
    return parser.parse_args()


def pack(run: Path, archive: Path):
    """Pack a run's files, but the weights, what is drawn from others, and locks.

    A meta.json then says where the videos are as seen from the repository's root.
    """
    if not (run / "round4" / "eval" / "results.json").exists():
        raise common.InputError(f"{run} is no finished run of four rounds")
    with tempfile.TemporaryDirectory() as directory:
        for file in sorted(run.rglob("*")):
            if file.is_dir() or file.name.endswith(LEFT_OUT):
                continue
            copy = Path(directory) / file.relative_to(run)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
            if file.name.endswith(".meta.json"):
                meta = common.read_json(file)
                root = Path(meta["root"])
                if not root.is_relative_to(ROOT):
                    raise common.InputError(f"{file}: its videos are in {root}, outside of {ROOT}")
                root = root.relative_to(ROOT).as_posix()
                common.write_json(copy, meta | {"root": root, "directory": "."})
        with tarfile.open(archive, "w:xz") as tar:
            tar.add(directory, arcname=run.name, filter=without_owner)


def without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out whose a file is."""
    mode = 0o755 if entry.isdir() else 0o644
    return entry.replace(mode=mode, uid=0, gid=0, uname="", gname="", deep=False)


def unpack(archive: Path, run: Path):
    """Unpack a run, whole or not at all; its videos are those below this repository's root."""
    run.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=run.parent) as directory:
        with tarfile.open(archive) as tar:
            tar.extractall(directory, filter="data")
        [unpacked] = Path(directory).iterdir()
        for path in unpacked.rglob("*.meta.json"):
            meta = common.read_json(path)
            meta |= {"root": str(ROOT / meta["root"]), "directory": str(ROOT)}
            common.write_json(path, meta)
        unpacked.rename(run)


if __name__ == "__main__":
    common.run(main)
