r"""Show, by other trainers' own code, that tools.export gives them what dpo.py trains on.

    python -m tools.peers runs/peers
    python3 -m venv trl && trl/bin/pip install trl==1.16.0 torchvision
    trl/bin/python tools/peers_check.py runs/peers trl

The first command makes a small random model with the chat template of
InternVL2.5, a video, pairs, and their exports; and beside them, in ours.npz,
what dpo.py makes of the pairs: token ids, pixels, log-probs. The last one asks
a peer for the same. It runs in a virtual environment of the peer's, for these
need other versions of almost everything; peers_check.py names what to install.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import tokenizers
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerFast

import common
import media
import prompts
import vlm
from shapes import world
from tools import export
from tools.convert import CHAT_TEMPLATE
from vlm import families

IMAGE = 448  # pixels a side
TOKENS = 256  # of a frame
N_FRAMES = 4
# Tokens that InternVL's processor asks its tokenizer for
NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", vlm.END_OF_TURN, *NAMED.values())
VIDEO = "round1_0000.mp4"
# Sides of different lengths, with what templates like to strip, escape or join
PAIRS = (
    ("Which shape moves first?", "The red circle.", "It's the blue square, I think."),
    ("What is left of {it}?", 'A "green" triangle;\nnothing else.', "Nothing <b>at all</b>"),
    ("书 or 生?", "书", "生 & 书."),
)


def main():
    """Make what peers are compared on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument("output", type=Path, metavar="DIR", help="directory, made anew")
    args = parser.parse_args()
    args.output.mkdir(parents=True)  # an old one would be exported beside it

    write_model(args.output / "model")
    world.write_split(args.output / "videos", "round1", 1, seed=0)
    write_pairs(args.output)
    for target in export.TARGETS:
        sys.argv[1:] = [str(args.output / "pairs.jsonl"), str(args.output / target), "--to", target]
        export.main()
        print()
    np.savez(args.output / "ours.npz", **look_at_ours(args.output))


def write_model(directory: Path):
    """Write a small random checkpoint, whose tokenizer merges bytes as a real one does."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": IMAGE,
        "patch_size": 14,
    }
    text = {
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 32768,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=TOKENS,
    )
    model = InternVLForConditionalGeneration(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def make_tokenizer():
    """Make a byte-level BPE tokenizer, trained on the project's own pages."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=list(SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pages = sorted(Path(__file__).parent.parent.glob("docs/*.md"))
    backend.train([str(page) for page in pages], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=vlm.END_OF_TURN,
        pad_token="<|endoftext|>",
        extra_special_tokens=NAMED,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_pairs(directory: Path):
    """Write pairs.jsonl, with the meta.json that refine.py would write."""
    rows = []
    for number, (question, chosen, rejected) in enumerate(PAIRS):
        rows.append(
            {
                "id": f"{VIDEO}/spatial/{number}",
                "video": VIDEO,
                "kind": "spatial",
                "question": question,
                "critique": "No. Errors: factual_inaccuracy",
                "error_types": ["factual_inaccuracy"],
                "chosen": chosen,
                "rejected": rejected,
            }
        )
    path = directory / "pairs.jsonl"
    common.write_jsonl(path, rows)
    meta = {
        "stage": "refine.py",
        "finished": True,
        "root": str((directory / "videos" / "round1").resolve()),
        "arguments": {"model": str(directory / "model"), "frames": N_FRAMES},
        "directory": os.getcwd(),
        "prompts": {"answer": prompts.DEFAULT.answer},
    }
    common.write_json(common.meta_path(path), meta)


@torch.no_grad()
def look_at_ours(directory: Path) -> dict:
    """Give token ids, pixels and log-probs as dpo.py has them.

    Returns:
        {"pixels": float32 (F, 3, size, size); for each pair and side "ids_0_chosen": (T,), and
        "logps_0_chosen": a number, the sum over the answer's tokens}
    """
    model = vlm.load_model(directory / "model", ["cpu"], torch.float32)
    tokenizer = vlm.load_tokenizer(directory / "model")
    frames = media.sample_frames(directory / "videos" / "round1" / VIDEO, N_FRAMES).frames
    ours = {"pixels": families.pixel_values(frames, (IMAGE, IMAGE)).numpy()}
    prefix = families.encode_prefix(tokenizer, model.config, N_FRAMES)
    for number, (question, chosen, rejected) in enumerate(PAIRS):
        prompt = prompts.fill(prompts.DEFAULT.answer, question=question)
        branches = [vlm.encode_branch(tokenizer, prompt, side) for side in (chosen, rejected)]
        video = vlm.Video(model, tokenizer, frames)
        logps, _ = vlm.branch_logps(model, video, branches)  # (2,)
        for side, branch, logp in zip(("chosen", "rejected"), branches, logps):
            ours[f"ids_{number}_{side}"] = np.array(prefix + branch.prompt + branch.answer)
            ours[f"answer_{number}_{side}"] = np.array(len(branch.answer))
            ours[f"logps_{number}_{side}"] = np.array(logp.item())
    return ours


if __name__ == "__main__":
    common.run(main)
