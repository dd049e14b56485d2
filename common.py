"""What two stages or more use: the record, JSONL files, options, what meta.json says.

It imports none of the project's other modules: everything else may use it.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import safetensors
import torch
import transformers
from tqdm import tqdm

DEFAULT_FRAMES = 32  # of a video, if the model's config.json has no `num_frames`


class InputError(Exception):
    """Something that a user can fix. `run` prints it without a traceback."""


def run(main):
    """Run a stage's main; what a user can fix ends it with a message, not with a traceback.

    Exit code: 0, 1 after an error (a full disk and too little memory among them), 130 after Ctrl-C.
    """
    transformers.utils.logging.disable_progress_bar()
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # errors of a video are in its rows
    if hasattr(cv2, "setLogLevel"):  # another OpenCV is refused at the first video, by its name
        cv2.setLogLevel(2)  # errors alone
    try:
        call(main)
    except InputError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except torch.distributed.DistError as error:
        end_stopped(name_lost(error), 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines() or ["there is none left"]
        sys.exit(
            f"\nstopped, too little memory: {reason[0]}. What helps: more --devices; in dpo.py "
            "--activation-checkpointing; fewer --frames (with --overwrite: that changes the "
            "output); fewer or shorter rows about one video. The same command resumes"
        )
    except KeyboardInterrupt:
        end_stopped(";", 130)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
        sys.exit(1)
    except (OSError, safetensors.SafetensorError) as error:
        end_stopped(f": {error}. Once this is fixed,", 1)


def call(main):
    """Call a stage's main; whatever ends it, its progress bars end before that is said."""
    try:
        if process().n > 1:
            run_as_one_of_several(main)
        else:
            main()
    finally:
        for bar in bars:
            bar.close()


def name_lost(error: torch.distributed.DistError) -> str:
    """Say what a process has lost the connection to, for end_stopped."""
    if isinstance(error, torch.distributed.DistBackendError):
        return ": another process has ended, for what it says;"
    return f": torchrun does not answer ({first_line(error)});"  # its store is gone


def end_stopped(reason: str, code: int):
    """End the process, and say which command resumes its work.

    Of several processes on a machine two say it: one of them may be the one that was killed.
    """
    is_follower = process().rank > 0 and not work_has_begun.is_set()  # nothing to resume
    if process().local_rank < 2 and not is_follower:
        print(f"\nstopped{reason} the same command resumes: {command()}", file=sys.stderr)
    sys.exit(code)


def first_line(error: Exception) -> str:
    """Give the first line of what an error says; its class if it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error is a lack of memory, on a GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error)  # PyTorch's, for which it has no class


def command(*without: str) -> str:
    """Give the command that this process was started with, but for --overwrite.

    without: options with one value each that are left out as well
    """
    words = []
    left_out = False  # whether the next word is the value of an option that is left out
    for word in sys.orig_argv[1:]:
        option = word.partition("=")[0]
        if not left_out and word != "--overwrite" and option not in without:
            words.append(word)
        left_out = word in without
    if process().n > 1:
        return f"{launcher()} {shlex.join(words).removeprefix('-u ')}"
    return f"python {shlex.join(words)}"


# ------------------------------------------------------------------------------
# Several processes, started by torchrun

PATIENCE = 60  # seconds: a network file system may show a new file late
work_has_begun = threading.Event()  # this process has taken a part of the work


class Process(NamedTuple):
    """Which process this is: numbers from 0 on, and how many there are."""

    rank: int
    n: int
    local_rank: int  # on this machine
    n_local: int


def process() -> Process:
    """Say which process this is, as torchrun has told it; without torchrun it is alone."""
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    return Process(*(int(os.environ.get(name, alone)) for name, alone in names.items()))


def launcher() -> str:
    """Give the command that started the processes, up to the stage's name."""
    n_nodes = process().n // process().n_local
    if n_nodes == 1:
        return f"torchrun --standalone --nproc-per-node {process().n_local}"
    address = os.environ["MASTER_ADDR"]
    port = os.environ["MASTER_PORT"]
    return (
        f"torchrun --nnodes {n_nodes} --nproc-per-node {process().n_local} --node-rank K "
        f"--master-addr {address} --master-port {port}"
    )


