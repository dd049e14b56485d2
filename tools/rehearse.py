r"""Rehearse a run on this machine: all five stages, a real shape, random weights.

    python -m tools.rehearse internvl2_5-1b
    python -m tools.rehearse internvl2_5-8b --devices cuda:0
    python -m tools.rehearse InternVL2_5-26B/config.json --output /scratch/rehearse
    python -m tools.rehearse qwen3-vl-2b --clip runs/clips/bikes.mp4

The steps, each a process of its own whose command is printed:

    checkpoint    random weights: InternVL2.5's in OpenGVLab's layout
                  (tools.original), Qwen-VL's in transformers' (tools.qwen)
    convert       InternVL2.5's to transformers' layout (tools.convert)
    ask           a question about a clip (generate.py --ask)
    generate      six questions; none is kept, a random model writes noise
    critique, refine, dpo    on six rows that were written by hand
    evaluate      the trained adapter, on three questions by hand

At the end a table says how long each took, its peak memory and what it wrote.
The answers mean nothing. What the machine can do is what is learned, in about
ten minutes on two CPU cores.

On a CPU less is done, unless you say otherwise: 4 frames of a video instead of
32, and replies of 32 tokens.

Run again, it does not repeat the steps that are finished; one that was stopped
starts anew, and so do those after it.
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np
import torch

import common
import outputs
from tools import convert, memory, original, qwen

ROOT = Path(common.__file__).parent
GIB = 2**30
CPU_FRAMES = 4
CPU_TOKENS = 32  # of a reply
LORA_RANK = 16  # dpo.py's default

# ------------------------------------------------------------------------------
# What is rehearsed with: a clip, and rows about it

CLIP = "clip.mp4"
FPS = 24
N_FRAMES = 96
WIDTH, HEIGHT = 640, 360
# A red square crosses the picture to the right. From the middle on a blue circle is above it.
RED, BLUE, GREY = (40, 40, 200), (200, 90, 40), (120, 120, 120)  # BGR
QUESTION = "What happens in this video?"


class Row(NamedTuple):
    """A question about the clip, with a wrong and a right answer."""

    kind: str
    question: str
    wrong: str
    right: str
    error_type: str


ROWS = (
    Row(
        "spatial",
        "Where is the blue circle in relation to the red square at the end?",
        "At the end the blue circle is below the red square, in the lower left of the picture.",
        "At the end the blue circle is above the red square, in the upper right of the picture.",
        "spatial_relationship",
    ),
    Row(
        "spatial",
        "Which objects can be seen, and what color is each of them?",
        "There are a red square, a blue circle and a green triangle in front of a grey ground.",
        "There are a red square and a blue circle in front of a grey ground, and nothing else.",
        "object_hallucination",
    ),
    Row(
        "spatial",
        "In which half of the picture does the red square begin, and where does it end?",
        "It begins in the right half, close to the edge, and it ends in the left half.",
        "It begins in the left half, close to the edge, and it ends in the right half.",
        "factual_inaccuracy",
    ),
    Row(
        "temporal",
        "Which of the two objects appears first?",
        "The blue circle is there from the beginning, and the red square comes later.",
        "The red square is there from the beginning, and the blue circle comes later.",
        "temporal_ordering",
    ),
    Row(
        "temporal",
        "How does the red square move over the course of the video?",
        "It jumps up and down several times, and then it rests in the middle.",
        "It moves evenly from the left to the right, at the same height all the time.",
        "factual_inaccuracy",
    ),
    Row(
        "temporal",
        "What changes in the second half of the video, and does the red square cause it?",
        "The red square hits the blue circle, which is why the circle begins to move.",
        "A blue circle appears and rests; the red square does not touch it, so it is no cause.",
        "causal_reasoning",
    ),
)


def write_clip(path: Path):
    """Write the clip: four seconds of a moving square, as MPEG-4."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), FPS, (WIDTH, HEIGHT))
    if not writer.isOpened():
        raise common.InputError(f"{path}: OpenCV cannot write an .mp4 file here")
    for number in range(N_FRAMES):
        image = np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)
        left = 40 + 5 * number
        cv2.rectangle(image, (left, 220), (left + 80, 300), RED, -1)
        if number >= N_FRAMES // 2:
            cv2.circle(image, (540, 90), 50, BLUE, -1)
        writer.write(image)
    writer.release()


