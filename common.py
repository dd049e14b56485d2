"""What two stages or more use: the record, outputs that go on where they stopped, frames, placement, and the one idea: a video is read once.
Letters in comments: F frames, P prefix tokens (the video), T tokens, B branches (a question with one answer), A answer tokens.
"""

import argparse
import functools
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import filelock
import huggingface_hub
import numpy as np
import safetensors
import torch
import transformers
from tqdm import tqdm
from transformers.conversion_mapping import get_model_conversion_mapping

DEFAULT_FRAMES, FOLDER_FPS = (
    32,
    3.0,
)  # where config.json has no `num_frames`; of a folder of frames, which is a video too (as in MVBench)
IMAGE_SUFFIXES, IMAGE_MEAN, IMAGE_STD = (
    (".jpg", ".jpeg", ".png", ".webp", ".bmp"),
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # ImageNet's, RGB
PLAIN_LORA = set(
    [
        "base_model_name_or_path",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "task_type",
        "inference_mode",
        "auto_mapping",
        "peft_version",
        "peft_type=LORA",
        "bias=none",
        "init_lora_weights=True",
        "init_lora_weights=gaussian",
        "qalora_group_size",
        "megatron_core",
    ]
)  # what adapter_config.json may say
END_OF_TURN = (
    "<|im_end|>"  # of every InternVL chat template; counted as the last token of an answer
)
ANSWER_PROMPT = "{question}\nAnswer from what the video shows, in one short sentence."


class InputError(Exception):
    """Something that a user can mend."""


def run(main):
    """Calls a stage's main. What a user can mend, a full disk among it, or Ctrl-C ends it with one line and exit code 1 or 130."""
    transformers.utils.logging.disable_progress_bar()
    os.environ.setdefault(
        "OPENCV_FFMPEG_LOGLEVEL", "-8"
    )  # what is wrong with a video stands in its rows
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    try:
        main()
    except InputError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except torch.OutOfMemoryError as error:  # its message says what was asked and what was free
        sys.exit(
            f"{error}\nWhat helps: more --devices; in dpo.py --activation-checkpointing; fewer --frames (with --overwrite: that changes what comes out)"
        )
    except (KeyboardInterrupt, OSError, safetensors.SafetensorError) as error:
        fault, command = (
            f": {error}; with this mended" * bool(str(error)),
            shlex.join(part for part in sys.orig_argv[1:] if part != "--overwrite"),
        )
        print(
            f"\nstopped{fault or ';'} the same command goes on: python {command}", file=sys.stderr
        )
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)


# ---------------------------------------------------------------- the record
ERROR_TYPES = (
    "factual_inaccuracy",
    "temporal_ordering",
    "spatial_relationship",
    "object_hallucination",
    "causal_reasoning",
    "detail_omission",
)
RECORD = {  # the only home of the schema: key -> (stage that writes it, type, meaning); a stage adds keys and edits none
    "id": ("generate", str, "<video>/<kind>/<n>, unique"),
    "video": ("generate", str, "path relative to the videos' root, which <output>.meta.json keeps"),
    "kind": ("generate", str, "spatial or temporal"),
    "question": ("generate", str, "written by the model"),
    "initial": ("generate", str, "the first answer"),
    "critique": ("critique", str, "what is wrong with it, free text"),
    "error_types": (
        "critique",
        (list, type(None)),
        "read from the critique: [] for a right answer, null if unreadable",
    ),
    "revised": ("refine", str, "the answer after the critique"),
    "chosen": ("refine", str, "the revised answer, where it makes a pair"),
    "rejected": ("refine", str, "the initial answer, where it makes a pair"),
    "dropped": ("any", str, "why the row makes no pair; later stages pass it over"),
}


