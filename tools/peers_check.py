"""Ask another trainer's own code what it makes of an export; see tools.peers.

    trl/bin/python tools/peers_check.py runs/peers trl

It runs in a virtual environment of the peer's, and imports nothing of this
project. What to install into it, for these versions were asked:

trl              trl==1.16.0 transformers==5.23.0 datasets torchvision
ms-swift         ms-swift==4.6.0 (with transformers 5.19.0) torchvision
llama-factory    llamafactory==0.9.5 (with transformers 5.6.0) torchvision
hub              datasets==4.8.4 pillow

It prints a line for each pair and side, and ends with 1 if something differs.
"""

import argparse
import importlib.machinery
import json
import re
import sys
import types
from pathlib import Path

import numpy as np

SIDES = ("chosen", "rejected")
IGNORED = -100  # the label of a token that does not count, to all of them


def main():
    """Compare a peer with us."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="what tools.peers wrote")
    parser.add_argument("peer", choices=PEERS)
    args = parser.parse_args()
    directory = args.directory.resolve()
    ours = np.load(directory / "ours.npz")
    same = PEERS[args.peer](directory, ours)
    print("the same" if same else "DIFFERENT")
    sys.exit(0 if same else 1)


def make_torchvision_importable():
    """Make the published torchvision, which is built for CUDA, importable beside torch for CPUs.

    Its resizing is torch's own; the operators that are not there are not called.
    """
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for _ in range(20):
        try:
            import torchvision  # noqa: F401

            break
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if not missing:
                raise
            library.define(f"{missing[1]}(Tensor x) -> Tensor")
            for name in [name for name in sys.modules if name.startswith("torchvision")]:
                del sys.modules[name]
    return library  # it takes its operators with it


def save_processor(directory: Path):
    """Write InternVL's processor into the model's directory, as a published checkpoint has it."""
    import transformers

    size = {"height": 448, "width": 448}
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    images = transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=False)
    videos = transformers.InternVLVideoProcessor(size=size)
    for each in (images, videos):
        each.image_mean = [0.485, 0.456, 0.406]
        each.image_std = [0.229, 0.224, 0.225]
    processor = transformers.InternVLProcessor(
        images, tokenizer, videos, image_seq_length=256, chat_template=tokenizer.chat_template
    )
    processor.save_pretrained(directory)


def compare(ours, number: int, side: str, ids: list[int], labels: list[int]) -> bool:
    """Compare a sequence with ours, and say what differs.

    A template's line end behind the last token counts as the same, and is said.
    """
    expected = ours[f"ids_{number}_{side}"].tolist()
    n_answer = int(ours[f"answer_{number}_{side}"])
    behind = ids[len(expected) :]
    counted = [token for token, label in zip(ids, labels) if label != IGNORED]
    n_counted_behind = sum(label != IGNORED for label in labels[len(expected) :])
    same_ids = ids[: len(expected)] == expected
    same_counted = counted[: len(counted) - n_counted_behind] == expected[-n_answer:]
    print(
        f"pair {number}, {side}: {len(ids)} tokens, {'the same' if same_ids else 'OTHERS'}; "
        f"{len(counted)} count, {'the same' if same_counted else 'OTHERS'}; behind the end of turn "
        f"{len(behind)} more, of which {n_counted_behind} count"
    )
    return same_ids and same_counted and len(behind) <= 1


def compare_pixels(ours, pixels) -> bool:
    """Compare a video's pixels, (frames, 3, 448, 448), with ours."""
    expected = ours["pixels"]
    pixels = np.asarray(pixels, dtype=np.float32)
    if pixels.shape != expected.shape:
        print(f"pixels of shape {pixels.shape}, not {expected.shape}")
        return False
    difference = np.abs(pixels - expected).max()
    print(f"{len(pixels)} frames; pixels differ by at most {difference:.2g}")
    return difference < 1e-5


# ------------------------------------------------------------------------------
# The peers


def check_trl(directory: Path, ours) -> bool:
    """Ask TRL's trainer for token ids, frames and log-probs."""
    make_torchvision_importable()
    import datasets
    import torch
    import transformers
    import trl

    save_processor(directory / "model")
    processor = transformers.AutoProcessor.from_pretrained(directory / "model")
    processor.chat_template = (directory / "trl" / "chat_template.jinja").read_text("utf-8")
    pairs = datasets.load_dataset("imagefolder", data_dir=str(directory / "trl"), split="train")
    config = trl.DPOConfig(
        output_dir=str(directory / "trl-trained"),
        max_length=None,
        per_device_train_batch_size=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
    )
    trainer = trl.DPOTrainer(
        model=str(directory / "model"),
        args=config,
        train_dataset=pairs,
        processing_class=processor,
    )
    same = True
    for number, pair in enumerate(pairs):
        batch = trainer.data_collator([pair])
        if number == 0:
            same &= compare_pixels(ours, batch["pixel_values"][: len(ours["pixels"])])
        for row, side in enumerate(SIDES):
            seen = batch["attention_mask"][row].bool()
            ids = batch["input_ids"][row][seen].tolist()
            counts = batch["completion_mask"][row][seen].bool()
            labels = torch.tensor(ids).where(counts, IGNORED).tolist()
            same &= compare(ours, number, side, ids, labels)
        with torch.no_grad():
            trainer.compute_loss(trainer.model.train(), trainer._prepare_inputs(batch))
        for side in SIDES:
            logp = trainer._metrics["train"][f"logps/{side}"][-1]
            difference = abs(logp - ours[f"logps_{number}_{side}"].item())
            print(f"pair {number}, {side}: log-prob {logp:.4f}, differs by {difference:.2g}")
            same &= difference < 1e-4 * max(1, abs(logp))
    return same