def run_as_one_of_several(main):
    """Run a stage's main as one of several processes, of which the first one speaks for all.

    The others read the same files. What they find missing or different at first may only be late:
    then they try again for a minute. What is wrong for all ends the first one, and torchrun then
    ends the others.
    """
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise InputError(
            "torchrun --max-restarts does not work here: restarted processes would find the work "
            f"of those before them marked as taken. This does the same: until {command()}; do "
            "sleep 5; done"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # torchrun ends the others by it
    try:
        if process().rank == 0:
            main()
        else:
            follow(main)
    except RuntimeError as error:
        if "gloo" not in str(error):
            raise
        raise torch.distributed.DistBackendError(error) from error  # gloo's have no class


def follow(main):
    """Run a stage's main as another process than the first one, in silence."""
    begun = time.monotonic()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        while True:
            try:
                main()
                return
            except InputError:
                if work_has_begun.is_set():
                    time.sleep(min(PATIENCE, 3))  # by then torchrun has ended it, if all are wrong
                    raise
                if time.monotonic() - begun > PATIENCE:
                    raise
            time.sleep(1)


# ------------------------------------------------------------------------------
# The record


class Field(NamedTuple):
    """A key of the record."""

    stage: str  # that writes it
    kind: type | tuple
    meaning: str


SECONDS = (int, float, type(None))
MOST_SECONDS = 1e9  # NaN is not below it
# The only home of the schema. A row is a JSON object; a stage adds keys and edits none.
RECORD = {
    "id": Field("generate", str, "<video>/<kind>/<n>, unique"),
    "video": Field("generate", str, "path below the videos' root, which meta.json has"),
    "kind": Field("generate", str, "spatial or temporal, or another kind that the prompts name"),
    "question": Field("generate", str, "written by the model"),
    "initial": Field("generate", str, "the first answer"),
    "critique": Field("critique", str, "what is wrong with it, free text"),
    "error_types": Field(
        "critique",
        (list, type(None)),
        "read from the critique: [] for a right answer, null if unreadable",
    ),
    "revised": Field("refine", str, "the answer after the critique"),
    "chosen": Field("refine", str, "the revised answer, if it makes a pair"),
    "rejected": Field("refine", str, "the initial answer, if it makes a pair"),
    "dropped": Field("any", str, "why the row makes no pair; later stages skip it"),
    "error": Field("any", str, "why the video cannot be read, if it was dropped for that"),
    "warning": Field("any", str, "how much of the video can be decoded, if that is not all"),
    "start": Field("any", SECONDS, "the video is shown from these seconds on; rows of your own"),
    "end": Field("any", SECONDS, "and to these; without them, or null, all of it"),
}


def read_jsonl(
    path, require: tuple = (), incomplete: bool = False, error_types: Collection[str] | None = None
) -> list[dict]:
    """Read the rows of a JSONL file.

    Args:
        require: keys that every row must have
        incomplete: skip a last line without its line end, which a stopped process may leave
        error_types: the names that `error_types` of a row may have; None: any

    Raises:
        InputError: with file and line, if a line is not a valid row
    """
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if incomplete and lines and not lines[-1].endswith(b"\n"):
        lines.pop()

    rows = []
    ids = set()
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line.decode("utf-8"))
            fault = find_fault(row, require, error_types)  # may be too deep as well
        except json.JSONDecodeError as error:
            column = f"column {error.colno}"
            raise InputError(f"{where}, {column}: not JSON in UTF-8 ({error.msg})") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON in UTF-8 ({error})") from error
        if fault:
            raise InputError(f"{where}: {fault}")
        if "id" in row:
            if row["id"] in ids:
                raise InputError(f"{where}: duplicate id {row['id']!r}")
            ids.add(row["id"])
        rows.append(row)
    return rows


def find_fault(row, require: tuple, error_types: Collection[str] | None = None) -> str | None:
    """Say what is wrong with a row; None if it is valid and has the required keys."""
    if not isinstance(row, dict):
        return f"an object is expected, not {type(row).__name__}"
    needed = require
    if "dropped" in row:  # of the required keys it needs no others than these
        needed = [key for key in require if key in ("id", "video")]
    for key in needed:
        if key not in row:
            return f"no key {key!r}, which {RECORD[key].stage}.py writes"
    for key, value in row.items():
        if half := find_surrogate([key, value]):
            return f"{key!r} has {half}, half of a character, which is no text in UTF-8"
    return find_wrong_value(row, error_types)


def find_surrogate(value) -> str | None:
    r"""Find half of a surrogate pair in the texts of a JSON value -> its escape, such as \ud83d.

    JSON may spell it, but it can neither be written in UTF-8 nor encoded as tokens, and as the name
    of a video it makes OpenCV crash.
    """
    texts = json.dumps(value, ensure_ascii=False)
    half = re.search("[\ud800-\udfff]", texts)
    return f"\\u{ord(half[0]):x}" if half else None