def read_json(path, *keys):
    """What stands in a JSON file; of an object the values of `keys`, where any are given. InputError names file and key."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        return [value[key] for key in keys] if keys else value
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise InputError(f"{path}: {error!r}") from error


def read_jsonl(path, require=(), torn=False):
    """Rows of a JSONL file, dicts. require: keys of every row; torn: pass over a last line without its end. InputError names file and line."""
    lines, rows = Path(path).read_bytes().splitlines(keepends=True), {}
    for number, line in enumerate(
        lines[:-1] if torn and lines and not lines[-1].endswith(b"\n") else lines, 1
    ):
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON in UTF-8 ({error})") from error
        if fault := find_fault(row, require) or (
            row.get("id") in rows and f"the id {row['id']!r} stands twice"
        ):
            raise InputError(f"{path}, line {number}: {fault}")
        rows[row.get("id", number)] = row
    return list(rows.values())


def find_fault(
    row, require
):  # what keeps a row from being a record, or None; a dropped row needs only the first two keys, id and video
    if not isinstance(row, dict):
        return f"an object is expected, not {type(row).__name__}"
    faults = [
        f"no key {key!r}, which {RECORD[key][0]}.py writes"
        for key in (require[:2] if "dropped" in row else require)
        if key not in row
    ]
    faults += [
        f"{key!r} has the type {type(row[key]).__name__}"
        for key in RECORD
        if key in row and not isinstance(row[key], RECORD[key][1])
    ]
    return next(
        iter(
            faults
            or [
                f"unknown error type {error!r}"
                for error in row.get("error_types") or ()
                if error not in ERROR_TYPES
            ]
        ),
        None,
    )


def group_by_video(rows):  # -> [(video, its rows), ...] in order of first appearance
    groups = {}
    for row in rows:
        groups.setdefault(row["video"], []).append(row)
    return list(groups.items())


# ---------------------------------------------------------------- the command line and the output
def make_parser(doc, output, input=None, needs_output=True, needs_model=True):
    """The options that all stages share. doc: the stage's docstring, which --help shows; output, input: the files' names."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=needs_model, help="model directory or hub name")
    if input:
        parser.add_argument("--input", required=True, help=input)
        parser.add_argument(
            "--videos",
            help="the videos' root, where it moved (default: what the input's meta.json says)",
        )
    parser.add_argument("--output", type=Path, required=needs_output, help=output)
    parser.add_argument("--overwrite", action="store_true", help="start the output anew")
    parser.add_argument(
        "--devices",
        help="comma-separated, such as cuda:0,cuda:1 (default: all visible GPUs, else cpu)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="default: float32 on a CPU, bfloat16 on CUDA",
    )
    parser.add_argument(
        "--frames",
        type=int,
        help=f"frames a video (default: what the checkpoint says, else {DEFAULT_FRAMES})",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="only N videos")
    parser.add_argument(
        "--max-bad",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="stop when more than this share of the videos is unreadable (1.0: never)",
    )
    parser.add_argument(
        "--shard",
        default="0/1",
        help="i/n: every n-th video from the i-th on, i < n; afterwards cat the outputs",
    )
    return parser


def take_shard(videos, shard):  # of shard 'i/n' the videos i, i + n, i + 2n, ...
    if not (match := re.fullmatch(r"(\d+)/(\d+)", shard)) or int(match[1]) >= int(match[2]):
        raise InputError(f"--shard {shard}: expected i/n with i < n, such as 0/4")
    return videos[int(match[1]) :: int(match[2])]


def make_meta(args, prompts, root, inputs):
    """What <output>.meta.json keeps. `content` decides whether an output may be gone on with; the rest is for readers. InputError for odd arguments."""
    if low := [
        key
        for key, value in vars(args).items()
        if type(value) is int and value < (key not in ("seed", "spatial", "temporal"))
    ]:
        raise InputError(f"--{low[0].replace('_', '-')} {vars(args)[low[0]]} is too low")
    models = dict.fromkeys(
        map(Path, (args.model, read_adapter(args.model)[0]))
    )  # an adapter, and its base
    if args.output.resolve() in [
        Path(part).resolve()
        for part in (*models, *([args.input] if isinstance(args.input, str) else args.input))
    ]:
        raise InputError(f"--output {args.output} is what is read, too; name another")
    where_not_what = (
        "devices",
        "output",
        "overwrite",
        "input",
        "model",
        "videos",
        "ask",
        "max_bad",
        "save_every",
        "activation_checkpointing",
    )
    content = {key: value for key, value in vars(args).items() if key not in where_not_what}
    content |= {
        "model": fingerprint(*models),
        "prompts": fingerprint(*prompts),
        "inputs": fingerprint(*inputs),
    }
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    versions = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "opencv": cv2.__version__,
    }
    return {
        "stage": Path(sys.argv[0]).name,
        "arguments": json.loads(json.dumps(vars(args), default=str)),
        "content": content,
        "root": str(root),
        "commit": git.stdout.strip() or None,
        "versions": versions,
        "process": os.getpid(),
        "finished": None,
    }


