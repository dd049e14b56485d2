"""The forms that tools.export writes: one function for each target.

Each takes the pairs, whose frames are written already, writes the target's files, and returns the
text that says how to train on them. What is known of the targets was read in their code (TRL 1.16,
ms-swift 4, LLaMA-Factory 0.9.5, datasets 4.8); tools.peers runs it.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import common
import vlm
from tools import page_frames
from vlm import chat


class Source(NamedTuple):
    """Where pairs are from, and how their model saw the videos."""

    path: Path
    rows: list[dict]  # all, those that are dropped included
    shown: page_frames.Shown
    tokenizer: object
    n_prefix: int  # tokens of a video, P
    answer: str  # the prompt that questions were answered behind


class Pair(NamedTuple):
    """A pair as targets need it."""

    row: dict
    text: str  # the user's words behind the video
    frames: list[str]  # files, relative to the directory that is written


class Target(NamedTuple):
    """A target of tools.export."""

    write: Callable  # (source, pairs, directory to write into, its name afterwards) -> text
    marks: tuple | None  # what it replaces in a text; None: it takes any text


# ------------------------------------------------------------------------------
# TRL


TRL_HOW = """\
import datasets, transformers, trl

processor = transformers.AutoProcessor.from_pretrained({model!r})
processor.chat_template = open({template!r}).read()
trainer = trl.DPOTrainer(
    model={model!r},
    args=trl.DPOConfig(max_length=None),  # else the end of a sequence is cut off
    train_dataset=datasets.load_dataset("imagefolder", data_dir={output!r}, split="train"),
    processing_class=processor,
)
trainer.train()"""


def to_trl(source: Source, pairs: list[Pair], directory: Path, output: Path) -> str:
    """Write an image folder for DPOTrainer, to which a video is images with text between them.

    A frame is one tile of its processor, since it has the size of a tile.
    """
    rows = []
    for pair in pairs:
        content = []
        for number in range(1, len(pair.frames) + 1):
            content += [say(f"Frame{number}: "), {"type": "image"}, say("\n")]
        content.append(say(pair.text))
        rows.append(
            {
                "images_file_names": pair.frames,  # becomes the column `images`
                "id": pair.row["id"],
                "prompt": [{"role": "user", "content": content}],
                "chosen": [{"role": "assistant", "content": [say(pair.row["chosen"])]}],
                "rejected": [{"role": "assistant", "content": [say(pair.row["rejected"])]}],
            }
        )
    common.write_jsonl(directory / "metadata.jsonl", rows)
    common.replace(directory / "chat_template.jinja", make_template(source.tokenizer))
    template = str(output / "chat_template.jinja")
    return TRL_HOW.format(model=source.shown.model, template=template, output=str(output))


def say(text: str) -> dict:
    """Make a text a part of a turn."""
    return {"type": "text", "text": text}


def make_template(tokenizer) -> str:
    """Make a chat template for turns in parts, with the text of the model's own around them.

    An answer ends with END_OF_TURN, as in dpo.py, without the line end of most templates.
    """
    before, after = map(json.dumps, chat.chat_parts(tokenizer))
    return (
        "{% for message in messages %}"
        "{{ " + before + " if message.role == 'user' else " + after + " }}"
        "{% for part in message.content %}"
        "{{ '<IMG_CONTEXT>' if part.type == 'image' else part.text }}"
        "{% endfor %}"
        "{% if message.role == 'assistant' %}{{ '" + vlm.END_OF_TURN + "' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ " + after + " }}{% endif %}"
    )


# ------------------------------------------------------------------------------
# ms-swift


SWIFT_HOW = """\
swift rlhf --rlhf_type dpo --model {model} --template internvl_hf --system {system} \\
    --dataset {output}/pairs.jsonl --max_length {length} --strict true \\
    --freeze_vit true --freeze_aligner true"""


def to_swift(source: Source, pairs: list[Pair], directory: Path, output: Path) -> str:
    """Write rows for ms-swift's rlhf, in which <video> stands where the frames are to be.

    A longer sample than max_length would be dropped. Paths are absolute: relative ones are
    relative to where it is started.
    """
    rows = []
    for pair in pairs:
        frames = [str((output / file).resolve()) for file in pair.frames]
        user = {"role": "user", "content": f"<video>{pair.text}"}
        assistant = {"role": "assistant", "content": pair.row["chosen"]}
        rows.append(
            {
                "messages": [user, assistant],
                "rejected_response": pair.row["rejected"],
                "videos": [frames],
            }
        )
    common.write_jsonl(directory / "pairs.jsonl", rows)
    return SWIFT_HOW.format(
        model=quote(source.shown.model),
        system=quote(read_system(source)),
        output=quote(str(output)),
        length=count_longest(source, pairs),
    )


def read_system(source: Source) -> str:
    """Read the system message that the model's chat template begins with; "" for none.

    Raises:
        InputError: if the text in front of the user's words is not that of the targets' templates
    """
    before, after = chat.chat_parts(source.tokenizer)
    system = re.fullmatch(
        r"(?:<\|im_start\|>system\n(.*)<\|im_end\|>\n)?<\|im_start\|>user\n", before, re.DOTALL
    )
    if not system or after != "<|im_end|>\n<|im_start|>assistant\n":
        raise common.InputError(
            f"{source.shown.model}: its chat template is not ChatML, which the target has a "
            "template of; --to trl takes any"
        )
    return system[1] or ""


def read_side(source: Source) -> int:
    """Read how many pixels a side the frames have."""
    return source.shown.config.vision_config.image_size[0]


def count_longest(source: Source, pairs: list[Pair]) -> int:
    """Count the tokens of the longest sequence, rounded up: what a target must not cut."""
    longest = 0
    for pair in pairs:
        for side in ("chosen", "rejected"):
            branch = vlm.encode_branch(source.tokenizer, pair.text, pair.row[side])
            longest = max(longest, len(branch.prompt) + len(branch.answer))
    return 256 * math.ceil((source.n_prefix + longest + 1) / 256)  # 1: a line end behind it


# ------------------------------------------------------------------------------
# LLaMA-Factory


FACTORY_HOW = """\
llamafactory-cli train --stage dpo --do_train true --model_name_or_path {model} \\
    --template intern_vl --default_system {system} \\
    --dataset_dir {output} --media_dir {output} --dataset videosavi \\
    --cutoff_len {length} --video_max_pixels {pixels} \\
    --finetuning_type full --freeze_vision_tower true --freeze_multi_modal_projector true \\
    --output_dir {output}-trained"""


def to_llama_factory(source: Source, pairs: list[Pair], directory: Path, output: Path) -> str:
    """Write sharegpt rows with ranking, and dataset_info.json, which describes their columns.

    Its template puts no line end behind the last frame, so the text does. Longer sequences than
    cutoff_len would be cut off, larger frames than video_max_pixels be shrunk.
    """
    rows = []
    for pair in pairs:
        rows.append(
            {
                "conversations": [{"from": "human", "value": f"<video>\n{pair.text}"}],
                "chosen": {"from": "gpt", "value": pair.row["chosen"]},
                "rejected": {"from": "gpt", "value": pair.row["rejected"]},
                "videos": [pair.frames],
            }
        )
    columns = {"messages": "conversations"}
    columns |= {name: name for name in ("chosen", "rejected", "videos")}
    info = {"file_name": "pairs.json", "formatting": "sharegpt", "ranking": True}
    common.write_json(directory / "pairs.json", rows)
    common.write_json(directory / "dataset_info.json", {"videosavi": info | {"columns": columns}})
    return FACTORY_HOW.format(
        model=quote(source.shown.model),
        system=quote(read_system(source)),
        output=quote(str(output)),
        length=count_longest(source, pairs),
        pixels=read_side(source) ** 2,
    )


# ------------------------------------------------------------------------------
# The Hub


HUB_HOW = """\
First fill in `license` in {output}/README.md: the videos' own decides. Then

    hf upload you/name {quoted} --repo-type dataset

