"""Several processes that train one model, started by torchrun: what they do together.

Each has its part of the work (deal) and of every divided weight (own_rows, local). What one of them
makes, all of them get to know (gather, tell, whole). One process alone has all of it, and none of
these functions does anything.

A weight that is divided is a DTensor of PyTorch: it has the shape of the whole, and is computed
with like any other, while each process holds some of its rows.
"""

import itertools
import math

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

import common


def is_first() -> bool:
    """Say whether this process is the one that writes, or is alone."""
    return common.process().rank == 0


def deal(batch: list) -> list:
    """Give the part of a batch that is this process's: all of it, where it is alone."""
    process = common.process()
    return batch[process.rank :: process.n]


def gather(values: list) -> list:
    """Gather the lists of all processes, of what was dealt out to them -> one list, in order."""
    if common.process().n == 1:
        return values
    hands = [None] * common.process().n
    distributed.all_gather_object(hands, [to_cpu(value) for value in values])
    turns = itertools.zip_longest(*hands)
    return [value for turn in turns for value in turn if value is not None]


def to_cpu(value):
    """Move the tensors of a value to the CPU: other processes have other GPUs."""
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, value)


def tell(value):
    """Give what the first process has, to all of them."""
    if common.process().n == 1:
        return value
    told = [value]
    distributed.broadcast_object_list(told)
    return told[0]


def wait():
    """Wait until all processes have come here."""
    if common.process().n > 1:
        distributed.barrier()


def own_rows(weight) -> slice:
    """Give the rows of a weight that this process holds: all of one that is not divided.

    As torch.chunk divides: each process has as many rows, the last ones fewer or none.
    """
    if not isinstance(weight, DTensor):
        return slice(None)
    size = math.ceil(len(weight) / common.process().n)
    start = common.process().rank * size
    return slice(start, start + size)


def like(weight, rows):
    """Make of a process's rows what the model has there: a DTensor of all processes' rows."""
    if not isinstance(weight, DTensor):
        return rows
    return DTensor.from_local(
        rows,
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )


def local(tensor):
    """Give what of a tensor this process holds: of a weight that is divided, its rows."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(weight):
    """Give a divided weight as a whole; all processes must take part."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
