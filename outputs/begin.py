"""How an output is begun: locked, with its meta.json, or refused if it is another command's.

An output of the same command is resumed, or is finished and left as it is.
"""

import contextlib
import os
import platform
import shutil
from pathlib import Path

import filelock

import common
from outputs.queue import Queue


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
    path = common.meta_path(output)
    if output.is_symlink() and not output.exists():
        raise common.InputError(f"--output {output} is a link that leads nowhere; remove it")
    try:
        lock = acquire_lock(output)
    except OSError:
        # A finished output on a disk that is read-only needs no lock
        if not overwrite and output.exists() and is_finished(output, meta, is_whole):
            return None
        raise
    if output.exists() and not path.exists():
        raise common.InputError(
            f"{output} exists without {path.name}, so no stage wrote it. It is left as it is: "
            "choose another --output, or remove it"
        )
    if overwrite and output.exists():
        # meta.json is still that of the process which wrote the old output
        common.replace(process_path(output), f"{os.getpid()}\n")
        return lock
    if output.exists() and is_finished(output, meta, is_whole):
        return None
    common.replace(process_path(output), f"{os.getpid()}\n")
    common.write_json(path, meta)
    return lock


def begin_together(lock, output: Path, meta: dict):
    """Have the other processes begin what the first one has begun; it has the lock for all.

    Args:
        lock: what `begin` has given the first process; of the others it is not asked

    Returns:
        the lock, None if the output is finished; in the other processes something in its place

    Raises:
        InputError: in another process, if it sees other files than the first one
    """
    queue = Queue()
    finished, content, number = queue.tell([lock is None, meta["content"], os.getpid()])
    if queue.is_first or finished:
        return lock
    check_same_files(content, meta)
    path = process_path(output)
    if not path.exists() or path.read_text().strip() != f"{number}":
        raise common.InputError(
            f"{platform.node()}, process {common.process().rank}, does not see --output {output} "
            "of process 0: it must lie where all processes see it"
        )
    return contextlib.nullcontext()


def check_same_files(content: dict, meta: dict):
    """Raise InputError if this process reads other files than the first one, or none.

    content: of the first process's meta
    """
    difference = name_difference(content, meta["content"])
    root = meta.get("root")
    if difference is None and root and not Path(root).is_dir():
        difference = f"root {root}"
    if difference:
        raise common.InputError(
            f"{platform.node()}, process {common.process().rank}, reads other files than "
            f"process 0: its {difference} differs, or is not there"
        )


def is_finished(output: Path, meta: dict, is_whole) -> bool:
    """Say whether an output is finished, and print it; InputError if it is another's."""
    check_same_content(output, meta)
    path = common.meta_path(output)
    [finished] = common.read_keys(path, "finished")
    if not finished or (is_whole and not is_whole()):
        return False
    take_up_prompts(path, meta)
    print(f"{output} is finished; nothing to do")
    return True


def take_up_prompts(path: Path, meta: dict):
    """Write the prompts of a file into the meta.json of a finished output, for later stages.

    Those of the stage itself are in `content`, and are the same.
    """
    before = common.read_json(path)
    is_given = meta.get("arguments", {}).get("prompts")
    if is_given and before.get("prompts") != meta["prompts"]:
        common.write_json(path, before | {"prompts": meta["prompts"]})


def clear(output: Path, meta: dict):
    """Remove an output that is overwritten, and write the meta.json of the new one."""
    remove(output)
    common.write_json(common.meta_path(output), meta)


def acquire_lock(output: Path):
    """Lock an output against other processes; InputError names the one that writes it."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise common.InputError(
            f"--output {output} cannot be written: {error.filename}: {error.strerror}"
        ) from error
    file = output.parent / f".{output.name}.lock"
    lock = filelock.FileLock(file, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except filelock.Timeout:
        path = process_path(output)
        process = f"process {path.read_text().strip()}" if path.exists() else "another process"
        raise common.InputError(f"{output} is being written by {process}") from None
    return lock


def process_path(output: Path) -> Path:
    """Give the path of the file with the number of the process that has an output's lock."""
    return output.parent / f".{output.name}.process"


def check_same_content(output: Path, meta: dict):
    """Raise InputError if an output was begun with other arguments; it names the option."""
    path = common.meta_path(output)
    [before] = common.read_keys(path, "content")
    key = name_difference(before, meta["content"])
    if key is None:
        return
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
    raise common.InputError(f"{output} was {difference}; --overwrite starts anew")


def name_difference(before: dict, now: dict) -> str | None:
    """Name what differs between the contents of two meta.json; None if nothing does."""
    differing = [key for key, value in now.items() if before.get(key) != value]
    # With other questions, evaluate.py's prompts differ too: the input is the better reason to name
    others = [key for key in differing if key != "prompts"]
    return (others or differing or [None])[0]


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
    [arguments] = common.read_keys(path, "arguments")
    then = arguments.get(option, "unknown")
    now = meta["arguments"][option]
    place_then = join_paths(then, common.read_json(path).get("directory"))
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