def fingerprint(
    *parts,
):  # 16 hex digits of SHA-256 over texts and over the files of directories (64 KiB in every MiB of each), in order
    digest = hashlib.sha256()
    for part in parts:
        files = (
            [
                file
                for file in sorted(part.glob("*"))
                if file.suffix in (".json", ".jinja", ".safetensors")
            ]
            if isinstance(part, Path)
            else []
        )
        digest.update((" ".join(file.name for file in files) or f"{part}\0").encode())
        digest.update(
            b"".join(
                np.memmap(file, mode="r")[first : first + 2**16].tobytes()
                for file in files
                for first in range(0, file.stat().st_size, 2**20)
            )
        )
    return digest.hexdigest()[:16]


def meta_path(output):
    return Path(f"{output}.meta.json")


def write_json(path, value):  # whole or not at all: written beside and renamed
    Path(f"{path}.part").write_text(
        json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    os.replace(f"{path}.part", path)


def begin(output, meta, overwrite):
    """Locks an output and writes its meta.json -> the lock, or None: it is finished. InputError if locked, or begun with other arguments."""
    path, lock = (
        meta_path(output),
        filelock.FileLock(output.parent / f".{output.name}.lock", timeout=0, is_singleton=True),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InputError(
            f"{output} is being written by process {read_json(path, 'process')[0]}"
        ) from None
    if output.exists() and not path.exists():
        raise InputError(
            f"{output} is there without {path.name}, so no stage wrote it: it is left as it is; name another --output, or remove it"
        )
    if overwrite:
        shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
    elif output.exists():
        before, finished = read_json(path, "content", "finished")
        if other := [key for key, value in meta["content"].items() if before.get(key) != value]:
            raise InputError(
                f"{output} was begun with {other[0]} = {before.get(other[0])}, now it is {meta['content'][other[0]]}; --overwrite starts anew"
            )
        if finished:
            return print(f"{output} is finished; nothing to do")
    write_json(path, meta)
    return lock


class Output:
    """A JSONL output, one write a video; an unfinished one is gone on with. groups: all that it will hold; left: what it does not hold yet."""

    def __init__(self, path, args, meta, groups):
        self.path, self.meta, self.rows, self.most_bad = path, meta, [], args.max_bad * len(groups)
        self.begun, self.lock = time.time(), begin(path, meta, args.overwrite)
        self.finished = self.lock is None
        if self.path.exists() and not self.finished:
            rows, ids = (
                read_jsonl(self.path, ("id", "video"), torn=True),
                [row["id"] for _, rows in groups for row in rows],
            )
            if other := [
                number
                for number, row in enumerate(rows)
                if row["id"] not in ids[number : number + 1]
            ]:
                raise InputError(
                    f"{self.path}, line {other[0] + 1}: not the row that stood here; mend it, or --overwrite starts anew"
                )
            self.rows = [
                row for row in rows if row["video"] != rows[-1]["video"]
            ]  # the last one may lack rows: it is done again
            os.truncate(
                self.path,
                sum(map(len, self.path.read_bytes().splitlines(keepends=True)[: len(self.rows)])),
            )
            print(
                f"going on with {self.path}: {len(group_by_video(self.rows))} whole videos are there; what stood behind them is done again"
            )
        self.left = groups[len(group_by_video(self.rows)) :]

    def write(
        self, rows
    ):  # appends all rows of one video; InputError where by now too many videos are unreadable
        with self.path.open("ab") as file:
            file.write(
                b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
            )
        self.rows += rows
        if (
            any("error" in row for row in rows)
            and (n_bad := len({row["video"] for row in self.rows if "error" in row}))
            > self.most_bad
        ):
            raise InputError(
                f"{n_bad} videos are unreadable, more than --max-bad allows; what is wrong stands in {self.path} under `error`"
            )

    def finish(
        self, kept
    ):  # notes it in meta.json and accounts for all rows: 'rows in 12 = 7 pairs + 5 dropped (unchanged 5)'
        self.path.touch()
        drops = Counter(row["dropped"] for row in self.rows if "dropped" in row)
        account = f"rows in {len(self.rows)} = {len(self.rows) - drops.total()} {kept} + {drops.total()} dropped"
        account += (
            f" ({', '.join(f'{reason} {n}' for reason, n in drops.most_common())})" if drops else ""
        )
        write_json(
            meta_path(self.path),
            self.meta
            | {"finished": {"account": account, "seconds": round(time.time() - self.begun, 1)}},
        )
        print(f"{self.path}: {account}")


# ---------------------------------------------------------------- videos
def read_input(
    args, require
):  # the rows that a stage works on, after --shard and --limit -> (root of their videos, [(video, rows), ...])
    path, groups = (
        meta_path(args.input),
        take_shard(group_by_video(read_jsonl(args.input, require)), args.shard)[: args.limit],
    )
    root, stage, finished = (
        read_json(path, "root", "stage", "finished") if path.exists() else (args.videos, None, True)
    )
    if not root:
        raise InputError(
            f"{args.input} has no meta.json beside it that says where its videos are; say it with --videos DIR"
        )
    if not finished:
        raise InputError(
            f"{args.input} is unfinished; the command that began it goes on with it: {stage}"
        )
    return Path(args.videos or root), groups


def frame_indices(total, fps, n, start=None, end=None, first=0):
    """N frame numbers, from `first` on: the middles of n equal parts of [start, end] (seconds; None: all), rounded as InternVL and lmms-eval do, clamped."""
    last = first + total - 1
    begin = max(first, round(start * fps)) if start is not None else first
    part = ((min(round(end * fps), last) if end is not None else last) - begin) / n
    return [min(max(int(begin + part / 2 + round(part * i)), first), last) for i in range(n)]


def read_video(path, choose):
    """The frames that choose(how many, fps) names -> (their numbers, {number: image, BGR}). In order, for seeking is inexact; if need be twice."""
    count = int(cv2.VideoCapture(str(path), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT))
    for _ in range(2):
        capture, total, count, frames = (
            cv2.VideoCapture(str(path), cv2.CAP_FFMPEG),
            max(count, 1),
            0,
            {},
        )
        wanted = choose(total, capture.get(cv2.CAP_PROP_FPS))
        while capture.grab():
            if count in wanted:
                frames[count] = capture.retrieve()[1]
            count += 1
        if count == total:
            return wanted, frames
    raise OSError(
        f"{path}: "
        + (
            "no such video"
            if not path.exists()
            else f"decodes to {count}, then {total} frames"
            if count
            else "no frame can be decoded"
        )
    )


def sample_frames(path, n, start=None, end=None, fps=None):
    """N frames from start to end (seconds, by fps or the video's own) of a file or a folder of images -> uint8 (n, height, width, 3), RGB, or OSError."""
    path, numbers = (
        Path(path),
        lambda file: [
            int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)
        ],
    )
    if path.is_dir() and (
        images := sorted(
            (file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES), key=numbers
        )
    ):
        wanted = frame_indices(len(images), fps or FOLDER_FPS, n, start, end, first=1)
        frames = {index: cv2.imread(str(images[index - 1])) for index in set(wanted)}
    else:
        wanted, frames = read_video(
            path, lambda total, own_fps: frame_indices(total, fps or own_fps, n, start, end)
        )
    try:
        return np.stack([cv2.cvtColor(frames[index], cv2.COLOR_BGR2RGB) for index in wanted])
    except (cv2.error, ValueError) as error:  # a frame that is None, or of another size
        raise OSError(f"{path}: {str(error).splitlines()[0]}") from error


def pixel_values(
    frames, size
):  # uint8 (F, H, W, 3) -> float32 (F, 3, size, size): bicubic with antialiasing, ImageNet mean and standard deviation
    images = torch.nn.functional.interpolate(
        torch.from_numpy(frames).permute(0, 3, 1, 2), (size, size), mode="bicubic", antialias=True
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (images.float() / 255 - mean) / std


# ---------------------------------------------------------------- models and their placement
def load(args):  # -> (model, tokenizer) as the common options say
    return load_model(
        args.model,
        args.devices and args.devices.split(","),
        args.dtype and getattr(torch, args.dtype),
    ), load_tokenizer(args.model)


def load_tokenizer(path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    if (
        tokenizer.chat_template is None
        or len(tokenizer.encode(END_OF_TURN, add_special_tokens=False)) != 1
    ):
        raise InputError(
            f"{path}: the tokenizer needs a chat template and {END_OF_TURN} as one token"
        )
    return tokenizer


def split_layers(n_layers, n_devices, first_weight=1.0):
    """Device number of each decoder layer, contiguous, as even as can be: split_layers(5, 2) == [0, 0, 0, 1, 1]; first_weight: the first one's share."""
    return [
        int(max(0, layer * (first_weight + n_devices - 1) / n_layers + 1 - first_weight))
        for layer in range(n_layers)
    ]


def plan_placement(
    config, devices
):  # -> a function: a tensor's name -> its device; video and embeddings on the first, norm and head on the last
    layers = [
        devices[number]
        for number in split_layers(config.text_config.num_hidden_layers, len(devices))
    ]
    return lambda name: (
        layers[int(layer[1])]
        if (layer := re.match(r"model\.language_model\.layers\.(\d+)", name))
        else devices[-1 if name.startswith(("model.language_model.norm", "lm_head")) else 0]
    )


def read_adapter(
    path,
):  # a checkpoint, or a LoRA adapter as PEFT writes it -> (the checkpoint below, rank or 0, alpha)
    if not (file := Path(path) / "adapter_config.json").exists():
        return path, 0, 0
    if more := [
        key
        for key, value in read_json(file).items()
        if value and not {key, f"{key}={value}"} & PLAIN_LORA
    ]:
        raise InputError(f"{file}: {more[0]} is more than plain LoRA, which is all that is read")
    return read_json(file, "base_model_name_or_path", "r", "lora_alpha")


def add_lora(layers, rank, alpha):
    """LoRA (arXiv 2106.09685) on all linear weights: y = W x + alpha / rank * B A x, with A (rank, in) and B (out, rank; 0 at first) held in float32."""

    def hook(linear, inputs, output):
        return output + alpha / rank * (
            inputs[0] @ linear.lora_A.weight.T.to(output.dtype)
        ) @ linear.lora_B.weight.T.to(output.dtype)

    for linear in [module for module in layers.modules() if isinstance(module, torch.nn.Linear)]:
        factor = functools.partial(
            torch.nn.Linear, bias=False, device=linear.weight.device, dtype=torch.float32
        )
        linear.lora_A, linear.lora_B = (
            factor(linear.in_features, rank),
            factor(rank, linear.out_features),
        )
        torch.nn.init.zeros_(linear.lora_B.weight)
        linear.register_forward_hook(hook)


def load_model(path, devices=None, dtype=None):
    """A checkpoint, a LoRA adapter (which stays unmerged: tools.merge says why) or a hub name -> the transformers model, in eval mode. Built on meta,
    then each tensor is read straight to its device, over which the layers are spread: ["cuda:0", "cuda:1"], for one. Defaults: those of --help.
    """
    devices = [
        *map(str, devices or (f"cuda:{number}" for number in range(torch.cuda.device_count())))
    ] or ["cpu"]
    dtype = dtype or (torch.float32 if devices[0].startswith("cpu") else torch.bfloat16)
    base, rank, alpha = read_adapter(path)
    if not (directory := Path(base)).is_dir():
        try:
            directory = Path(
                huggingface_hub.snapshot_download(
                    str(base), allow_patterns=["*.safetensors", "*.json", "*.jinja", "tokenizer*"]
                )
            )
        except Exception as error:  # of many kinds; all mean that there is nothing to load
            raise InputError(
                f"{base}{f', which {path} names as its base' * bool(rank)}: neither a directory nor to be had from the hub ({type(error).__name__})"
            ) from error
    files = sorted(directory.glob("*.safetensors")) + sorted(
        Path(path).glob("adapter_model.safetensors")
    )
    if (kind := read_json(directory / "config.json", "model_type")[0]) != "internvl":
        raise InputError(
            f"{base}: unknown class {kind}, not internvl"
            + f"; convert it: python -m tools.convert {base} DST" * (kind == "internvl_chat")
        )
    config = transformers.AutoConfig.from_pretrained(directory)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation={"": "sdpa", "text_config": "shared_prefix"}
        )
    if rank:
        add_lora(model.model.language_model.layers, rank, alpha)
    place, renamings = plan_placement(config, devices), get_model_conversion_mapping(model)
    for file, device in [(file, device) for file in files for device in dict.fromkeys(devices)]:
        try:
            with safetensors.safe_open(file, framework="pt", device=device) as tensors:
                names = {
                    key: transformers.core_model_loading.rename_source_key(
                        key.removeprefix("base_model.model."), renamings, []
                    )[0]
                    for key in tensors.keys()
                }
                if odd := [
                    key
                    for key in names
                    if tensors.get_slice(key).get_dtype() not in ("F32", "BF16", "F16")
                ]:
                    raise RuntimeError(
                        f"{odd[0]} has the type {tensors.get_slice(odd[0]).get_dtype()}; weights are read in float32, bfloat16 and float16, not quantized"
                    )
                chunk = {
                    name: tensors.get_tensor(key).to(torch.float32 if ".lora_" in name else dtype)
                    for key, name in names.items()
                    if place(name) == device
                }
            if unknown := model.load_state_dict(chunk, strict=False, assign=True).unexpected_keys:
                raise RuntimeError(f"{config.model_type} has no tensor {unknown[0]!r}")
        except (
            RuntimeError,
            AssertionError,
            safetensors.SafetensorError,
        ) as error:  # cut off, of another shape, a device that is not there
            raise (
                error
                if isinstance(error, torch.OutOfMemoryError)
                else InputError(f"{file}: {error} (device {device})")
            ) from error
    if model.lm_head.weight.is_meta and config.text_config.tie_word_embeddings:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    model.model.language_model.rotary_emb = type(model.model.language_model.rotary_emb)(
        config.text_config
    ).to(devices[0])  # its buffers are in no file
    if missing := [
        name
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if tensor.is_meta
    ]:
        raise InputError(
            f"{path}: there are no weights for {missing[0]}; "
            + (
                "tools.merge merges such adapters"
                if rank
                else f"*.safetensors files, which alone are read: {len(files)}"
            )
        )
    if len(set(devices)) > 1:
        move_activations(model)
        for device in dict.fromkeys(
            place(name) for name, _ in model.named_parameters()
        ):  # with few layers some hold nothing
            part = [
                (name, weight) for name, weight in model.named_parameters() if place(name) == device
            ]
            print(
                f"{device}: {part[0][0]} to {part[-1][0]}, {sum(weight.nbytes for _, weight in part) / 2**30:.2f} GiB"
            )
    return model.eval()


def move_activations(
    model,
):  # hooks bring each layer's inputs to its device; a cache stays, since every layer's part of it is there already
    copy, move = (
        functools.lru_cache(64)(torch.Tensor.to),
        functools.partial(torch.utils._pytree.tree_map_only, torch.Tensor),
    )

    def hook(
        module, args, kwargs
    ):  # mask and positions are copied once a device, for each copy makes the two devices wait for each other
        device = next(module.parameters()).device
        return move(lambda value: value.to(device), args), move(
            lambda value: copy(value, device), kwargs
        )

    for module in [
        *model.model.language_model.layers,
        model.model.language_model.norm,
        model.lm_head,
    ]:
        module.register_forward_pre_hook(hook, with_kwargs=True)


# ---------------------------------------------------------------- a video is read once
def chat_parts(
    tokenizer,
):  # the chat template, cut at the user's words -> (text before them, text between them and the answer)
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": "WORDS"}], tokenize=False, add_generation_prompt=True
    ).split("WORDS")


def encode_prefix(
    tokenizer, config, n_frames
):  # token ids of everything up to the end of the video: what all questions about it share
    image = f"<img>{tokenizer.convert_ids_to_tokens(config.image_token_id) * config.image_seq_length}</img>"
    return tokenizer.encode(
        chat_parts(tokenizer)[0] + "".join(f"Frame{n + 1}: {image}\n" for n in range(n_frames)),
        add_special_tokens=False,
    )


def encode_branch(
    tokenizer, prompt, answer=""
):  # token ids behind the video: (a user's words and the change of turn, the answer and its end of turn)
    return tuple(
        tokenizer.encode(text, add_special_tokens=False)
        for text in (prompt + chat_parts(tokenizer)[1], answer + END_OF_TURN)
    )


class Video:
    """Frames, uint8 (F, H, W, 3), as the model has read them: tower and projector run once, whatever is asked about the video afterwards."""

    @torch.no_grad()
    def __init__(self, model, tokenizer, frames):
        pixels = pixel_values(frames, model.config.vision_config.image_size[0]).to(
            model.device, model.dtype
        )
        self.ids = torch.tensor(
            [encode_prefix(tokenizer, model.config, len(frames))], device=model.device
        )  # (1, P), a placeholder for each visual token
        self.inputs = {
            "mm_encoder_outputs": {"image": model.get_image_features(pixel_values=pixels)}
        }  # (F, tokens a frame, hidden), in place of pixels
        self.cache = None  # keys and values of the P tokens, once prefilled


def watch_each(model, tokenizer, groups, root, args, desc=None):
    """Yields (rows, Video) of each group and segment (start, end); a thread decodes the next. Video is None where all rows are, or get, dropped."""
    shown = lambda row: (
        args.frames or getattr(model.config, "num_frames", None) or DEFAULT_FRAMES,
        row.get("start"),
        row.get("end"),
    )
    groups = [
        (name, list(part)) for name, rows in groups for _, part in itertools.groupby(rows, shown)
    ]  # rows side by side
    with ThreadPoolExecutor(1) as reader:
        read = lambda name, rows: (
            None
            if all("dropped" in row for row in rows)
            else reader.submit(sample_frames, Path(root) / name, *shown(rows[0]))
        )
        ahead = itertools.pairwise(
            itertools.chain(itertools.starmap(read, groups), [None])
        )  # (this one's frames, the next one's)
        for (_, rows), (frames, _) in zip(
            tqdm(groups, desc, unit="video", disable=len(groups) < 2), ahead
        ):
            try:
                yield rows, Video(model, tokenizer, frames.result()) if frames else None
            except OSError as error:
                for row in (row for row in rows if "dropped" not in row):
                    row |= {"dropped": "unreadable_video", "error": str(error)}
                yield rows, None


@torch.no_grad()
def decode(model, tokenizer, video, prompts, max_new_tokens, noise=None):
    """Answers to several prompts about one video, decoded as one batch behind its one cache -> [(text, whole), ...].
    whole: False where an answer ran into max_new_tokens; noise: a logits processor that makes the argmax a sample; None is greedy.
    """
    assert model.config.text_config._attn_implementation == "shared_prefix", (
        "the model is not load_model's: other attention would not see the video"
    )
    video.cache = (
        video.cache
        or model(video.ids, **video.inputs, use_cache=True, logits_to_keep=1).past_key_values
    )
    cache = transformers.DynamicCache()
    cache.layers = [SharedLayer(layer.keys, layer.values) for layer in video.cache.layers]
    rows, [[end], *_] = zip(*(encode_branch(tokenizer, prompt) for prompt in prompts))
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row, device=model.device) for row in rows],
        batch_first=True,
        padding_value=-1,
        padding_side="left",
    )
    mask = torch.nn.functional.pad(ids >= 0, (video.ids.shape[1], 0), value=True).long()
    out = model.generate(
        input_ids=ids.where(ids >= 0, end),
        attention_mask=mask,
        past_key_values=cache,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
        logits_processor=transformers.LogitsProcessorList([noise] if noise else []),
    )
    return [
        (
            tokenizer.decode(
                row[: row.index(end)] if end in row else row, skip_special_tokens=True
            ).strip(),
            end in row,
        )
        for row in out[:, ids.shape[1] :].tolist()
    ]