def find_wrong_value(row: dict, error_types: Collection[str] | None) -> str | None:
    """Say which value of a row is not what RECORD says; None if all are."""
    for key, field in RECORD.items():
        if key in row and (not isinstance(row[key], field.kind) or row[key] is True):
            return f"{key!r} has the type {type(row[key]).__name__}"
    for key in ("start", "end"):
        if row.get(key) is not None and not -MOST_SECONDS < row[key] < MOST_SECONDS:
            shown = f"{row[key]}"[:20]
            return f"{key!r} is {shown}, not seconds"
    if "\0" in row.get("video", ""):
        return "'video' has a character 0, which no path can have"
    for error in row.get("error_types") or ():
        if not isinstance(error, str) or (error_types and error not in error_types):
            return f"unknown error type {error!r}"
    return None


def segment(row: dict) -> tuple:
    """Say what a row is about: (video, start, end), the seconds of it that are shown or None."""
    return row["video"], row.get("start"), row.get("end")


def group_by_segment(rows: list[dict]) -> list[tuple[str, list[dict]]]:
    """Group rows by the segment that they are about -> [(video, its rows), ...].

    A video has several groups if its rows are about several segments.
    """
    groups = {}
    for row in rows:
        groups.setdefault(segment(row), []).append(row)
    return [(video, part) for (video, _, _), part in groups.items()]


def group_by_video(rows: list[dict]) -> list[tuple[str, list[dict]]]:
    """Group rows by their video -> [(video, its rows), ...], in order of first appearance."""
    groups = {}
    for row in rows:
        groups.setdefault(row["video"], []).append(row)
    return list(groups.items())


def read_json(path):
    """Read a JSON file; InputError names the file."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON in UTF-8 ({error})") from error
    if half := find_surrogate(value):
        raise InputError(f"{path}: it has {half}, half of a character, which is no text in UTF-8")
    return value


def read_keys(path, *keys: str) -> list:
    """Read the values of these keys of the object in a JSON file; InputError names file and key."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: an object is expected, not {type(value).__name__}")
    for key in keys:
        if key not in value:
            raise InputError(f"{path}: no key {key!r}")
    return [value[key] for key in keys]


