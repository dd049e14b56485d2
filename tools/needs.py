r"""Say what a run of tools/loop.sh needs before it starts: videos, memory, disk.

    python -m tools.needs --model shapes/model --videos 'runs/shapes/round{round}' \
        --run runs/loop --rounds 4 -- --beta 3 --epochs 2

What follows -- are options of dpo.py. Nothing is loaded: videos are counted by
their names, memory is what tools.memory calculates from config.json for six
pairs a video, and the disk is counted by the weights:

models         one a round: all weights, or with --tune lora the adapter
checkpoints    12 bytes for every trained weight; two at once while the newer
               one is written, or one while the model is
not counted    rows (JSONL), results of benchmarks, caches of the hub

What cannot work is refused. What will not fit by these figures is a warning,
as they are no more than figures.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import torch

import benchmarks
import common
import dpo
import evaluate
import generate
import outputs
import prompts
import vlm
from tools import memory
from vlm import families, placement

GIB = 2**30
USABLE = 0.9  # share of a device's memory: tools.memory says what it does not count
ANSWERING_HELPS = "fewer --frames, --videos-per-batch or --processes, or more GPUs"
TRAINING_HELPS = "-- --activation-checkpointing, -- --tune lora, --train-processes, or more GPUs"


def main():
    """Print what the run needs, and what of it will not fit."""
    args, words = parse_args()
    training = parse_training(args, words)
    vlm.check_model(args.model, (), args.frame_tokens)
    if args.critic:
        vlm.check_model(args.critic, (), args.frame_tokens)
    dpo.check_adapter(training)
    prompts.tell_if_no_verdict(prompts.choose(args, []).critique)
    if args.benchmark:
        check_benchmark(*args.benchmark)

    warnings = tell_videos(args)
    plan = plan_memory(args, training)
    warnings += tell_memory(args, plan)
    warnings += tell_disk(args, plan)
    for warning in warnings:
        print(f"warning: {warning}")


def check_benchmark(name: str, directory: str):
    """Raise InputError if evaluate.py would not find this benchmark, or videos of it, on the disk.

    Scoring begins when the first round is done, or out of sight: a mistyped path would show late.
    """
    names = ("shapes", *benchmarks.names())
    if name not in names:
        raise common.InputError(f"--benchmark {name}: it is none of {', '.join(names)}")
    items = evaluate.load_items(name, directory)
    videos = {item["video"] for item in items}
    missing = sorted(video for video in videos if not Path(directory, video).exists())
    if missing:
        raise common.InputError(
            f"--benchmark {name} {directory}: {len(missing)} of {len(videos)} videos are missing, "
            f"such as {missing[0]}. Get them, or leave --benchmark out and score what there is by "
            "evaluate.py --partial"
        )
    print(f"benchmark: {name}, {len(items):,} questions about {len(videos):,} videos")


# ------------------------------------------------------------------------------
# Videos


def tell_videos(args) -> list[str]:
    """Print how many videos each round takes -> warnings.

    Raises:
        InputError: if a round would have none, or if a pool has too few for all rounds
    """
    rounds = range(1, args.rounds + 1)
    if any("{round}" in directory for directory in args.videos):
        taken = []
        for number in rounds:
            n_found = len(
                find_videos([name.replace("{round}", f"{number}") for name in args.videos])
            )
            taken.append(min(n_found, args.limit or n_found))
        print(f"videos: {', '.join(f'{n:,}' for n in taken)} in rounds 1 to {args.rounds}")
        if args.limit and min(taken) < args.limit:
            return [f"a round has {min(taken):,} videos, and --limit is {args.limit:,}"]
        return []

    pool = find_videos(args.videos)
    if not args.limit:
        print(f"videos: {len(pool):,}, which every round takes; with --limit N they would differ")
        return []
    drawn = read_pools(args)
    if args.rounds * args.limit > len(pool) and len(drawn) < args.rounds:
        raise common.InputError(tell_what_is_missing(args.rounds, args.limit, len(pool)))
    print(
        f"videos: {len(pool):,} in the pool, of which each of {args.rounds} rounds takes "
        f"{args.limit:,} of its own"
    )
    if len(drawn) == args.rounds:
        return []  # nothing is drawn any more
    return find_changed_pool(drawn, pool)


def find_videos(directories: list[str]) -> list[Path]:
    """Find the videos of all directories, as generate.py does; each counts once."""
    try:
        return generate.order_pool(directories, seed=0)
    except common.InputError as error:
        raise common.InputError(str(error).replace("--input", "--videos", 1)) from error


def tell_what_is_missing(rounds: int, limit: int, n: int) -> str:
    """Say how many of a pool of n videos each round would get.

    >>> print(tell_what_is_missing(4, 1000, 2500))
    4 rounds of --limit 1,000 take 4,000 videos, but there are 2,500: rounds 1 to 4 would get \
