"""Outputs that resume: nothing that was done is lost, whatever stops a stage.

begin.py         how an output is begun: locked, resumed, finished, or refused
rows.py          a JSONL output, which grows batch by batch of videos
queue.py         the work of one output, shared out among several processes
checkpoints.py   what a training has on the disk until it is finished

The stages use what is listed below, as outputs.NAME.
"""

from outputs.begin import begin, process_path, remove
from outputs.checkpoints import (
    CHECKPOINT_BYTES,
    PART,
    check_disk,
    clear_directory,
    list_checkpoints,
    list_own,
    load_checkpoint,
    make_directory,
    save_checkpoint,
)
from outputs.rows import Output, account_for

__all__ = [
    "CHECKPOINT_BYTES",
    "PART",
    "Output",
    "account_for",
    "begin",
    "check_disk",
    "clear_directory",
    "list_checkpoints",
    "list_own",
    "load_checkpoint",
    "make_directory",
    "process_path",
    "remove",
    "save_checkpoint",
]
