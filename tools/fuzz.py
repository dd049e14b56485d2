"""Corrupt small files at random, or make odd inputs on purpose, and see what happens.

    python -m tools.fuzz --n 500       # of each kind; a few minutes

What must happen:

    a corrupt video     is read (as many frames as asked for, uint8), or refused
                        by an OSError
    an odd video, or    of tools/odd_cases.py, which knows what must come of it:
    directory           the right frames, or the right reason
    an odd model, row,  of tools/odd_models.py, odd_rows.py or odd_runs.py, which
    verdict, number,    knows what must come of it: the right result, or a
    or output           refusal in one line that has the right words
    a corrupt input     is read with a row for every line, or refused with file
                        and line
    a corrupt output    is resumed, and then contains every row that an
                        undisturbed one has; or it is refused and left alone

Each case runs in a process of its own, so that a crash or a hang is seen and
counted. Prints the outcomes; the exit code is 1 if one of them is a fault.
"""

import argparse
import functools
import json
import os
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import torch

import common
import media
import outputs
from shapes import world
from tools import odd, odd_cases, odd_models, odd_rows, odd_runs

SECONDS = 20  # after which a case counts as hanging
GOOD = ("read", "refused", "resumed", "right")  # outcomes; all others are faults

# ------------------------------------------------------------------------------
# Files


def write_videos(directory: Path) -> list[Path]:
    """Write small intact videos in four containers -> their paths."""
    for name, code in (("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.webm", "VP80"), ("a.mkv", "mp4v")):
        codec = cv2.VideoWriter_fourcc(*code)
        writer = cv2.VideoWriter(str(directory / name), cv2.CAP_FFMPEG, codec, 8, (64, 48))
        for number in range(16):
            writer.write(np.full((48, 64, 3), 15 * number, np.uint8))
        writer.release()
    world.render(world.make_scene(0, "dev", 0), directory / "world.mp4")
    return sorted(directory.iterdir())


def make_rows() -> list[dict]:
    """Make the rows of an intact JSONL file: 3 about each of 4 videos."""
    rows = []
    for video in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        for number in range(3):
            rows.append(
                {
                    "id": f"{video}/{number}",
                    "video": video,
                    "question": "how many shapes are there?",
                    "initial": "drei, ünï",
                }
            )
    return rows


def corrupt(data: bytes, rng) -> bytes:
    """Flip bits; delete, repeat, zero or overwrite a stretch; cut off the end; or change a line."""
    kind = rng.integers(7)
    first, last = sorted(rng.integers(0, len(data), 2))
    before = data[:first]
    stretch = data[first:last]
    after = data[last:]
    if kind == 0:
        return flip_bits(data, rng)
    if kind == 1:
        return before + after
    if kind == 2:
        return before + stretch + stretch + after
    if kind == 3:
        return before + bytes(len(stretch)) + after
    if kind == 4:
        return before + rng.bytes(len(stretch)) + after
    if kind == 5:
        return before
    return change_line(data, rng)


def flip_bits(data: bytes, rng) -> bytes:
    """Flip one bit each at up to 19 places."""
    flipped = bytearray(data)
    for place in rng.integers(0, len(data), rng.integers(1, 20)):
        flipped[place] ^= 1 << rng.integers(8)
    return bytes(flipped)


def change_line(data: bytes, rng) -> bytes:
    """Replace a line by nothing, by something that is not a row, or by another line."""
    lines = data.splitlines(keepends=True)
    other = rng.choice(lines)
    replacement = rng.choice([b"", b"\n", b"null\n", b"[]\n", b"{}\n", b'{"id": 1}\n', other])
    lines[rng.integers(len(lines))] = replacement
    return b"".join(lines)


# ------------------------------------------------------------------------------
# Cases: each returns its outcome


def try_video(path: Path) -> str:
    """Read the frames of a corrupt video."""
    try:
        frames = media.sample_frames(path, 8).frames
    except OSError:
        return "refused"
    if len(frames) == 8 and frames.ndim == 4 and frames.dtype == np.uint8:
        return "read"
    return f"FAULT: {frames.shape} {frames.dtype}"


def try_odd(make, directory: Path, rng) -> str:
    """Make an odd video or directory, and compare what comes of it with what must."""
    case = make(directory, rng)
    wrong = odd_cases.check(case, n=int(rng.integers(1, 13)))
    return f"FAULT: {make.__name__}: {wrong}" if wrong else "right"


def try_known(make, directory: Path, rng) -> str:
    """Make an odd model, row, number or output, and compare what comes of it with what must."""
    wrong = odd.check(make(directory, rng))
    return f"FAULT: {make.__name__}: {wrong}" if wrong else "right"


