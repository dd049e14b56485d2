"""What a training has on the disk until it is finished: checkpoints, and the room that they take.

The output is a directory. What dpo.py wrote into it is known by name, so that --overwrite removes
nothing else. Of several processes that train together the first one writes, but for checkpoints: of
these each writes what it holds.
"""

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

import safetensors.torch
import torch

import common
from outputs.begin import remove
from vlm import processes

# What is in the output until the training is finished, beside the metrics, which stay
WORKING_FILES = r"metrics\.jsonl|reference\.jsonl(\.part)?|checkpoint-\d{6}\.state|checkpoint\.part"
PART = ".part"  # directory in the output, in which the model is written before it is moved
GIB = 2**30
CHECKPOINT_BYTES = 12  # of a checkpoint, for every trained weight: its float32 master, two moments


def check_disk(model, weights: list, args):
    """Print what checkpoints and the model take on the disk, in one line.

    Raises:
        InputError: if there is less room than the training needs at its fullest moment
    """
    if not processes.is_first():
        return
    checkpoint = CHECKPOINT_BYTES * sum(weight.numel() for weight in weights)
    if args.tune == "lora":
        model_bytes = sum(weight.nbytes for weight in weights)
    else:
        model_bytes = model.config.dtype.itemsize * sum(w.numel() for w in model.parameters())
    # The newest checkpoint is kept until the next one, or the model, is there as a whole
    needed = checkpoint + max(checkpoint, model_bytes)

    old = []  # of an unfinished training or, with --overwrite, of a whole one: it is replaced
    if args.output.exists() and args.overwrite:
        old = list_own(args.output)
    elif args.output.exists():
        old = [*args.output.glob("checkpoint[-.]*"), *args.output.glob(PART)]
    free = shutil.disk_usage(args.output if args.output.exists() else args.output.parent).free
    room = free
    for path in old:
        files = path.rglob("*") if path.is_dir() else [path]  # several processes' are directories
        room += sum(file.stat().st_size for file in files)

    often = "after every step"
    if args.save_every:
        often = f"every {args.save_every:g} minutes and after the last step"
    print(
        f"disk: checkpoints of {checkpoint / GIB:.2f} GiB, {often}, two while "
        f"one is written; a model of {model_bytes / GIB:.2f} GiB; {free / GIB:.1f} GiB are free"
    )
    if room < needed:
        raise common.InputError(
            f"{args.output}: the training needs {needed / GIB:.1f} GiB of disk, for two "
            f"checkpoints, or one and the model; there are {room / GIB:.1f} GiB for it. Make room, "
            "and the same command resumes; or take --tune lora, whose checkpoints are small"
        )


def save_checkpoint(output: Path, step: int, masters: list, optimizer) -> float:
    """Save what is needed to resume after a step: master weights and AdamW's state.

    It appears whole or not at all. Only then is the one before it removed. It is a file; of several
    processes, a directory with a file of each.

    Returns:
        when it was saved, on the clock of time.monotonic
    """
    tensors = {}
    for number, master in enumerate(masters):
        tensors[f"{number}"] = processes.local(master.detach())
        for key, value in optimizer.state[master].items():  # step, exp_avg, exp_avg_sq
            tensors[f"{number}.{key}"] = processes.local(value)

    part = output / "checkpoint.part"
    if processes.is_first() and part.exists():
        remove(part)  # a killed run's, perhaps of other processes
    processes.wait()
    file = part
    if common.process().n > 1:
        part.mkdir(exist_ok=True)
        file = part / f"{common.process().rank:04}"
    safetensors.torch.save_file(tensors, file)
    with file.open("rb") as written:
        os.fsync(written)  # on the disk, not on its way there: soon there is no other
    processes.wait()
    if processes.is_first():
        # Not *.safetensors, or load_model would take it for the model's weights
        os.replace(part, output / f"checkpoint-{step:06}.state")
        remove_old_checkpoints(output)
    return time.monotonic()


def is_due(saved: float, minutes: float) -> bool:
    """Say whether a checkpoint is due, by the clock of the first process: all of them save it.

    saved: when the last one was, on the clock of time.monotonic
    """
    return processes.tell(time.monotonic() - saved >= 60 * minutes)


def list_checkpoints(output: Path) -> list[Path]:
    """List the checkpoints of an unfinished training, the newest last."""
    paths = sorted(output.glob("checkpoint-*.state"))
    return [path for path in paths if re.fullmatch(WORKING_FILES, path.name)]


def remove_old_checkpoints(output: Path):
    """Remove all checkpoints but the newest: a process killed while it saved leaves two."""
    for old in list_checkpoints(output)[:-1]:
        remove(old)