1,000, 1,000, 500, 0. Add videos, or take --limit 625 or fewer --rounds
    """
    got = [min(limit, max(0, n - number * limit)) for number in range(rounds)]
    return (
        f"{rounds} rounds of --limit {limit:,} take {rounds * limit:,} videos, but there are "
        f"{n:,}: rounds 1 to {rounds} would get {', '.join(f'{each:,}' for each in got)}. "
        f"Add videos, or take --limit {n // rounds} or fewer --rounds"
    )


def read_pools(args) -> dict[int, dict | None]:
    """Read which pools rounds were drawn from before -> {round: what generate.py noted of it}."""
    drawn = {}
    for number in range(1, args.rounds + 1):
        path = common.meta_path(Path(args.run, f"round{number}", "responses.jsonl"))
        if path.exists():
            drawn[number] = common.read_json(path).get("pool")
    return drawn


def find_changed_pool(drawn: dict, pool: list[Path]) -> list[str]:
    """Compare the pool with those that rounds were drawn from before -> a warning, if it changed.

    Another pool has another order, so that a round yet to come may take an earlier round's videos.
    """
    root = os.path.commonpath([file.parent for file in pool])
    now = generate.describe_pool(Path(root), pool)
    changed = [number for number, before in drawn.items() if before and before != now]
    if not changed:
        return []
    return [
        f"round {changed[0]} was drawn from {drawn[changed[0]]['n']:,} videos, and --videos has "
        f"{now['n']:,} now, or others: rounds that are yet to come may take videos of earlier "
        "ones again. Put --videos back to what they were, or begin another --run"
    ]


# ------------------------------------------------------------------------------
# Memory and disk


class Plan(NamedTuple):
    """What tools.memory calculates for a run."""

    answering: dict[str, int]  # device: bytes that an answering process needs there
    training: dict[str, int]
    n_trained: int  # weights
    saved: int  # bytes of the model of a round
    uncounted: str  # what is missing from `training`, as memory.name_uncounted tells it


def plan_memory(args, training) -> Plan:
    """Calculate what answering and training need on the devices that they take.

    training: the options of dpo.py
    """
    devices = training.devices.split(",") if training.devices else None
    if not devices:
        devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]
    placement.check_devices(devices)
    on_cpu = devices[0].startswith("cpu")
    dtype = training.dtype or ("float32" if on_cpu else "bfloat16")

    config = placement.read_config(vlm.find_base(args.model), training.frame_tokens)
    options = memory.parse_args(list_options(args, training, config, dtype))
    rows = memory.plan(config, devices, options)
    answering_bytes = plan_answering(config, devices, args.processes, options)
    training_bytes = {device: row.training for device, row in zip(devices, rows)}
    if args.train_processes > 1:
        options.processes = args.train_processes
        n_there = args.train_processes if on_cpu else 1  # in the same memory
        needed = n_there * memory.plan_process(config, options).training
        training_bytes = dict.fromkeys(devices, needed)

    gradients = sum(row.gradients for row in rows)
    if training.tune == "lora":
        n_trained = gradients // 4  # factors are float32 whatever the weights are
        saved = gradients
    else:
        n_trained = gradients // getattr(torch, dtype).itemsize
        saved = sum(row.weights for row in rows)
    uncounted = memory.name_uncounted(config, training.tune)
    return Plan(answering_bytes, training_bytes, n_trained, saved, uncounted)


def list_options(args, training, config, dtype: str) -> list[str]:
    """List the options of tools.memory that say what the run does."""
    rank = vlm.read_adapter(args.model).rank or training.lora_rank or dpo.LORA_RANK
    options = [args.model, "--dtype", dtype, "--tune", training.tune, "--lora-rank", rank]
    options += ["--frames", families.choose_n_frames(training.frames, config)]
    if training.frame_tokens:
        options += ["--frame-tokens", *training.frame_tokens]
    options += ["--videos-per-batch", args.videos_per_batch]
    options += ["--videos-per-step", training.videos_per_step]
    if training.activation_checkpointing:
        options.append("--activation-checkpointing")
    return [str(option) for option in options]


def plan_answering(config, devices: list[str], n_processes: int, options) -> dict[str, int]:
    """Calculate the bytes that answering needs, by device.

    Of several processes each takes its share of the GPUs: the first one's is calculated. On a CPU
    each of them has a model in the same memory.
    """
    share = devices[: max(1, len(devices) // n_processes)]
    rows = memory.plan(config, share, options)
    n_there = n_processes if share == ["cpu"] else 1
    return {device: n_there * row.answering for device, row in zip(share, rows)}


def tell_memory(args, plan: Plan) -> list[str]:
    """Print what answering and training need beside what the devices have -> warnings."""
    there = {device: measure_device(device) for device in plan.training}
    [where, *others] = plan.training
    if others:
        where = f"the smallest of {len(there)} devices"
    print(
        f"memory, GiB: answering {max(plan.answering.values()) / GIB:.2f}, training "
        f"{max(plan.training.values()) / GIB:.2f} (calculated, on the fullest device"
        f"{plan.uncounted}); "
        f"{'the machine' if where == 'cpu' else where} has {min(there.values()) / GIB:.1f}"
    )
    warnings = []
    for what, needed, helps in (
        ("answering", plan.answering, ANSWERING_HELPS),
        ("training", plan.training, TRAINING_HELPS),
    ):
        for device, n_bytes in needed.items():
            if n_bytes > USABLE * there[device]:
                warnings.append(
                    f"{what} needs {n_bytes / GIB:.1f} GiB on {device}, which has "
                    f"{there[device] / GIB:.1f}, of which a tenth should be left free; what helps: "
                    f"{helps} (python -m tools.memory {args.model})"
                )
                break  # one device says it
    return warnings


def measure_device(device: str) -> int:
    """Give the bytes of a GPU's memory, or of the machine's."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(torch.device(device).index or 0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def tell_disk(args, plan: Plan) -> list[str]:
    """Print what the rounds that are left write beside what is free -> warnings."""
    n_left = 0
    for number in range(1, args.rounds + 1):
        path = common.meta_path(Path(args.run, f"round{number}", "model"))
        n_left += not (path.exists() and common.read_json(path).get("finished"))
    checkpoint = outputs.CHECKPOINT_BYTES * plan.n_trained
    needed = count_disk(n_left, plan.saved, checkpoint)

    place = Path(args.run).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    print(
        f"disk, GiB: a model {plan.saved / GIB:.2f} a round, a checkpoint {checkpoint / GIB:.2f}, "
        f"two while one is written; {n_left} rounds are left and need {needed / GIB:.1f}; "
        f"{free / GIB:.1f} are free"
    )
    if needed <= free:
        return []
    return [
        f"the disk of {args.run} has {free / GIB:.1f} GiB free, and the rounds that are left need "
        f"{needed / GIB:.1f}; what helps: another --run, -- --tune lora, or to move the models of "
        "earlier rounds away when they have been scored"
    ]