def pack(prefix_length, branches):
    """Lays branches, [(prompt ids, answer ids), ...], behind a video of P tokens; positions restart behind it.
        [video | branch 1 | branch 2 | ...]     mask[i, j] = (j <= i) and (branch[j] == VIDEO or branch[j] == branch[i])
    Returns ids of the branches (T - P,), positions (T,), the branches' rows of the mask (T - P, T; the video's own are plain causal), and of
    all answer tokens the index (A,) and the branch (A,).
    """
    spans = [
        (0, prefix_length),
        *((len(prompt), len(prompt) + len(answer)) for prompt, answer in branches),
    ]
    branch = torch.cat(
        [torch.full((length,), number - 1) for number, (_, length) in enumerate(spans)]
    )  # -1: the video
    positions = torch.cat(
        [
            torch.arange(length) + prefix_length * (number > 0)
            for number, (_, length) in enumerate(spans)
        ]
    )
    answers = torch.cat([torch.arange(length) >= prompt for prompt, length in spans]) & (
        branch >= 0
    )
    mask = ((branch[None] == -1) | (branch[None] == branch[prefix_length:, None])).tril(
        prefix_length
    )
    return (
        torch.tensor([id for prompt, answer in branches for id in prompt + answer]),
        positions,
        mask,
        answers.nonzero()[:, 0],
        branch[answers],
    )