def check_swift(directory: Path, ours) -> bool:
    """Ask ms-swift's template for token ids and frames."""
    make_torchvision_importable()
    from swift import get_processor, get_template

    save_processor(directory / "model")
    processor = get_processor(str(directory / "model"), model_type="internvl")
    template = get_template(
        processor,
        default_system=read_system(directory),
        template_type="internvl_hf",
        max_length=4096,
    )
    template.set_mode("rlhf")
    same = True
    lines = (directory / "ms-swift" / "pairs.jsonl").read_text("utf-8").splitlines()
    for number, line in enumerate(lines):
        encoded = template.encode(json.loads(line))
        if number == 0:
            same &= compare_pixels(ours, encoded["chosen_pixel_values"].float())
        for side in SIDES:
            ids = list(encoded[f"{side}_input_ids"])
            same &= compare(ours, number, side, ids, list(encoded[f"{side}_labels"]))
    return same


def read_system(directory: Path) -> str:
    """Read the system message of the model's chat template, which the printed command gives."""
    template = (directory / "model" / "chat_template.jinja").read_text("utf-8")
    return re.search(r"<\|im_start\|>system\n(.*?)<\|im_end\|>", template)[1]


def check_llama_factory(directory: Path, ours) -> bool:
    """Ask LLaMA-Factory's data set, template and collator for token ids and frames."""
    make_torchvision_importable()
    audio = types.ModuleType("torchaudio")  # of which the same is true
    audio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = audio
    from llamafactory.data import (
        PairwiseDataCollatorWithPadding,
        get_dataset,
        get_template_and_fix_tokenizer,
    )
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    save_processor(directory / "model")
    target = str(directory / "llama-factory")
    model_args, data_args, training_args, *_ = get_train_args(
        {
            "stage": "dpo",
            "do_train": True,
            "model_name_or_path": str(directory / "model"),
            "template": "intern_vl",
            "default_system": read_system(directory),
            "dataset_dir": target,
            "media_dir": target,
            "dataset": "videosavi",
            "cutoff_len": 4096,
            "video_max_pixels": 448 * 448,
            "finetuning_type": "full",
            "output_dir": f"{target}-trained",
            "overwrite_cache": True,
            "use_cpu": True,
            "report_to": "none",
        }
    )
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    pairs = get_dataset(template, model_args, data_args, training_args, stage="rm", **module)
    collate = PairwiseDataCollatorWithPadding(
        template=template, label_pad_token_id=IGNORED, pad_to_multiple_of=None, **module
    )
    same = True
    for number, pair in enumerate(pairs["train_dataset"]):
        batch = collate([dict(pair)])
        if number == 0:
            same &= compare_pixels(ours, batch["pixel_values"][: len(ours["pixels"])])
        for row, side in enumerate(SIDES):
            seen = batch["attention_mask"][row].bool()
            ids = batch["input_ids"][row][seen].tolist()
            same &= compare(ours, number, side, ids, batch["labels"][row][seen].tolist())
    return same


def check_hub(directory: Path, ours) -> bool:
    """Ask `datasets` for the folder: its rows, and its frames to the last bit."""
    import datasets

    rows = datasets.load_dataset(str(directory / "hub"), split="train")
    print(rows)
    pairs = [json.loads(line) for line in (directory / "pairs.jsonl").open(encoding="utf-8")]
    same = len(rows) == len(pairs)
    for row, pair in zip(rows, pairs):
        same &= all(row[key] == pair[key] for key in ("id", "question", "chosen", "rejected"))
    frames = np.stack([np.asarray(image) for image in rows[0]["images"]])  # (F, 448, 448, 3)
    mean = np.array([0.485, 0.456, 0.406])
    std = np.array([0.229, 0.224, 0.225])
    pixels = (frames.transpose(0, 3, 1, 2) / 255 - mean[:, None, None]) / std[:, None, None]
    return same and compare_pixels(ours, pixels)


PEERS = {
    "trl": check_trl,
    "ms-swift": check_swift,
    "llama-factory": check_llama_factory,
    "hub": check_hub,
}

if __name__ == "__main__":
    main()