def count_disk(n_rounds: int, model: int, checkpoint: int) -> int:
    """Count the bytes on the disk at the fullest moment of so many rounds: in the last training.

    Then the models of all rounds before it are there, and two checkpoints, or one and the model.

    >>> count_disk(4, 15, 86)  # 3 models of 15, 2 checkpoints of 86
    217
    >>> count_disk(1, 15, 1)
    16
    """
    if n_rounds == 0:
        return 0
    return (n_rounds - 1) * model + checkpoint + max(checkpoint, model)


# ------------------------------------------------------------------------------
# The command line


def parse_args():
    """Parse the command line -> (arguments, the words that follow --)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="as in tools/loop.sh, like all options here")
    add("--videos", required=True, nargs="+", metavar="DIR", help="directories of videos")
    add("--run", required=True, metavar="RUN", help="directory of the run")
    add("--rounds", type=common.at_least(1), default=4, metavar="N", help="number of rounds")
    add("--limit", type=common.at_least(1), metavar="N", help="videos of a round (default: all)")
    add(
        "--frames",
        type=common.at_least(1),
        metavar="N",
        help="frames of a video (default: the checkpoint says it)",
    )
    common.add_frame_tokens(parser)
    add("--prompts", metavar="FILE", help="other prompts")
    add("--temperature", type=generate.temperature, metavar="T", help="of the answers")
    add("--critic", metavar="M", help="model that criticises and revises in all rounds")
    add("--processes", type=common.at_least(1), default=1, metavar="N", help="that answer")
    add("--train-processes", type=common.at_least(1), default=1, metavar="N", help="that train")
    add(
        "--videos-per-batch",
        type=common.at_least(1),
        default=1,
        metavar="V",
        help="videos whose answers are decoded together",
    )
    add("--benchmark", nargs=2, metavar=("NAME", "DIR"), help="what models are scored on")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:end]), words[end + 1 :]


def parse_training(args, words: list[str]):
    """Parse the options of dpo.py, as the loop's commands will give them."""
    ours = ["--model", args.model, "--input", "pairs.jsonl", "--output", "model"]
    if args.frames:
        ours += ["--frames", str(args.frames)]
    if args.frame_tokens:
        ours += ["--frame-tokens", *map(str, args.frame_tokens)]
    before = sys.argv
    sys.argv = ["dpo.py", *ours, *words]
    try:
        training = dpo.parse_args()
    finally:
        sys.argv = before
    if (training.model, training.input, str(training.output)) != (args.model, ours[3:4], ours[5]):
        raise common.InputError(
            "--model, --input and --output behind --: each round has its own, which loop.sh gives"
        )
    if training.frame_tokens != args.frame_tokens:
        raise common.InputError(
            "--frame-tokens behind --: it belongs before --, for all stages alike"
        )
    if training.overwrite or training.limit:
        raise common.InputError(
            "--overwrite and --limit behind --: the former would lose finished rounds (begin "
            "another --run), the latter belongs before --"
        )
    if training.tune == "all" and args.train_processes > 1:
        raise common.InputError(
            "--tune all behind --: it trains in one process, without --train-processes"
        )
    return training


if __name__ == "__main__":
    common.run(main)