def write_json(path, value):
    """Write a JSON file, whole or not at all."""
    replace(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_jsonl(path, rows: list[dict]):
    """Write a JSONL file, whole or not at all."""
    replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def replace(path, text: str):
    """Write a text beside a file, then rename it, so that the file is never half written."""
    part = Path(f"{path}.part")
    part.write_bytes(text.encode())
    os.replace(part, path)


# ------------------------------------------------------------------------------
# The command line


bars = []  # all that were made; `run` closes them before it says why a stage ended


def progress(*args, **options) -> tqdm:
    """Make tqdm's progress bar, with a rate and the time that is left.

    Where standard error is no terminal, such as in a log, it is a line a minute: a bar would fill
    the log with carriage returns. What takes less than a minute leaves no line there.
    """
    if not sys.stderr.isatty():
        options |= {"file": Lines(), "mininterval": 60, "maxinterval": 60, "delay": 60}
        options["bar_format"] = (
            "{desc}: {n_fmt} of {total_fmt}, {elapsed}<{remaining}, {rate_fmt}{postfix}"
        )
    if process().rank:  # of several processes the first one shows the progress of all
        options["disable"] = True
    bars.append(tqdm(*args, **options))
    return bars[-1]


class Lines:
    """A file for tqdm whose states of a bar are lines of standard error."""

    def write(self, text: str):
        """Write a state; what only moves or clears the bar is left out."""
        state = text.strip("\r\n ")
        if state:
            print(state, file=sys.stderr)

    def flush(self):
        """Write what is buffered."""
        sys.stderr.flush()


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """--help with the stage's docstring as it is written, and every option's default.

    A default of None is not printed: the option's own help text says what happens then.
    """

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def at_least(least: int, most: int = 2**31 - 1):
    """Make an argparse type: a whole number from `least` to `most`."""

    def whole_number(text):
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too low, it must be {least} or more")
        if value > most:
            raise argparse.ArgumentTypeError(f"{value} is too high, it must be {most} or less")
        return value

    whole_number.__name__ = "whole number"  # argparse: invalid whole number value: 'x'
    return whole_number


def number_between(low: float, high: float = math.inf, above: bool = False, below: bool = False):
    """Make an argparse type: a number from `low` to `high` that is a number in float32, too.

    Models compute in float32, where 1e39 is infinite and 1e-46 is 0: both are refused, like inf
    and nan.

    Args:
        above: whether it must be above `low`, so that `low` itself is refused
        below: whether it must be below `high`
    """
    limits = []
    if low > -math.inf:
        limits.append(f"above {low}" if above else f"{low} or more")
    if high < math.inf:
        limits.append(f"below {high}" if below else f"{high} or less")
    expected = " and ".join(limits) or "a number"

    def number(text):
        value = float(text)
        with np.errstate(over="ignore", under="ignore"):
            single = float(np.float32(value))
        if not math.isfinite(single) or (single == 0) != (value == 0):
            raise argparse.ArgumentTypeError(
                f"{text} is no number in float32, it must be {expected}"
            )
        too_low = value <= low if above else value < low
        too_high = value >= high if below else value > high
        if too_low or too_high:
            raise argparse.ArgumentTypeError(f"{text} is out of range, it must be {expected}")
        return value

    return number


# Of random numbers. The largest is what PyTorch's generators take
seed_number = at_least(0, 2**63 - 1)


def make_parser(
    doc: str,
    output: str,
    input: str,
    *,
    several_inputs: bool = False,
    videos: bool = True,
    retry: bool = False,
    required: tuple = ("model", "input", "output"),
):
    """Make a parser with the options that all stages share.

    Args:
        doc: the stage's docstring, which --help shows
        output, input: help texts, which name the files
        several_inputs: whether --input takes more than one path
        videos: whether to add --videos, for stages whose --input is a JSONL file that names videos
        retry: whether to add --retry-unreadable, for stages whose output has rows of dropped videos
        required: options that must be given
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=HelpFormatter)

    files = parser.add_argument_group("what is read and written")
    files.add_argument(
        "--input",
        required="input" in required,
        nargs="+" if several_inputs else None,
        metavar="PATH",
        help=input,
    )
    if videos:
        for_each = "; one for all inputs, or one for each" if several_inputs else ""
        files.add_argument(
            "--videos",
            nargs="+" if several_inputs else None,
            metavar="DIR",
            help="the videos' root, if it has moved (default: the input's meta.json says it)"
            + for_each,
        )
    files.add_argument(
        "--output",
        type=Path,
        required="output" in required,
        metavar="PATH",
        help=f"{output}; run again, the stage resumes",
    )
    files.add_argument("--overwrite", action="store_true", help="start the output anew")
    files.add_argument(
        "--limit", type=at_least(1), metavar="N", help="only N videos in all (default: all)"
    )
    files.add_argument(
        "--max-bad",
        type=number_between(0, 1),
        default=0.5,
        metavar="SHARE",
        help="stop if more than this share of the videos is unreadable; 1.0: never",
    )
    if retry:
        files.add_argument(
            "--retry-unreadable",
            action="store_true",
            help="read videos again that the output has as unreadable_video; all else is kept",
        )

    model = parser.add_argument_group("the model")
    model.add_argument(
        "--model",
        required="model" in required,
        help="directory of a checkpoint or of a LoRA adapter, or hub name",
    )
    model.add_argument(
        "--frames",
        type=at_least(1),
        metavar="N",
        help=f"frames of a video (default: the checkpoint says it, else {DEFAULT_FRAMES})",
    )
    add_frame_tokens(model)
    model.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights (default: float32 on a CPU, bfloat16 on a GPU)",
    )

    machine = parser.add_argument_group("the machine")
    machine.add_argument(
        "--devices",
        help="comma-separated, such as cuda:0,cuda:1 (default: all visible GPUs, else cpu)",
    )
    return parser


def add_frame_tokens(parser):
    """Add the option --frame-tokens to a parser, or to a group of one."""
    parser.add_argument(
        "--frame-tokens",
        type=at_least(1),
        nargs=2,
        metavar=("LEAST", "MOST"),
        help="tokens of two frames, by which Qwen-VL chooses their size (default: the checkpoint "
        "says it, else 128 768)",
    )


def add_batches(parser):
    """Add what stages take that answer: --videos-per-batch, and --shard."""
    group = parser.add_argument_group("many videos")
    group.add_argument(
        "--videos-per-batch",
        type=at_least(1),
        default=1,
        metavar="V",
        help="videos whose answers are decoded together: faster, and more memory (the cache of V "
        "videos)",
    )
    group.add_argument(
        "--shard",
        default="0/1",
        metavar="I/N",
        help="every N-th batch from the I-th on, I < N, of the videos that --limit leaves; "
        "afterwards python -m tools.join joins the outputs. For processes that do not know of each "
        "other; else torchrun is simpler",
    )


def cut_in_batches(videos: list, size: int) -> list[list]:
    """Cut a list of videos into batches, by their places in it."""
    return [videos[start : start + size] for start in range(0, len(videos), size)]


def take_shard(videos: list, args) -> list:
    """Take the videos of the batches I, I + N, I + 2N, ... of --shard I/N.

    Raises:
        InputError: if the shard gets none
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", args.shard)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError(f"--shard {args.shard}: expected I/N with I < N, such as 0/4")
    batches = cut_in_batches(videos, args.videos_per_batch)
    taken = batches[int(match[1]) :: int(match[2])]
    if not taken:
        raise InputError(
            f"--shard {args.shard}: there are only {len(batches)} batches of "
            f"{args.videos_per_batch} videos, so this shard has none; make it {len(batches)} "
            "shards or fewer"
        )
    return [video for batch in taken for video in batch]


def read_input(
    input, videos, require: tuple, error_types: Collection[str] | None = None
) -> tuple[Path, list]:
    """Read the rows that a stage works on.

    Args:
        input, videos: values of --input and --videos
        require: keys that every row must have
        error_types: the names that `error_types` of a row may have; None: any

    Returns:
        (root of their videos, an absolute path; [(video, its rows), ...])
    """
    groups = group_by_video(read_jsonl(input, require, error_types=error_types))
    if not groups:
        raise InputError(f"{input} has no rows, so there is nothing to do")
    path = meta_path(input)
    if path.exists():
        root, stage, finished = read_keys(path, "root", "stage", "finished")
        if not finished:
            raise InputError(
                f"{input} is unfinished; the command that began it resumes it: {stage}"
            )
    else:
        root = None
    if videos:
        root = Path(videos).resolve()
    if not root:
        raise InputError(
            f"{input} has no meta.json beside it that says where its videos are; "
            "say it with --videos DIR"
        )
    if not Path(str(root)).is_absolute():  # whoever wrote it may have stood in another directory
        raise InputError(
            f"{path}: its root {root} is not an absolute path; say it with --videos DIR"
        )
    if not Path(root).is_dir():
        raise InputError(
            f"{root}: no such directory; --videos DIR says where the videos of {input} are"
        )
    return Path(root), groups


def read_inputs(paths: list, videos, require: tuple) -> tuple[Path, list]:
    """Read the rows of several inputs, whose videos may have different roots.

    Args:
        videos: values of --videos: none, one for all inputs, or one for each

    Returns:
        (common root, [(video, its rows), ...]): of several inputs the videos' paths begin at the
        common root. Their rows get `input`, their file, since ids of two files may be the same;
        and `named`, the video as it is in that file

    Raises:
        InputError: also if an input is named twice
    """
    directories = videos or [None]
    if len(directories) not in (1, len(paths)):
        raise InputError(
            f"--videos has {len(directories)} directories for {len(paths)} inputs: give one for "
            "all, or one for each"
        )
    if len(paths) == 1:
        return read_input(paths[0], directories[0], require)
    places = {}
    for path in paths:
        place = Path(path).resolve()
        if place in places:
            raise InputError(f"--input {path} is there twice, as {places[place]} too")
        places[place] = path

    if len(directories) == 1:
        directories = directories * len(paths)
    inputs = []
    for path, directory in zip(paths, directories):
        inputs.append(read_input(path, directory, require))
    joined = Path(os.path.commonpath([root for root, _ in inputs]))
    rows = []
    for path, (root, groups) in zip(paths, inputs):
        below = root.relative_to(joined)
        for video, group in groups:
            place = {"video": (below / video).as_posix(), "named": video, "input": f"{path}"}
            rows += [row | place for row in group]
    return joined, group_by_video(rows)


def check_rows_are_left(input, groups: list):
    """Raise InputError if every row of an input was dropped before: a stage has nothing to do."""
    drops = Counter(row.get("dropped") for _, rows in groups for row in rows)
    if None not in drops:
        raise InputError(
            f"{input}: all {drops.total()} rows are dropped already ({list_reasons(drops)}), so "
            f"there is nothing to do; {WHAT_HELPS}"
        )


def list_reasons(drops: Counter) -> str:
    """List why rows were dropped: 'unchanged 3, no_error_found 2'."""
    return ", ".join(f"{reason} {n}" for reason, n in drops.most_common())


WHAT_HELPS = 'docs/files.md, "Why was a row dropped?", says what helps'


# ------------------------------------------------------------------------------
# meta.json: what an output was made from

# Arguments that say where or how, but not what: the output may be resumed with other values
NOT_CONTENT = (
    "activation_checkpointing",
    "ask",
    "devices",
    "input",
    "max_bad",
    "model",
    "output",
    "overwrite",
    "partial",
    "prompts",
    "retry_unreadable",
    "save_every",
    "videos",
    "without",
)
# The files of a model: those that load_model and load_tokenizer read. Others in its directory are
# no part of it, such as an output that is written there
MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)


