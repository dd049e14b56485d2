"""What two stages or more use: the record, JSONL files, outputs that resume, options.

It imports none of the project's other modules: everything else may use it.
"""

import argparse
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import cv2
import filelock
import numpy as np
import safetensors
import torch
import transformers

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
        main()
    except InputError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
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
        print(f"\nstopped; the same command resumes: {command()}", file=sys.stderr)
        sys.exit(130)
    except (OSError, safetensors.SafetensorError) as error:
        print(
            f"\nstopped: {error}. Once this is fixed, the same command resumes: {command()}",
            file=sys.stderr,
        )
        sys.exit(1)


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
    return f"python {shlex.join(words)}"


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
        files.add_argument(
            "--videos",
            metavar="DIR",
            help="the videos' root, if it has moved (default: the input's meta.json says it)",
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


def add_shard(parser):
    """Add --shard, for stages whose outputs can be made in parts and joined."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--shard",
        default="0/1",
        metavar="I/N",
        help="every N-th video from the I-th on, I < N, of those that --limit leaves; afterwards "
        "cat the outputs",
    )


def take_shard(videos: list, shard: str) -> list:
    """Take the videos I, I + N, I + 2N, ... of shard 'I/N'; InputError if it gets none."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError(f"--shard {shard}: expected I/N with I < N, such as 0/4")
    taken = videos[int(match[1]) :: int(match[2])]
    if not taken:
        raise InputError(
            f"--shard {shard}: there are only {len(videos)} videos, so this shard has none; "
            f"make it {len(videos)} shards or fewer"
        )
    return taken


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
    if not Path(root).is_absolute():  # whoever wrote it may have stood in another directory
        raise InputError(
            f"{path}: its root {root} is not an absolute path; say it with --videos DIR"
        )
    if not Path(root).is_dir():
        raise InputError(
            f"{root}: no such directory; --videos DIR says where the videos of {input} are"
        )
    return Path(root), groups


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


# ------------------------------------------------------------------------------
# Outputs that resume


def begin(output: Path, meta: dict, overwrite: bool, is_whole=None):
    """Lock an output and write its meta.json.

    An output that is to be overwritten stays as it is until `clear`: when the model has been loaded
    and something is there to take its place.

    Args:
        is_whole: a function without arguments that says whether an output that was finished has
            nothing that is to be done again; None: it never has

    Returns:
        the lock, which is held as long as the object lives; None if the output is finished

    Raises:
        InputError: if another process writes it, or it was begun with other arguments
    """
    path = meta_path(output)
    if output.is_symlink() and not output.exists():
        raise InputError(f"--output {output} is a link that leads nowhere; remove it")
    try:
        lock = acquire_lock(output)
    except OSError:
        # A finished output on a disk that is read-only needs no lock
        if not overwrite and output.exists() and is_finished(output, meta, is_whole):
            return None
        raise
    if output.exists() and not path.exists():
        raise InputError(
            f"{output} exists without {path.name}, so no stage wrote it. It is left as it is: "
            "choose another --output, or remove it"
        )
    if overwrite and output.exists():
        # meta.json is still that of the process which wrote the old output
        replace(process_path(output), f"{os.getpid()}\n")
        return lock
    if output.exists() and is_finished(output, meta, is_whole):
        return None
    replace(process_path(output), f"{os.getpid()}\n")
    write_json(path, meta)
    return lock


def is_finished(output: Path, meta: dict, is_whole) -> bool:
    """Say whether an output is finished, and print it; InputError if it is another's."""
    check_same_content(output, meta)
    path = meta_path(output)
    [finished] = read_keys(path, "finished")
    if not finished or (is_whole and not is_whole()):
        return False
    before = read_json(path)
    if before.get("prompts") != meta.get("prompts"):  # of later stages; its own are in `content`
        write_json(path, before | {"prompts": meta.get("prompts")})
    print(f"{output} is finished; nothing to do")
    return True


def clear(output: Path, meta: dict):
    """Remove an output that is overwritten, and write the meta.json of the new one."""
    remove(output)
    write_json(meta_path(output), meta)


def acquire_lock(output: Path):
    """Lock an output against other processes; InputError names the one that writes it."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--output {output} cannot be written: {error.filename}: {error.strerror}"
        ) from error
    file = output.parent / f".{output.name}.lock"
    lock = filelock.FileLock(file, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except filelock.Timeout:
        path = process_path(output)
        process = f"process {path.read_text().strip()}" if path.exists() else "another process"
        raise InputError(f"{output} is being written by {process}") from None
    return lock


def process_path(output: Path) -> Path:
    """Give the path of the file with the number of the process that has an output's lock."""
    return output.parent / f".{output.name}.process"


def check_same_content(output: Path, meta: dict):
    """Raise InputError if an output was begun with other arguments; it names the option."""
    path = meta_path(output)
    [before] = read_keys(path, "content")
    differing = [key for key, value in meta["content"].items() if before.get(key) != value]
    if not differing:
        return
    # With other questions, evaluate.py's prompts differ too: the input is the better reason to name
    others = [key for key in differing if key != "prompts"]
    key = (others or differing)[0]
    if key == "model":
        difference = tell_difference("model", path, meta)
    elif key == "inputs":
        difference = tell_difference("input", path, meta)
    elif key == "prompts":
        difference = "made with other prompts than the stage has now"
    else:
        then = describe_option(key, before.get(key))
        now = describe_option(key, meta["content"][key])
        difference = f"begun {then}, now it is {now}"
    raise InputError(f"{output} was {difference}; --overwrite starts anew")


def describe_option(key: str, value) -> str:
    """Say how an option was given: 'with --frames 8', 'without --frames'."""
    option = f"--{key.replace('_', '-')}"
    if value is None or value is False:
        return f"without {option}"
    if value is True:
        return f"with {option}"
    return f"with {option} {value}"


def tell_difference(option: str, path: Path, meta: dict) -> str:
    """Say that the model or the input is not the one that meta.json has, or that it changed."""
    [arguments] = read_keys(path, "arguments")
    then = arguments.get(option, "unknown")
    now = meta["arguments"][option]
    place_then = join_paths(then, read_json(path).get("directory"))
    place_now = join_paths(now, meta.get("directory"))
    if place_then == place_now:
        return f"made before the files of its {option} changed ({join_paths(now)})"
    if join_paths(then) == join_paths(now):  # typed alike, but in two directories
        return f"made from another {option}: {place_then} then, {place_now} now"
    return f"made from another {option}: {join_paths(then)} then, {join_paths(now)} now"


def join_paths(value, directory: str | None = None) -> str:
    """Write paths as on the command line: generate.py takes several inputs.

    directory: that relative paths begin from; None leaves them relative
    """
    paths = value if isinstance(value, list) else [value]
    # normpath: m and m/ are the same
    return " ".join(os.path.normpath(Path(directory or "", path)) for path in paths)


def remove(output: Path):
    """Remove an output, a file or a directory."""
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


class Output:
    """A JSONL output, appended to once per video; an incomplete one is resumed.

    Attributes:
        finished: whether there is nothing to do
        left: of the groups, those that are not in the output yet
        rows: the rows that are in it
    """

    def __init__(self, path: Path, args, meta: dict, groups: list, again: tuple = ()):
        """Begin or resume an output for groups, [(video, its rows), ...].

        again: reasons, such as "unreadable_video". Videos that the output has as dropped for one
            of them are done again, also if it is finished
        """
        self.path = path
        self.meta = meta
        self.groups = groups
        self.again = again
        self.rows = []
        self.most_bad = args.max_bad * len(groups)
        self.begun = time.time()
        self.videos = {row["id"]: video for video, rows in groups for row in rows}
        self.lock = begin(path, meta, args.overwrite, self.is_whole)
        self.finished = self.lock is None
        if self.finished:
            self.check_something_is_kept()
        self.replaces = args.overwrite and path.exists()  # until the first write
        if path.exists() and not self.finished and not self.replaces:
            self.resume()
        done = {self.videos[row["id"]] for row in self.rows}
        self.left = [(video, rows) for video, rows in groups if video not in done]

    def resume(self):
        """Keep the rows of complete videos that are not to be done again; remove the others."""
        rows = read_jsonl(self.path, ("id", "video"), incomplete=True)
        complete = self.check_rows_belong(rows)
        undone = self.find_undone(rows)
        # The last video may lack rows. If it is unreadable, it may be the one that ended the run
        if rows and (not complete or "error" in rows[-1]):
            undone.add(self.videos[rows[-1]["id"]])
        self.rows = [row for row in rows if self.videos[row["id"]] not in undone]

        if self.rows == rows[: len(self.rows)]:
            lines = self.path.read_bytes().splitlines(keepends=True)
            n_bytes = sum(len(line) for line in lines[: len(self.rows)])
            os.truncate(self.path, n_bytes)
        else:
            write_jsonl(self.path, self.rows)
        n_videos = len(group_by_video(self.rows))
        print(f"resuming {self.path}: {n_videos} videos are complete, what is left is done now")

    def check_rows_belong(self, rows: list[dict]) -> bool:
        """Check that rows are those of the groups: videos in any order, but the rows of each whole.

        Videos that were done again stand behind the others until the output is finished.

        Returns:
            whether the last video is complete

        Raises:
            InputError: names the line that does not belong there
        """
        firsts = {rows_of_video[0]["id"] for _, rows_of_video in self.groups}
        following = {}  # id of a row -> id of the next row about its video; None after the last
        for _, rows_of_video in self.groups:
            ids = [row["id"] for row in rows_of_video]
            following.update(zip(ids, [*ids[1:], None]))

        next_id = None  # None: the first row of any video
        for number, row in enumerate(rows, 1):
            belongs = row["id"] in firsts if next_id is None else row["id"] == next_id
            # Where a missing video is looked for is not where it is found
            is_missing = row.get("dropped") == "missing_video"
            if not belongs or not (is_missing or row["video"] == self.videos[row["id"]]):
                raise InputError(
                    f"{self.path}, line {number}: not the row that belongs here; "
                    "restore it, or start anew with --overwrite"
                )
            next_id = following[row["id"]]
        return next_id is None

    def find_undone(self, rows: list[dict]) -> set[str]:
        """Find the videos that are to be done again: dropped for a reason that may be gone."""
        dropped_before = set()  # by an earlier stage, or since a video is still missing
        for _, rows_of_video in self.groups:
            dropped_before.update(row["id"] for row in rows_of_video if "dropped" in row)
        undone = set()
        for row in rows:
            is_dropped_here = row["id"] in self.videos and row["id"] not in dropped_before
            if is_dropped_here and row.get("dropped") in self.again:
                undone.add(self.videos[row["id"]])
        return undone

    def is_whole(self) -> bool:
        """Say whether a finished output has no video that is to be done again."""
        if not self.again:
            return True  # without a look at the rows, which may have been edited since
        return not self.find_undone(read_jsonl(self.path, ("id", "video")))

    def write(self, rows: list[dict]):
        """Append the next rows about one video; InputError if too many videos are unreadable."""
        n_bad = 0
        if any("error" in row for row in rows):
            n_bad = len({row["video"] for row in [*self.rows, *rows] if "error" in row})
            if n_bad > self.most_bad:
                self.check_something_is_readable(rows)
        if self.replaces:
            clear(self.path, self.meta)
            self.replaces = False

        lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
        with self.path.open("ab") as file:
            file.write(b"".join(lines))
        self.rows += rows
        if n_bad > self.most_bad:
            raise InputError(
                f"{n_bad} videos are unreadable, more than --max-bad allows; "
                f"their errors are in {self.path} under `error`. Once they can be read, "
                "--retry-unreadable reads them again"
            )

    def check_something_is_readable(self, rows: list[dict]):
        """Raise InputError if no video could be read so far: most likely a path is mistyped.

        Nothing is left behind then that would block the corrected command.
        """
        errors = [row["error"] for row in [*self.rows, *rows] if "error" in row]
        if len(errors) < len(self.rows) + len(rows):
            return
        if not self.replaces:
            self.path.unlink(missing_ok=True)
            meta_path(self.path).unlink(missing_ok=True)
        n_videos = len({row["video"] for row in [*self.rows, *rows]})
        raise InputError(
            f"none of the first {n_videos} videos can be read, which is more than --max-bad "
            f"allows: {errors[0]}. Nothing is kept; "
            "are --input and --videos right?"
        )

    def put_in_order(self):
        """Put the rows into the order of the groups, which videos that were done again are not."""
        place = {id: number for number, id in enumerate(self.videos)}
        ordered = sorted(self.rows, key=lambda row: place[row["id"]])
        if ordered != self.rows:
            self.rows = ordered
            write_jsonl(self.path, ordered)

    def finish(self, kept: str):
        """Note in meta.json that the output is finished, and account for all of its rows.

        kept: what the rows are called that were not dropped, such as "pairs":
            rows in 12 = 7 pairs + 5 dropped (unchanged 3, no_error_found 2)

        Raises:
            InputError: if all rows were dropped; the output is finished nevertheless
        """
        if self.replaces:
            clear(self.path, self.meta)
        self.path.touch()
        self.put_in_order()
        drops = Counter(row["dropped"] for row in self.rows if "dropped" in row)
        n_kept = len(self.rows) - drops.total()
        account = f"rows in {len(self.rows)} = {n_kept} {kept} + {drops.total()} dropped"
        if drops:
            account += f" ({list_reasons(drops)})"
        seconds = round(time.time() - self.begun, 1)
        finished = {"account": account, "kept": n_kept, "seconds": seconds}
        write_json(meta_path(self.path), self.meta | {"finished": finished})
        print(f"{self.path}: {account}")
        n_unreadable = len({row["video"] for row in self.rows if "error" in row})
        if n_unreadable:
            print(f"{n_unreadable} videos are unreadable; --retry-unreadable reads them again")
        n_partial = len({row["video"] for row in self.rows if "warning" in row})
        if n_partial:
            print(f"{n_partial} videos cannot be decoded to their end: `warning` in their rows")
        self.check_something_is_kept()

    def check_something_is_kept(self):
        """Raise InputError if all rows of a finished output were dropped."""
        [finished] = read_keys(meta_path(self.path), "finished")
        if finished.get("kept") == 0:
            raise InputError(
                f"{self.path}: {finished['account']}. It is finished, but has nothing for the "
                f"next stage; {WHAT_HELPS}"
            )
