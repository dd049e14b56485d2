r"""Take pairs elsewhere: to TRL, ms-swift or LLaMA-Factory, or to the Hugging Face Hub.

    python -m tools.export runs/loop/round1/pairs.jsonl runs/export/trl --to trl

DST becomes a directory with the pairs in the target's own form and the frames
that the model saw, as PNG files of the size that it saw them in: only so does
another trainer train on what dpo.py trains on. What it prints at the end trains
on them, with the options without which the target would cut, shrink or drop
something. Texts that the target would take for something else (<video> in a
question) are refused. Dropped rows stay behind.

trl             metadata.jsonl (images, prompt, chosen, rejected), and the chat
                template for its processor
ms-swift        pairs.jsonl (messages, rejected_response, videos: lists of frames)
llama-factory   pairs.json and dataset_info.json (sharegpt with ranking)
hub             metadata.jsonl with the record's keys, and README.md, the data
                set's card. The licence is for you to fill in

python -m tools.peers shows, by these programs themselves, that they then see
our token ids, our frames and our log-probs.
"""

import argparse
from pathlib import Path

import cv2

import common
import dpo
import prompts
import vlm
from tools import page_frames
from tools.checkpoint import whole_directory
from tools.export_targets import TARGETS, Pair, Source
from vlm import chat, families


def main():
    """Export the pairs of one file."""
    args = parse_args()
    source = read_source(args.pairs)
    rows = list_pairs(source)
    if TARGETS[args.to].marks is not None:
        check_texts(source, rows, TARGETS[args.to].marks)
    with whole_directory(args.output) as unfinished:
        pairs = write_frames(source, rows, unfinished)
        how_to_train = TARGETS[args.to].write(source, pairs, unfinished, args.output)
    n_frames = len({frame for pair in pairs for frame in pair.frames})
    print(f"{args.output}: {len(pairs)} pairs, {n_frames} frames\n\n{how_to_train}")
    if vlm.read_adapter(source.shown.model).rank:
        print(
            f"\n{source.shown.model} is a LoRA adapter; other trainers need what "
            f"python -m tools.merge {source.shown.model} DST makes of it"
        )


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("pairs", type=Path, metavar="PAIRS", help="pairs.jsonl of refine.py")
    add("output", type=Path, metavar="DST", help="directory to write, which must not exist")
    add("--to", required=True, choices=TARGETS, help="the target")
    return parser.parse_args()


# ------------------------------------------------------------------------------
# What is exported


def read_source(path: Path) -> Source:
    """Read a finished file of pairs, and from its meta.json how its model saw videos and was asked.

    Raises:
        InputError: also if the model is not there any more, or none is named (tools.hound's pairs)
    """
    common.read_input(path, None, dpo.REQUIRED)  # which says what is not as dpo.py needs it
    shown = page_frames.read_how_shown(path)
    tokenizer = vlm.load_tokenizer(shown.model)
    if shown.config.model_type != "internvl":
        raise common.InputError(
            f"{shown.model}: only pairs of InternVL models can be exported, not of "
            f"{shown.config.model_type}; dpo.py trains on them"
        )
    prefix = families.encode_prefix(tokenizer, shown.config, shown.n_frames)
    answer = prompts.recorded(path).get("answer", prompts.DEFAULT.answer)
    return Source(path, common.read_jsonl(path), shown, tokenizer, len(prefix), answer)


def list_pairs(source: Source) -> list[dict]:
    """List the rows that are pairs, with `prompt`: the words that their question was asked with."""
    pairs = []
    for row in source.rows:
        if "dropped" not in row:
            pairs.append(row | {"prompt": dpo.render_prompt(row, source.answer)})
    if not pairs:
        raise common.InputError(f"{source.path}: no row is a pair")
    return pairs


def check_texts(source: Source, pairs: list[dict], marks: tuple):
    """Raise InputError for a text that the target would not take for text.

    Control tokens are such, too: here they are encoded letter by letter (chat.encode_text),
    elsewhere they end the turn, or stand for a picture.

    marks: what the target replaces
    """
    for pair in pairs:
        for key in ("prompt", "chosen", "rejected"):
            text = pair[key]
            ids = chat.encode(source.tokenizer, text)
            found = chat.find_controls(source.tokenizer, ids, text)
            found += [mark for mark in marks if mark in text]
            if found:
                raise common.InputError(
                    f"{source.path}, row {pair['id']!r}, {key!r}: the target would not take "
                    f"{found[0]} for text. Take the row out"
                )


def write_frames(source: Source, rows: list[dict], directory: Path) -> list[Pair]:
    """Write the frames of all videos that pairs are about, once each.

    Pairs about a video that cannot be read are left out, as by dpo.py, and said.
    """
    pairs = []
    groups = common.group_by_segment(rows)
    bar = common.progress(groups, "frames", unit="video", disable=len(groups) < 2)
    for number, (_, of_video) in enumerate(bar):
        try:
            frames = page_frames.read_frames(source.shown, of_video[0])
        except OSError as error:
            print(f"left out: {len(of_video)} pairs, such as {of_video[0]['id']!r}: {error}")
            continue
        folder = Path("frames", f"{number:05}")  # a video's own name may be none for a directory
        (directory / folder).mkdir(parents=True)
        files = []
        for place, frame in enumerate(frames):
            file = folder / f"{place:03}.png"
            write_png(directory / file, frame)
            files.append(file.as_posix())
        pairs += [Pair(row, row["prompt"], files) for row in of_video]
    if not pairs:
        raise common.InputError(f"{source.path}: no video of its pairs can be read")
    return pairs


def write_png(path: Path, frame):
    """Write a frame, uint8 (height, width, 3), RGB, as it is."""
    _, png = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    path.write_bytes(png.tobytes())  # cv2.imwrite would not say why it cannot


if __name__ == "__main__":
    common.run(main)