def load_checkpoint(output: Path, masters: list, weights: list, optimizer) -> int:
    """Restore weights and AdamW's state from the newest checkpoint.

    It may be that of another number of processes.

    Returns:
        the number of steps done; 0 without a checkpoint
    """
    found = processes.tell(list_checkpoints(output))
    if not found:
        return 0
    newest = found[-1]
    files = sorted(newest.iterdir()) if newest.is_dir() else [newest]
    try:
        step = read_checkpoint(files, masters, optimizer)
    except safetensors.SafetensorError as error:
        resumes = f"resumes from {found[-2].name}" if found[:-1] else "starts again at step 1"
        kind = "directory" if newest.is_dir() else "file"
        raise common.InputError(
            f"{newest}: {error}; it is damaged. Remove this {kind}, and the training {resumes}"
        ) from error
    processes.wait()
    if processes.is_first():
        remove_old_checkpoints(output)
    with torch.no_grad():
        for master, weight in zip(masters, weights):
            weight.copy_(master)
    if len(files) != common.process().n:
        print(
            f"{newest} is of {len(files)} processes, now there are {common.process().n}: the "
            "trained model will be the same but for rounding"
        )
    print(f"resuming after step {step}, from {newest}")
    return step


def read_checkpoint(files: list[Path], masters: list, optimizer) -> int:
    """Read this process's rows of masters and of AdamW's state out of a checkpoint's files.

    Returns:
        the number of steps done
    """
    if not files:
        raise safetensors.SafetensorError("no file is in it")
    state = {}
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(safetensors.safe_open(file, "pt")) for file in files]
        for number, master in enumerate(masters):
            with torch.no_grad():
                processes.local(master).copy_(read_rows(parts, f"{number}", master))
            state[number] = {"step": parts[0].get_tensor(f"{number}.step")}
            for key in ("exp_avg", "exp_avg_sq"):
                rows = read_rows(parts, f"{number}.{key}", master)
                state[number][key] = processes.like(master, rows)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return int(state[0]["step"])


def read_rows(parts: list, key: str, master):
    """Read this process's rows of a tensor that lies, by rows, in the files of all processes.

    Args:
        parts: the files, opened by safetensors, in the order of the rows
        master: the weight that the tensor belongs to, perhaps divided

    Raises:
        SafetensorError: if rows are missing, such as those of a file that is not there
    """
    own = processes.own_rows(master)
    rows = []
    first = 0  # of the next file
    for part in parts:
        stored = part.get_slice(key)
        n_rows = stored.get_shape()[0]
        start = max((own.start or 0) - first, 0)
        stop = n_rows if own.stop is None else min(max(own.stop - first, 0), n_rows)
        rows.append(stored[start:stop] if start < stop else stored[:0])
        first += n_rows
    if first != len(master):
        raise safetensors.SafetensorError(f"{key} has {first} of {len(master)} rows")
    return torch.cat(rows).to(master.device)


# ------------------------------------------------------------------------------
# Lines that are appended one by one


def resume_lines(path: Path) -> list[dict]:
    """Read the rows of a JSONL file that a stopped run left; the file then ends with a whole line.

    Returns:
        the rows that are in the file, the same in all processes; [] if it is not there
    """
    rows = []
    if processes.is_first():
        rows = common.read_jsonl(path, incomplete=True) if path.exists() else []
        common.write_jsonl(path, rows)
    return processes.tell(rows)


def open_lines(path: Path, n_kept: int | None = None):
    """Open a JSONL file to append to it, for the first process; what others write goes nowhere.

    n_kept: number of lines that are kept, if not all
    """
    if not processes.is_first():
        return open(os.devnull, "w")
    lines = path.open("a+", buffering=1)
    lines.seek(0)
    kept = lines.readlines()[:n_kept]
    lines.truncate(sum(len(line) for line in kept))
    return lines


# ------------------------------------------------------------------------------
# The directory


def list_own(output: Path) -> list[Path]:
    """List what dpo.py wrote into its output, as its meta.json and the names say.

    Raises:
        InputError: if there is anything else, which --overwrite would remove
    """
    meta = common.read_json(common.meta_path(output))
    own = []
    others = []
    for path in sorted(output.iterdir()):
        is_working_file = path.name == PART or re.fullmatch(WORKING_FILES, path.name)
        mine = is_working_file or path.name in meta.get("files", ())
        (own if mine else others).append(path)
    if others:
        names = ", ".join(path.name for path in others)
        raise common.InputError(
            f"{output}: --overwrite would remove what dpo.py did not write: {names}. "
            "Move it away, or choose another --output"
        )
    return own


def make_directory(args, meta: dict):
    """Make the directory of the output, empty if it is overwritten."""
    if processes.is_first():
        if args.overwrite and args.output.exists():
            clear_directory(args.output, meta)
        args.output.mkdir(exist_ok=True)
    processes.wait()


def make_part(output: Path) -> Path:
    """Make the directory in the output in which the model is written, empty -> its path."""
    part = output / PART
    if processes.is_first():
        if part.exists():  # a killed run's: perhaps other files, of another number of processes
            shutil.rmtree(part)
        part.mkdir()
    processes.wait()
    return part


def clear_directory(output: Path, meta: dict):
    """Remove what dpo.py wrote into an output that is overwritten; write the new meta.json."""
    for path in list_own(output):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    common.write_json(common.meta_path(output), meta)