def meta_path(output) -> Path:
    """Give the path of the meta.json that belongs to an output."""
    return Path(f"{output}.meta.json")


def make_meta(args, asked: list, prompts: dict, root, groups: list) -> dict:
    """Describe a run for <output>.meta.json.

    `content` decides whether an output may be resumed: arguments, and fingerprints of the model,
    the prompts and the rows that are read. The rest is for readers, and for the stages after it.

    Args:
        asked: the prompts that this stage uses
        prompts: all of them, for the stages after it
        root: of the videos
        groups: what is read
    """
    for key, value in vars(args).items():
        if find_surrogate(f"{value}"):
            raise InputError(f"--{key}: {value!r} is not UTF-8, and cannot be written to meta.json")
    models = model_directories(args.model)
    inputs = args.input if isinstance(args.input, list) else [args.input]
    read = [Path(path).resolve() for path in (*models, *inputs)]
    if args.output.resolve() in read:
        raise InputError(f"--output {args.output} is also an input; choose another")

    content = {key: value for key, value in vars(args).items() if key not in NOT_CONTENT}
    content["model"] = fingerprint(*models)
    content["prompts"] = fingerprint(*asked)
    content["inputs"] = fingerprint(*groups)
    return {
        "stage": Path(sys.argv[0]).name,
        "arguments": json.loads(json.dumps(vars(args), default=str)),
        "directory": os.getcwd(),
        "content": content,
        "root": str(root),
        "prompts": prompts,
        "commit": read_commit(),
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "opencv": cv2.__version__,
        },
        "process": os.getpid(),
        "finished": None,
    }


