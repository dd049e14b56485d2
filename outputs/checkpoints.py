"""What a training has on the disk until it is finished: checkpoints, and the room that they take.

The output is a directory. What dpo.py wrote into it is known by name, so that --overwrite removes
nothing else.
"""

import os
import re
import shutil
import time
from pathlib import Path

import safetensors.torch
import torch

import common

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
    checkpoint = CHECKPOINT_BYTES * sum(weight.numel() for weight in weights)
    saved = weights if args.tune == "lora" else model.parameters()
    model_bytes = sum(weight.nbytes for weight in saved)
    # The newest checkpoint is kept until the next one, or the model, is there as a whole
    needed = checkpoint + max(checkpoint, model_bytes)

    old = []  # of an unfinished training or, with --overwrite, of a whole one: it is replaced
    if args.output.exists() and args.overwrite:
        old = list_own(args.output)
    elif args.output.exists():
        old = [*args.output.glob("checkpoint[-.]*"), *args.output.glob(f"{PART}/*")]
    free = shutil.disk_usage(args.output if args.output.exists() else args.output.parent).free
    room = free + sum(path.stat().st_size for path in old)

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
    """Save what is needed to resume after a step: master weights and AdamW's state, in one file.

    The file appears whole or not at all. Only then is the one before it removed.

    Returns:
        when it was saved, on the clock of time.monotonic
    """
    tensors = {}
    for number, master in enumerate(masters):
        tensors[f"{number}"] = master.detach()
        for key, value in optimizer.state[master].items():  # step, exp_avg, exp_avg_sq
            tensors[f"{number}.{key}"] = value
    part = output / "checkpoint.part"
    safetensors.torch.save_file(tensors, part)
    with part.open("rb") as file:
        os.fsync(file)  # on the disk, not on its way there: soon there is no other
    # Not *.safetensors, or load_model would take it for the model's weights
    os.replace(part, output / f"checkpoint-{step:06}.state")
    remove_old_checkpoints(output)
    return time.monotonic()


def list_checkpoints(output: Path) -> list[Path]:
    """List the checkpoints of an unfinished training, the newest last."""
    paths = sorted(output.glob("checkpoint-*.state"))
    return [path for path in paths if re.fullmatch(WORKING_FILES, path.name)]


def remove_old_checkpoints(output: Path):
    """Remove all checkpoints but the newest: a process killed while it saved leaves two."""
    for old in list_checkpoints(output)[:-1]:
        old.unlink()


def load_checkpoint(output: Path, masters: list, weights: list, optimizer) -> int:
    """Restore weights and AdamW's state from the newest checkpoint.

    Returns:
        the number of steps done; 0 without a checkpoint
    """
    files = list_checkpoints(output)
    if not files:
        return 0
    try:
        saved = safetensors.torch.load_file(files[-1])
    except safetensors.SafetensorError as error:
        resumes = f"resumes from {files[-2].name}" if files[:-1] else "starts again at step 1"
        raise common.InputError(
            f"{files[-1]}: {error}; it is damaged. Remove this file, and the training {resumes}"
        ) from error
    remove_old_checkpoints(output)

    state = {}
    for number in range(len(masters)):
        keys = ("step", "exp_avg", "exp_avg_sq")
        state[number] = {key: saved[f"{number}.{key}"] for key in keys}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    with torch.no_grad():
        for number, (master, weight) in enumerate(zip(masters, weights)):
            master.copy_(saved[f"{number}"])
            weight.copy_(master)

    step = int(state[0]["step"])
    print(f"resuming after step {step}, from {files[-1]}")
    return step


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
    if args.overwrite and args.output.exists():
        clear_directory(args.output, meta)
    args.output.mkdir(exist_ok=True)


def clear_directory(output: Path, meta: dict):
    """Remove what dpo.py wrote into an output that is overwritten; write the new meta.json."""
    for path in list_own(output):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    common.write_json(common.meta_path(output), meta)