or, for more than 100,000 files, as Parquet with the frames inside:

    python -c {code}"""

CARD = """\
---
pretty_name: VideoSAVi pairs
license: other
license_name: to be filled in
language: [en]
task_categories: [video-text-to-text]
size_categories: [{size}]
tags: [dpo, preference, video, self-alignment]
configs:
- config_name: default
  drop_labels: true
  data_files:
  - split: train
    path: ["metadata.jsonl", "frames/**"]
---

# VideoSAVi pairs

{n_pairs} preference pairs about {n_videos} videos, which a model made without labels by the loop of
VideoSAVi ([arXiv 2412.00624](https://arxiv.org/abs/2412.00624)): it asked a question, answered it
(`rejected`), criticised its answer against the video, and revised it (`chosen`).

| | |
|---|---|
| model | `{model}` |
| frames of a video | {n_frames}, of {pixels} x {pixels} pixels, in the order of time |
| rows that made no pair | {dropped} |
| questions by kind | {kinds} |
| pairs by error type | {errors} |

A row has `images` (the frames), `question`, `chosen` and `rejected`; `prompt`, the question with
the words that it was asked with; `critique` and the `error_types` that it names; `id`, `video` and
`kind`. Nobody has checked the pairs: chosen is what the model prefers, not what is true.
"""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (math.inf, "100K<n<1M"))
RECORD_KEYS = ("id", "video", "start", "end", "kind", "question", "chosen", "rejected")


def to_hub(source: Source, pairs: list[Pair], directory: Path, output: Path) -> str:
    """Write an image folder with the record's keys, and the data set's card.

    (V, q, rejected, chosen) is what the paper promises of its own data.
    """
    rows = []
    for pair in pairs:
        row = {"images_file_names": pair.frames}  # becomes the column `images`
        row |= {key: pair.row[key] for key in RECORD_KEYS if pair.row.get(key) is not None}
        row["prompt"] = pair.text
        row["critique"] = pair.row.get("critique") or ""
        row["error_types"] = pair.row.get("error_types") or []
        rows.append(row)
    common.write_jsonl(directory / "metadata.jsonl", rows)

    dropped = Counter(row["dropped"] for row in source.rows if "dropped" in row)
    kinds = Counter(pair.row.get("kind", "unknown") for pair in pairs)
    errors = Counter(name for pair in pairs for name in pair.row.get("error_types") or [])
    card = CARD.format(
        size=next(name for limit, name in SIZES if len(pairs) < limit),
        n_pairs=len(pairs),
        n_videos=len({pair.row["video"] for pair in pairs}),
        model="/".join(Path(source.shown.model).parts[-2:]),  # no path of this machine
        n_frames=source.shown.n_frames,
        pixels=read_side(source),
        dropped=list_counts(dropped),
        kinds=list_counts(kinds),
        errors=list_counts(errors),
    )
    common.replace(directory / "README.md", card)
    code = f"import datasets; datasets.load_dataset({str(output)!r}).push_to_hub('you/name')"
    return HUB_HOW.format(output=output, quoted=quote(str(output)), code=quote(code))


def list_counts(counts: Counter) -> str:
    """List counts: "spatial 12, temporal 30"; "none" for nothing."""
    return ", ".join(f"{name} {n}" for name, n in counts.most_common()) or "none"


TARGETS = {
    "trl": Target(to_trl, ()),
    "ms-swift": Target(
        to_swift, ("<video>", "<image>", "<audio>", "<bbox>", "<ref-object>", "<cot-process>")
    ),
    "llama-factory": Target(to_llama_factory, ("<video>", "<image>", "<audio>")),
    "hub": Target(to_hub, None),
}