def try_input(path: Path) -> str:
    """Read a corrupt JSONL file."""
    try:
        rows = common.read_jsonl(path, ("id", "video", "question"))
    except common.InputError as error:
        says_where = f"{path}, line " in str(error)
        return "refused" if says_where else f"FAULT: {error}"
    n_lines = len(path.read_bytes().splitlines())
    return "read" if len(rows) == n_lines else "FAULT: rows are lost"


def try_output(path: Path) -> str:
    """Resume a corrupt output, and write what is missing in it."""
    before = path.read_bytes()
    meta = {"stage": "stage.py", "content": {}, "process": 0, "finished": None}
    common.write_json(common.meta_path(path), meta)
    groups = common.group_by_video(make_rows())
    args = argparse.Namespace(overwrite=False, max_bad=1.0, videos_per_batch=1)
    try:
        output = outputs.Output(path, args, meta, groups)
    except common.InputError as error:
        is_unchanged = path.read_bytes() == before
        return "refused" if is_unchanged else f"FAULT: refused, but changed: {error}"

    for [(_, rows)] in output.left:
        output.write(rows)
    written = {row["id"] for row in common.read_jsonl(path)}
    expected = {row["id"] for row in make_rows()}
    return "resumed" if expected <= written else "FAULT: rows are lost"


def run_apart(case, path: Path) -> str:
    """Run a case in a process of its own -> its outcome, or the fault that ended the process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        run_child(case, path, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        outcome = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGALRM:
        return "FAULT: hangs"
    if code != 0:
        return f"FAULT: ends with exit code {code}"
    return outcome


def run_child(case, path: Path, writer: int):
    """Run a case in the child process, write its outcome to a pipe, and end the process."""
    signal.alarm(SECONDS)
    # Decoders print about corrupt files to stdout and stderr
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    try:
        outcome = case(path)
    except BaseException as error:
        outcome = f"FAULT: {type(error).__name__}: {error}"
    os.write(writer, outcome.encode()[:4000])
    os._exit(0)


# ------------------------------------------------------------------------------
# The command


def run_cases(kind: str, case, files: list, directory: Path, args) -> Counter:
    """Run a case on corrupt copies of files, (name, content) each -> how often each outcome is."""
    outcomes = Counter()
    for number in common.progress(range(args.n), kind, unit="case"):
        rng = np.random.default_rng([args.seed, number])
        name, data = files[rng.integers(len(files))]
        path = directory / f"{number}_{name}"
        path.write_bytes(corrupt(data, rng))
        count(outcomes, run_apart(case, path), number)
        path.unlink()
    return report(kind, outcomes)


def run_odd_cases(kind: str, attempt, makers: list, directory: Path, args) -> Counter:
    """Run cases that know what must come of them, in turn -> how often each outcome is.

    attempt: function (maker of a case, directory, random generator) -> outcome
    """
    outcomes = Counter()
    for number in common.progress(range(args.n), kind, unit="case"):
        rng = np.random.default_rng([args.seed, number])
        make = makers[number % len(makers)]
        path = directory / f"odd_{number}"
        path.mkdir()
        path.chmod(0o777)  # one case becomes another user
        count(outcomes, run_apart(functools.partial(attempt, make, rng=rng), path), number)
        shutil.rmtree(path)
    return report(kind, outcomes)


def count(outcomes: Counter, outcome: str, number: int):
    """Count an outcome; a fault is named with the number of its case."""
    outcomes[outcome if outcome in GOOD else f"{outcome} (case {number})"] += 1


def report(kind: str, outcomes: Counter) -> Counter:
    """Print and return the outcomes of one kind of case."""
    counts = ", ".join(f"{outcome} {n}" for outcome, n in outcomes.most_common())
    print(f"{outcomes.total()} {kind}: {counts}")
    return outcomes


def main():
    """Run all cases, and print their outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument(
        "--n", type=common.at_least(1), default=500, metavar="N", help="cases of each kind"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is changed")
    args = parser.parse_args()

    torch.set_num_threads(1)  # threads are lost in the processes of the cases
    odd_models.small_model()  # made once, here, and not in each of them
    odd_rows.byte_level()
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in make_rows()]
    rows_file = ("rows.jsonl", "".join(lines).encode())
    outcomes = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        directory.chmod(0o755)
        videos = [(path.name, path.read_bytes()) for path in write_videos(directory)]
        outcomes += run_cases("videos", try_video, videos, directory, args)
        outcomes += run_odd_cases("odd videos", try_odd, odd_cases.CASES, directory, args)
        for module in (odd_models, odd_rows, odd_runs):
            kind = module.__name__.removeprefix("tools.").replace("_", " ")
            outcomes += run_odd_cases(kind, try_known, module.CASES, directory, args)
        outcomes += run_cases("inputs", try_input, [rows_file], directory, args)
        outcomes += run_cases("outputs", try_output, [rows_file], directory, args)
    if any(outcome not in GOOD for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    common.run(main)
