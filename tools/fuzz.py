"""Spoils small videos and JSONL files at random, and sees what becomes of them.

    python -m tools.fuzz --n 500          # so many of each; a minute or two on two cores

A spoilt video must be read (so many frames as asked, uint8) or refused by an OSError. A spoilt JSONL file must be read with a row for
every line, or refused with file and line. A spoilt output that is gone on with must end with every row that an undisturbed one has, or be
refused, and then be as it was. Each case runs in a process of its own, so that a crash or a hang is seen and counted. Prints the
outcomes; exit code 1 where one of them is a fault.
"""

import argparse
import json
import os
import signal
import tempfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

import common
from shapes import world

SECONDS = 20  # after which a case counts as hanging
GOOD = ("read", "refused", "went on")


def spoil(data, rng):
    """Bytes -> bytes: some flipped, a stretch cut out, doubled, zeroed or made noise, the end cut off, a line lost or said twice."""
    data, kind = bytearray(data), rng.integers(7)
    first, last = sorted(rng.integers(0, len(data), 2))
    if kind == 0:
        for place in rng.integers(0, len(data), rng.integers(1, 20)):
            data[place] ^= 1 << rng.integers(8)
    elif kind == 1:
        del data[first:last]
    elif kind == 2:
        data[last:last] = data[first:last]
    elif kind == 3:
        data[first:last] = bytes(last - first)
    elif kind == 4:
        data[first:last] = rng.bytes(last - first)
    elif kind == 5:
        del data[first:]
    else:
        lines = bytes(data).splitlines(keepends=True)
        lines[rng.integers(len(lines))] = rng.choice(
            [b"", b"\n", b"null\n", b"[]\n", b"{}\n", b'{"id": 1}\n', rng.choice(lines)]
        )
        data = b"".join(lines)
    return bytes(data)


def try_video(path):
    try:
        frames = common.sample_frames(path, 8)
    except OSError:
        return "refused"
    return (
        "read"
        if frames.shape[0] == 8 and frames.ndim == 4 and frames.dtype == np.uint8
        else f"FAULT: {frames.shape} {frames.dtype}"
    )


def try_rows(path):
    try:
        rows = common.read_jsonl(path, ("id", "video", "question"))
    except common.InputError as error:
        return "refused" if f"{path}, line " in str(error) else f"FAULT: {error}"
    return "read" if len(rows) == len(path.read_bytes().splitlines()) else "FAULT: rows are lost"


def try_output(path, args, meta, groups):
    before = path.read_bytes()
    try:
        output = common.Output(path, args, meta, groups)
    except common.InputError as error:
        return "refused" if path.read_bytes() == before else f"FAULT: refused, but changed: {error}"
    for _, rows in output.left:
        output.write(rows)
    ids = {row["id"] for row in common.read_jsonl(path)}
    return (
        "went on"
        if ids >= {row["id"] for _, rows in groups for row in rows}
        else "FAULT: rows are lost"
    )


def run_apart(case, *arguments):
    """What `case` returns, run in a process of its own; or the fault that ended it."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        try:
            outcome = case(*arguments)
        except BaseException as error:
            outcome = f"FAULT: {type(error).__name__}: {error}"
        os.write(writer, outcome.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        outcome = pipe.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return (
        "FAULT: hangs"
        if code == -signal.SIGALRM
        else f"FAULT: ends with exit code {code}"
        if code
        else outcome
    )


def write_seeds(directory):
    """Small whole videos of four containers -> their paths."""
    frames = [np.full((48, 64, 3), 15 * number, np.uint8) for number in range(16)]
    for name, code in (("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.webm", "VP80"), ("a.mkv", "mp4v")):
        writer = cv2.VideoWriter(
            str(directory / name), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), 8, (64, 48)
        )
        for frame in frames:
            writer.write(frame)
        writer.release()
    world.render(world.make_scene(0, "dev", 0), directory / "world.mp4")
    return sorted(path for path in directory.iterdir())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=500, help="spoilt files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args, faults = parser.parse_args(), 0
    args.overwrite, args.max_bad = False, 1.0
    rows = [
        {
            "id": f"{video}.mp4/{n}",
            "video": f"{video}.mp4",
            "question": "how many shapes are there?",
            "initial": "drei, ünï",
        }
        for video in "abcd"
        for n in range(3)
    ]
    jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    meta, groups = {"content": {}, "process": 0, "finished": None}, common.group_by_video(rows)
    with tempfile.TemporaryDirectory() as temporary:
        seeds = [(path.name, path.read_bytes()) for path in write_seeds(Path(temporary))]
        for kind in ("videos", "JSONL files", "outputs gone on with"):
            outcomes = Counter()
            for number in tqdm(range(args.n), kind, unit="case"):
                rng = np.random.default_rng([args.seed, len(kind), number])
                name, data = (
                    seeds[rng.integers(len(seeds))] if kind == "videos" else ("rows.jsonl", jsonl)
                )
                path = Path(temporary) / f"{number}_{name}"
                path.write_bytes(spoil(data, rng))
                common.write_json(common.meta_path(path), meta)
                case = {"videos": (try_video, path), "JSONL files": (try_rows, path)}.get(
                    kind, (try_output, path, args, meta, groups)
                )
                outcome = run_apart(*case)
                outcomes[outcome if outcome in GOOD else f"{outcome} (case {number})"] += 1
                path.unlink()
            faults += sum(n for outcome, n in outcomes.items() if outcome not in GOOD)
            print(
                f"{args.n} {kind}: "
                + ", ".join(f"{outcome} {n}" for outcome, n in outcomes.most_common())
            )
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    common.run(main)