class SharedLayer(transformers.cache_utils.DynamicLayer):
    """A layer's cache behind a video: the video's keys and values are held once (1, heads, P, head size), what stands behind it by row."""

    def __init__(self, *video):
        super().__init__()
        self.video = video

    def update(self, *args, **kwargs):
        keys, values = super().update(*args, **kwargs)
        keys.video = self.video  # for shared_prefix_attention
        return keys, values

    def get_seq_length(self):
        return self.video[0].shape[2] + super().get_seq_length()


def shared_prefix_attention(module, query, key, value, attention_mask, **kwargs):
    """Transformers' sdpa attention, but for a video that is held once: behind a SharedLayer, B rows see it and what each has behind it; where
    the mask has fewer rows than there are queries, it is that of `pack`, and what stands before is the video.
    """
    sdpa = transformers.AttentionInterface()["sdpa"]
    if hasattr(key, "video"):
        (keys, values), n_own = (
            (part[0] for part in key.video),
            key.shape[2],
        )  # keys (kv heads, P, head size)
        query = query.unflatten(1, (key.shape[1], -1)).transpose(
            0, 1
        )  # (kv heads, B, queries a kv head, tokens, head size)
        own = query @ key.transpose(0, 1)[:, :, None].mT
        causal = torch.ones(own.shape[-2:], dtype=torch.bool, device=own.device).tril(
            n_own - own.shape[-2]
        )
        own = own.masked_fill(
            ~(
                causal
                if attention_mask is None
                else attention_mask[..., -n_own:].transpose(0, 1)[:, :, None]
            ),
            float("-inf"),
        )
        scores = (
            torch.cat([(query.flatten(1, 3) @ keys.mT).view(*own.shape[:4], -1), own], -1)
            * kwargs["scaling"]
        )
        to_video, to_own = (
            scores.softmax(-1, dtype=torch.float32)
            .to(value.dtype)
            .split([keys.shape[1], n_own], -1)
        )
        seen = (to_video.flatten(1, 3) @ values).view(query.shape) + to_own @ value.transpose(0, 1)[
            :, :, None
        ]
        return seen.transpose(0, 1).flatten(1, 2).transpose(
            1, 2
        ), None  # (B, tokens, heads, head size)
    if attention_mask is None or not (video := query.shape[2] - attention_mask.shape[2]):
        return sdpa(module, query, key, value, attention_mask, **kwargs)
    before, behind = query.tensor_split([video], 2)
    causal, _ = sdpa(module, before, key[:, :, :video], value[:, :, :video], None, **kwargs)
    return torch.cat(
        [causal, sdpa(module, behind, key, value, attention_mask, **kwargs)[0]], 1
    ), None  # (1, T, heads, head size)


transformers.AttentionInterface.register(
    "shared_prefix", shared_prefix_attention
)  # load_model asks for it by this name
transformers.AttentionMaskInterface.register("shared_prefix", transformers.masking_utils.sdpa_mask)


def branch_logps(model, video, branches):
    """Log-probs of B answers in one forward pass, as of separate sequences (tests/test_prefix.py) -> (sums over tokens (B,), their numbers (B,))."""
    ids, positions, mask, targets, branch = (
        part.to(model.device) for part in pack(video.ids.shape[1], branches)
    )
    ids, last = torch.cat([video.ids[0], ids])[None], model.lm_head.weight.device
    logits = (
        model(
            ids,
            **video.inputs,
            position_ids=positions[None],
            attention_mask=mask[None, None].to(model.dtype).log(),
            use_cache=False,  # 0 or -inf
            logits_to_keep=(targets - 1).to(last),
        )
        .logits[0]
        .float()
    )  # the token before predicts it; the head runs on these alone
    logps = logits.log_softmax(-1).gather(1, ids[0, targets, None].to(last))[:, 0]
    return logps.new_zeros(len(branches)).index_add(0, branch.to(last), logps), torch.bincount(
        branch, minlength=len(branches)
    ).to(last)
