"""How much memory each process of a training takes while it loads a model, and while it writes it.

    torchrun --standalone --nproc-per-node 4 -m tools.peaks              # on a CPU
    torchrun --standalone --nproc-per-node 4 -m tools.peaks --layers 320

A random InternVL of tools.bench's shape, in bfloat16 in shards of 250 MB, is
made and divided over the processes: a process holds its rows of the float32
masters. Printed is the most that a process held above what it held before, as
the operating system counts it, and as a share of all masters. Files that are
read count while they are open, as far as they were touched; so does one tensor
as a whole in every process, while it is written. Of a small model the shares
say little. Linux only.
"""

import argparse
import functools
import multiprocessing
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

import common
import dpo
from outputs.queue import Queue
from tools import bench
from vlm import processes, sharding
from vlm.lora import Adapter

GIB = 2**30


class Peaks(NamedTuple):
    """What a process held, in GiB."""

    loading: float  # at most, above what it held before
    own: float  # of the model, in the end
    writing: float  # at most, above that


def measure(model_directory: str, output: Path, args) -> Peaks:
    """Load a model and write it again, and measure what that takes."""
    words = argparse.Namespace(
        model=model_directory, devices="cpu", dtype="bfloat16", frames=8, frame_tokens=None, seed=0
    )
    freeze = functools.partial(dpo.freeze_weights, tune="full")
    torch.set_num_threads(1)
    begin = start_peak()
    model, _ = sharding.load(words, Adapter(model_directory, 0, 0), freeze)
    loading = read_peak() - begin
    own = sum(processes.local(weight).nbytes for weight in model.parameters())

    processes.wait()
    begin = start_peak()
    sharding.save_pretrained(model, Path(model_directory), output)
    processes.wait()
    return Peaks(loading / GIB, own / GIB, (read_peak() - begin) / GIB)


def start_peak() -> int:
    """Forget the peak of this process's memory -> the bytes that it holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return read_peak()


def read_peak() -> int:
    """Give the most bytes that this process has held since start_peak."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def main():
    """Make the model, measure, and print a line for each process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument(
        "--layers", type=common.at_least(1), default=160, metavar="N", help="decoder layers"
    )
    args = parser.parse_args()
    if common.process().n == 1:
        raise common.InputError(
            "start it by torchrun --standalone --nproc-per-node N -m tools.peaks"
        )

    with tempfile.TemporaryDirectory() as own:
        queue = Queue()
        if queue.is_first:  # in a process of its own, whose memory is not this one's
            spawn = multiprocessing.get_context("spawn")
            words = (Path(own) / "model", args.layers, torch.bfloat16)
            writer = spawn.Process(target=bench.write_model, args=words)
            writer.start()
            writer.join()
        [directory] = queue.tell([own])
        output = Path(directory) / "written"
        output.mkdir(exist_ok=True)
        peaks = measure(f"{directory}/model", output, args)
        all_peaks = processes.gather([peaks])
        n_bytes = sum(file.stat().st_size for file in output.glob("*.safetensors"))
        processes.wait()
    masters = sum(each.own for each in all_peaks)
    print(f"a model of {n_bytes / GIB:.2f} GiB on the disk, {masters:.2f} GiB in all processes")
    for rank, each in enumerate(all_peaks):
        print(
            f"process {rank}: {each.own:.2f} GiB of it; loading took {each.loading:.2f} "
            f"({each.loading / masters:.0%} of all), writing {each.writing:.2f} "
            f"({each.writing / masters:.0%})"
        )


if __name__ == "__main__":
    common.run(main)