def read_commit() -> str | None:
    """Read this repository's commit; None outside of git, or without git on the machine."""
    command = ["git", "rev-parse", "HEAD"]
    here = Path(__file__).parent
    try:
        git = subprocess.run(command, capture_output=True, text=True, cwd=here, check=False)
    except OSError:  # there is no git
        return None
    return git.stdout.strip() or None


def model_directories(model) -> list[Path]:
    """List the directories that a model is read from: its own, and its base's if it is LoRA."""
    adapter = Path(model) / "adapter_config.json"
    if not adapter.exists():
        return [Path(model)]
    [base] = read_keys(adapter, "base_model_name_or_path")
    return [Path(model), Path(base)]


def fingerprint(*parts) -> str:
    """Hash texts, and the files that make models: 16 hex digits of SHA-256.

    A file counts by its first 64 KiB of every MiB: reading all of a large model takes minutes.
    """
    sample = 2**16
    stride = 2**20
    digest = hashlib.sha256()
    for part in parts:
        files = list_model_files(part) if isinstance(part, Path) else []
        names = " ".join(file.name for file in files)
        digest.update((names or f"{part}\0").encode())
        for file in files:
            if file.stat().st_size == 0:  # it cannot be mapped, and adds nothing
                continue
            data = np.memmap(file, mode="r")
            for start in range(0, len(data), stride):
                digest.update(data[start : start + sample].tobytes())
    return digest.hexdigest()[:16]


def list_model_files(directory: Path) -> list[Path]:
    """List the files of a directory that make a model, sorted.

    Of weights these are model.safetensors, else the files that the index names, as they are loaded.
    """
    files = set()
    for pattern in MODEL_FILES:
        files.update(file for file in directory.glob(pattern) if file.is_file())
    index = directory / "model.safetensors.index.json"
    if index.exists() and not (directory / "model.safetensors").exists():
        [names] = read_keys(index, "weight_map")
        paths = {directory / f"{name}" for name in dict(names).values()}
        files.update(path for path in paths if path.is_file())
    return sorted(files)