def write_inputs(base: Path, clip: Path | None):
    """Write the clip, the rows by hand and a small benchmark below a directory.

    videos/clip.mp4
    by_hand/responses.jsonl, critiques.jsonl, pairs.jsonl
    benchmark/lvb_val.json    in LongVideoBench's layout, with its videos

    clip: a video to copy; None: one is drawn
    """
    for folder in ("videos", "by_hand", "benchmark"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    path = base / "videos" / CLIP
    if clip:
        shutil.copy(clip, path)
    else:
        write_clip(path)
    shutil.copytree(base / "videos", base / "benchmark" / "videos", dirs_exist_ok=True)

    responses, critiques, pairs = [], [], []
    for number, row in enumerate(ROWS):
        response = {"id": f"{CLIP}/{row.kind}/{number}", "video": CLIP, "kind": row.kind}
        response |= {"question": row.question, "initial": row.wrong}
        text = f"In the video it is otherwise. {row.right}\nErrors: {row.error_type}"
        critique = response | {"critique": text, "error_types": [row.error_type]}
        responses.append(response)
        critiques.append(critique)
        pairs.append(critique | {"revised": row.right, "chosen": row.right, "rejected": row.wrong})
    for name, rows in {"responses": responses, "critiques": critiques, "pairs": pairs}.items():
        common.write_jsonl(base / "by_hand" / f"{name}.jsonl", rows)
    common.write_json(base / "benchmark" / "lvb_val.json", list_items())


def list_items() -> list[dict]:
    """Make three questions with options, as lvb_val.json has them."""
    items = []
    for number, row in enumerate(ROWS[-3:]):
        items.append(
            {
                "id": f"clip_{number}",
                "video_path": CLIP,
                "question": row.question,
                "candidates": [row.wrong, row.right, "Neither of the two.", "It cannot be seen."],
                "correct_choice": 1,
                "duration_group": 15,
                "question_category": "by hand",
            }
        )
    return items


# ------------------------------------------------------------------------------
# The steps


class Step(NamedTuple):
    """One process."""

    name: str
    command: list[str]  # after "python"
    output: Path | None  # the file or directory that it writes


def list_steps(base: Path, args) -> list[Step]:
    """List the steps in their order.

    Args:
        base: directory that they write to
        args: with model, frames, devices and tokens (of a reply; None: each stage's default)
    """
    model, videos, by_hand = (base / name for name in ("model", "videos", "by_hand"))
    made = base / "round1"
    shown = ["--frames", args.frames]
    if args.devices:
        shown += ["--devices", args.devices]
    short = ["--max-new-tokens", args.tokens] if args.tokens else []
    by_model = ["--model", model, *shown]

    def stage(name: str, output: Path, *words) -> Step:
        return Step(name, [f"{name}.py", *map(str, words), "--output", str(output)], output)

    question = ["--input", videos, "--ask", QUESTION, *short]
    rows = ["--videos", videos, "--input"]
    tuning = ["--tune", "lora", "--lr", "5e-6", "--activation-checkpointing"]
    benchmark = ["--benchmark", "longvideobench", "--input", base / "benchmark"]
    return [
        *list_first_steps(base / "original", model, args.model),
        Step("ask", ["generate.py", *map(str, [*by_model, *question])], None),
        stage("generate", made / "responses.jsonl", *by_model, "--input", videos),
        stage(
            "critique",
            made / "critiques.jsonl",
            *by_model,
            *rows,
            by_hand / "responses.jsonl",
            *short,
        ),
        stage(
            "refine", made / "pairs.jsonl", *by_model, *rows, by_hand / "critiques.jsonl", *short
        ),
        stage("dpo", made / "model", *by_model, *rows, by_hand / "pairs.jsonl", *tuning),
        stage("evaluate", made / "eval", "--model", made / "model", *shown, *benchmark),
    ]


def list_first_steps(original_layout: Path, model: Path, name: str) -> list[Step]:
    """List the steps up to a checkpoint in transformers' layout, for a size or a config.json."""
    if qwen.is_qwen(name):
        return [Step("checkpoint", ["-m", "tools.qwen", name, str(model)], model)]
    words = ["-m", "tools.original", name, str(original_layout)]
    return [
        Step("checkpoint", words, original_layout),
        Step("convert", ["-m", "tools.convert", str(original_layout), str(model)], model),
    ]


class Measured(NamedTuple):
    """What a step took."""

    seconds: float
    cpu: float  # seconds of all cores together; far less than `seconds` if others have the cores
    memory: int  # peak of the process, in bytes
    gpu: int | None  # peak of the fullest GPU, in bytes; None without one
    disk: int  # bytes that it wrote and left


FIELDS = Measured._fields


def run_steps(steps: list[Step], record: Path, clip: str) -> dict[str, Measured]:
    """Run the steps that are not finished, and keep what they took in a file.

    clip: fingerprint of the video; with another one all begins anew

    Raises:
        InputError: if one failed; it names the step
    """
    kept = common.read_json(record) if record.exists() else {}
    finished = {}
    for step in steps:
        entry = kept.get(step.name, {})
        same = (entry.get("command"), entry.get("clip")) == (step.command, clip)
        if same and entry.keys() == {"command", "clip", *FIELDS}:
            print(f"{step.name}: finished before, not done again")
        else:
            kept = {}  # the steps after this one begin anew, too
            clear(step.output)
            print(f"\n--- {step.name}\npython {shlex.join(step.command)}", flush=True)
            took = measure(step)
            entry = {"command": step.command, "clip": clip, **took._asdict()}
            print(f"{step.name}: {describe(took)}", flush=True)
        finished[step.name] = entry
        common.write_json(record, finished | kept)
    return {name: Measured(*[entry[field] for field in FIELDS]) for name, entry in finished.items()}


def clear(output: Path | None):
    """Remove an output of which it is not known what it took, and the files beside it."""
    if output is None:
        return
    if output.exists():
        outputs.remove(output)
    for file in output.parent.glob(f"*{output.name}.*"):
        if file.name.startswith((f"{output.name}.meta", f".{output.name}.")):
            file.unlink()


def measure(step: Step) -> Measured:
    """Run a step in a process of its own, whose peak memory is then its own.

    Raises:
        InputError: if it failed
    """
    started = time.time()
    with GpuWatch() as watch:
        status, usage = run_process([sys.executable, *step.command])
    code = os.waitstatus_to_exitcode(status)
    if code and not (code == 1 and is_finished(step.output)):
        raise common.InputError(f"the step {step.name} failed: {why(code)}")
    if code:
        print("(so it must be: a random model writes nothing that could be kept)")
    kibibytes = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there
    return Measured(
        seconds=round(time.time() - started, 1),
        cpu=round(usage.ru_utime + usage.ru_stime, 1),
        memory=usage.ru_maxrss * kibibytes,
        gpu=watch.peak,
        disk=count_bytes(step.output) if step.output else 0,
    )


def run_process(command: list[str]) -> tuple[int, object]:
    """Run a process at the repository's root -> (its status, its own use of resources).

    wait4, since getrusage of all children gives the largest of them. The memory that is reported
    for a child is never below this process's own, so that nothing large may be done here.
    """
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C reached it, too
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return status, usage


def is_finished(output: Path | None) -> bool:
    """Tell whether a stage has finished its output: it says so, also if it kept no row."""
    if output is None or not common.meta_path(output).exists():
        return False
    return bool(common.read_json(common.meta_path(output)).get("finished"))


def why(code: int) -> str:
    """Say how a process ended that did not end well."""
    if code == -9:
        return (
            "it was killed, most likely because the machine's memory was full; try fewer "
            "--frames, or a smaller size"
        )
    return f"exit code {code}; its last lines are above. Run again, this begins with that step"


def count_bytes(path: Path) -> int:
    """Count the bytes of a file, or of all files below a directory."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


# ------------------------------------------------------------------------------
# The machine


class Gpu(NamedTuple):
    """Memory of a GPU in bytes, as nvidia-smi says it."""

    used: int
    total: int


def list_gpus() -> list[Gpu]:
    """List the GPUs; without nvidia-smi there is none."""
    query = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return read_gpus(said.stdout)


def read_gpus(said: str) -> list[Gpu]:
    """Read what nvidia-smi says, a GPU a line in MiB: "1024, 24576"."""
    gpus = []
    for line in said.splitlines():
        match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", line)
        if match:
            gpus.append(Gpu(int(match[1]) * 2**20, int(match[2]) * 2**20))
    return gpus


LOOK_SECONDS = 0.5


class GpuWatch:
    """Look at the GPUs' memory twice a second; `peak` is the most that came on top on one of them.

    What PyTorch holds back for later counts, too: it is what other programs cannot have.
    """

    def __init__(self):
        self.before = list_gpus() if torch.cuda.is_available() else []
        self.peak = 0 if self.before else None
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self):
        """Look until `stopped` is set."""
        while not self.stopped.wait(LOOK_SECONDS):
            for before, now in zip(self.before, list_gpus()):
                self.peak = max(self.peak, now.used - before.used)

    def __enter__(self):
        if self.before:
            self.thread.start()
        return self

    def __exit__(self, *error):
        self.stopped.set()
        if self.before:
            self.thread.join()


def free_memory() -> int | None:
    """Say how many bytes of the machine's memory are free, or a container's limit if it is less.

    None where the system does not say it as Linux does.
    """
    try:
        said = Path("/proc/meminfo").read_text()
        free = int(re.search(r"MemAvailable:\s*(\d+) kB", said)[1]) * 1024
    except (OSError, TypeError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdecimal():
        free = min(free, int(limit.read_text()))
    return free


class Shape(NamedTuple):
    """The model that is rehearsed."""

    config: object  # transformers' configuration
    n_parameters: int
    n_checkpoints: int  # that are written: two if one is converted


def find_shape(model: str) -> Shape:
    """Give the shape of a size, or of a config.json or its directory.

    Raises:
        InputError: if it is neither, or not of a kind that can be rehearsed
    """
    if qwen.is_qwen(model):
        config = qwen.find_config(model)
        return Shape(config, original.count_parameters(qwen.list_tensors(config)), 1)
    sizes = (*original.SIZES, *qwen.SIZES)
    if not Path(model).exists() and model not in sizes:
        raise common.InputError(
            f"{model}: neither a size that is known ({', '.join(sizes)}) nor a config.json"
        )
    raw = original.find_config(model)
    config = convert.convert_config(raw, tied=False, dtype=torch.bfloat16)
    return Shape(config, original.count_parameters(original.list_tensors(raw)), 2)


class Needs(NamedTuple):
    """What the steps will need, in bytes; calculated."""

    disk: int
    weights: int  # in memory, as they are loaded
    model: int  # memory of the fullest device while a stage runs
    host: int  # memory of the machine, if the model is on GPUs


def calculate_needs(shape: Shape, args, n_devices: int) -> Needs:
    """Calculate what the steps will need, the model's part as tools.memory does it.

    n_devices: GPUs, or 1 for the CPU
    """
    on_gpu = uses_gpu(args.devices)
    stored = 2 * shape.n_parameters  # bfloat16
    options = SimpleNamespace(
        dtype="bfloat16" if on_gpu else "float32",
        tune="lora",
        lora_rank=LORA_RANK,
        frames=args.frames,
        pairs=len(ROWS),
        question_tokens=40,
        answer_tokens=40,
        videos_per_batch=1,
        videos_per_step=1,
        activation_checkpointing=True,
    )
    devices = [f"device {number}" for number in range(n_devices)]
    rows = memory.plan(shape.config, devices, options)
    fullest = max(max(row.training, row.answering) for row in rows)
    shard = min(stored, original.SHARD_BYTES)
    # Beside the model: the libraries and, on a CPU, the file that is read, which is mapped
    beside = GIB if on_gpu else GIB + shard
    return Needs(
        disk=shape.n_checkpoints * stored + GIB // 2,
        weights=max(row.weights for row in rows),
        model=fullest + beside,
        host=shard + 2 * GIB,
    )


def uses_gpu(devices: str | None) -> bool:
    """Tell whether --devices are GPUs; without it, whether the stages would take one."""
    return devices.startswith("cuda") if devices else torch.cuda.is_available()


def count_devices(devices: str | None) -> int:
    """Count the devices that a model is spread over."""
    if devices:
        return len(devices.split(","))
    return max(1, torch.cuda.device_count())


def check_machine(needs: Needs, base: Path, on_gpu: bool):
    """Print what will be needed and what there is.

    Raises:
        InputError: if the disk or the memory is clearly too small
    """
    place = base
    while not place.exists():
        place = place.parent
    free_disk = shutil.disk_usage(place).free + (count_bytes(base) if base.exists() else 0)
    free_host = free_memory()
    gpus = list_gpus() if on_gpu else []
    # Of the emptiest GPU: which of them are visible to the steps, nvidia-smi does not say
    free_model = max((gpu.total - gpu.used for gpu in gpus), default=None)
    if not on_gpu:
        free_model = free_host

    print(f"disk: {gib(needs.disk)} needed, {gib(free_disk)} free")
    where = "memory of a GPU" if on_gpu else "memory"
    print(f"{where}: {gib(needs.model)} needed (calculated), {gib(free_model)} free")
    if free_disk < needs.disk:
        raise common.InputError(
            f"--output {base}: {gib(needs.disk)} are needed, {gib(free_disk)} are free; name "
            "another disk, or a smaller size"
        )
    smaller = "a smaller size" if on_gpu else "a smaller size, or --devices cuda:0"
    if free_model is not None and free_model < needs.weights:
        raise common.InputError(
            f"the weights alone take {gib(needs.weights)}, and {gib(free_model)} are free; "
            f"try {smaller}"
        )
    if on_gpu and free_host is not None and free_host < needs.host:
        raise common.InputError(
            f"{gib(needs.host)} of the machine's own memory are needed to write the checkpoint, "
            f"{gib(free_host)} are free; try {smaller}"
        )
    if free_model is not None and free_model < needs.model:
        print("that may be too little: a step may be killed, and fewer --frames may help")


# ------------------------------------------------------------------------------
# The command


def gib(n_bytes: int | None) -> str:
    """Write bytes as GiB; "?" if it is not known."""
    return "?" if n_bytes is None else f"{n_bytes / GIB:.1f} GiB"


def describe(took: Measured) -> str:
    """Say what a step took."""
    gpu = "" if took.gpu is None else f", {gib(took.gpu)} of a GPU"
    disk = f", {gib(took.disk)} on disk" if took.disk > GIB // 20 else ""
    seconds = f"{took.seconds:.0f} s ({took.cpu:.0f} s of CPU)"
    return f"{seconds}, at most {gib(took.memory)} of memory{gpu}{disk}"


def print_table(measured: dict[str, Measured]):
    """Print what the steps took, a line each."""
    titles = f"{'step':12}{'seconds':>9}{'of CPU':>8}{'memory':>9}{'GPU':>7}{'disk':>7}"
    print(f"\n{titles}    memory, GPU, disk: GiB")
    for name, took in measured.items():
        gpu = "-" if took.gpu is None else f"{took.gpu / GIB:.1f}"
        line = f"{name:12}{took.seconds:9.0f}{took.cpu:8.0f}{took.memory / GIB:9.1f}"
        print(f"{line}{gpu:>7}{took.disk / GIB:7.2f}")
    seconds = sum(took.seconds for took in measured.values())
    cpu = sum(took.cpu for took in measured.values())
    disk = sum(took.disk for took in measured.values())
    print(f"{'in all':12}{seconds:9.0f}{cpu:8.0f}{'':16}{disk / GIB:7.2f}")


def print_meaning(args, n: int, base: Path):
    """Print what the table means, and what it does not.

    n: number of the model's parameters
    """
    print(
        f"\nThis machine can do it: all steps ended, with {n / 1e9:.2f} billion parameters and "
        f"{args.frames} frames. The weights are random, so the answers mean nothing."
    )
    if args.shortened:
        print("Shortened, since it is a CPU: " + "; ".join(args.shortened) + ".")
    larger = "qwen3-vl-8b" if qwen.is_qwen(args.model) else "internvl2_5-8b"
    eight = find_shape(larger).n_parameters
    if n < eight:
        print(
            f"The 8B model has {eight / n:.1f} times the parameters, and takes about as many times "
            "the seconds where it fits. Its memory: python -m tools.memory "
            f"tests/fixtures/{larger} --tune lora --activation-checkpointing"
        )
    print(f"rm -r {base} frees {gib(count_bytes(base))}")


def parse_args():
    """Parse the command line, and settle what is shortened on a CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument(
        "model",
        metavar="SIZE",
        help=f"{', '.join([*original.SIZES, *qwen.SIZES])}; or a config.json of Qwen-VL, or an "
        "original one of InternVL",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/rehearse"), metavar="DIR", help="where to write"
    )
    parser.add_argument(
        "--devices", help="as in the stages (default: all visible GPUs, else the CPU)"
    )
    parser.add_argument(
        "--frames",
        type=common.at_least(1),
        metavar="N",
        help=f"of a video (default: {common.DEFAULT_FRAMES} on a GPU, {CPU_FRAMES} on a CPU)",
    )
    parser.add_argument(
        "--clip", type=Path, metavar="FILE", help="a video of yours (default: one that is drawn)"
    )
    args = parser.parse_args()
    if args.clip and not args.clip.is_file():
        parser.error(f"--clip {args.clip}: there is no such file")
    args.tokens = None
    args.shortened = []
    if not uses_gpu(args.devices):
        args.tokens = CPU_TOKENS
        args.shortened = [f"replies of {CPU_TOKENS} tokens (by default 512 and 256)"]
        if not args.frames:
            args.shortened.append(f"{CPU_FRAMES} frames (by default {common.DEFAULT_FRAMES})")
    default = common.DEFAULT_FRAMES if uses_gpu(args.devices) else CPU_FRAMES
    args.frames = args.frames or default
    return args


def main():
    """Rehearse all steps, and print what they took."""
    args = parse_args()
    shape = find_shape(args.model)
    if args.model not in (*original.SIZES, *qwen.SIZES):
        args.model = str(Path(args.model).resolve())
    path = Path(args.model)
    name = path.parent.name if path.name == "config.json" else path.name
    # The steps run at the repository's root, whatever directory this one was started in
    output = args.output if Path.cwd() == ROOT else args.output.resolve()
    base = output / name
    needs = calculate_needs(shape, args, count_devices(args.devices))
    check_machine(needs, base, uses_gpu(args.devices))

    write_inputs(base, args.clip)
    clip = hashlib.sha256((base / "videos" / CLIP).read_bytes()).hexdigest()
    measured = run_steps(list_steps(base, args), base / "steps.json", clip)
    print_table(measured)
    print_meaning(args, shape.n_parameters, base)


if __name__ == "__main__":
    common.run(main)
