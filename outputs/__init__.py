"""Outputs that resume: nothing that was done is lost, whatever stops a stage.

begin.py         how an output is begun: locked, resumed, finished, or refused
rows.py          a JSONL output, which grows batch by batch of videos
queue.py         the work of one output, shared out among several processes
checkpoints.py   what a training has on the disk until it is finished

The stages use what is listed below, as outputs.NAME.
"""

from outputs.begin import begin, begin_together, process_path, remove
from outputs.checkpoints import (
    CHECKPOINT_BYTES,
    PART,
    check_disk,
    clear_directory,
    is_due,
    list_checkpoints,
    list_own,
    load_checkpoint,
    make_directory,
    make_part,
    open_lines,
    resume_lines,
    save_checkpoint,
)
from outputs.rows import Output, account_for

__all__ = [
    "CHECKPOINT_BYTES",
    "PART",
    "Output",
    "account_for",
    "begin",
    "begin_together",
    "check_disk",
    "clear_directory",
    "is_due",
    "list_checkpoints",
    "list_own",
    "load_checkpoint",
    "make_directory",
    "make_part",
    "open_lines",
    "process_path",
    "remove",
    "resume_lines",
    "save_checkpoint",
]
