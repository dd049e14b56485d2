"""One output, several processes: torchrun's store is the queue of work and the mailbox of results.

    torchrun --standalone --nproc-per-node 8 generate.py ...

Every process takes the next batch that none has taken, and sends the rows that it made to the first
process, which alone writes, in order. So at every moment the output is the beginning of what one
process would write: it can be resumed by any number of processes. There is no process group and no
barrier: a process that is slow takes fewer batches.

The store is torch.distributed's: `add` counts, `set` and `get` send a text.
"""

import datetime
import functools
import json
import os
import time
from collections.abc import Iterator

from torch import distributed

import common

TIMEOUT = datetime.timedelta(seconds=30)  # of each word to the store


def connect():
    """Connect to the store that torchrun has started; for one process it is in its memory."""
    if common.process().n == 1:
        return distributed.HashStore()
    return connect_to_torchrun()


@functools.cache
def connect_to_torchrun():
    """Connect once, without waiting for other processes.

    torchrun keeps the store itself, from before it starts them: where none answers, it was killed.
    """
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return distributed.TCPStore(*address, wait_for_workers=False, timeout=TIMEOUT)


class Queue:
    """Batches, by number, that the processes of one command share out among themselves."""

    def __init__(self):
        """Connect to the other processes: a command has one queue, since it has one output."""
        self.store = distributed.PrefixStore("queue", connect())
        self.is_first = common.process().rank == 0

    def tell(self, facts) -> object:
        """Give what the first process says to all of them: facts, which JSON can hold."""
        if self.is_first:
            self.store.set("facts", json.dumps(facts))
        return self.wait_for("facts")

    def take(self, numbers: list[int]) -> Iterator[int]:
        """Take numbers, each of which no other process gets, until there is none left."""
        while True:
            turn = self.store.add("taken", 1) - 1
            if turn >= len(numbers):
                return
            yield numbers[turn]

    def send(self, number: int, rows: list[dict]):
        """Send the rows of a batch to the first process."""
        self.store.set(f"{number}", json.dumps(rows))

    def has_arrived(self, number: int) -> bool:
        """Say whether the rows of a batch are there."""
        return self.store.check([f"{number}"])

    def receive(self, number: int) -> list[dict]:
        """Take the rows of a batch out of the mailbox; wait until they are there."""
        rows = self.wait_for(f"{number}")
        self.store.delete_key(f"{number}")
        return rows

    def wait_for(self, key: str):
        """Wait until a key is there, and read it: not by `get` alone, which hears no signal."""
        while not self.store.check([key]):
            time.sleep(0.02)
        return json.loads(self.store.get(key))
