r"""Bring in LLaVA-Hound's 17,000 pairs, for the row "+ Hound-DPO" of the paper's Table 1.

    python -m tools.hound sft_dpo_17k.jsonl runs/hound/pairs.jsonl --videos train_300k
    python dpo.py --model DIR --input runs/hound/pairs.jsonl --output runs/hound/model

reads    rows of Hound: id, video, prompt, chosen, rejected (their
         dpo_scripts/run_dpo.py); a video is a directory of frames below --videos
writes   pairs.jsonl as refine.py does, with its meta.json

Hound asks with the question alone, so it is trained behind nothing else:
`prompts` in meta.json says so. Ids are made anew, since theirs need not be
unique; their own is kept as `hound_id`. A pair whose sides are equal is
dropped. Written after Hound's code; the published file itself was not at hand.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import common
import outputs

KEYS = ("video", "prompt", "chosen", "rejected")


def main():
    """Bring in Hound's pairs."""
    args = parse_args()
    rows = bring_in(args.source)
    tell_missing(rows, args.videos)
    meta = {
        "stage": Path(sys.argv[0]).name,
        "arguments": {"source": str(args.source), "videos": str(args.videos)},
        "root": str(args.videos.resolve()),
        "prompts": {"answer": "{question}"},
        "finished": outputs.account_for(rows, "pairs"),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    common.write_jsonl(args.output, rows)
    common.write_json(common.meta_path(args.output), meta)
    print(f"{args.output}: {meta['finished']['account']}")


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("source", type=Path, metavar="SRC", help="sft_dpo_17k.jsonl of LLaVA-Hound")
    add("output", type=Path, metavar="DST", help="file to write, which must not exist")
    add("--videos", type=Path, required=True, metavar="DIR", help="the videos' root")
    args = parser.parse_args()
    for path in (args.output, common.meta_path(args.output)):
        if path.exists():
            raise common.InputError(f"{path} exists already; remove it, or choose another DST")
    if not args.videos.is_dir():
        raise common.InputError(f"--videos {args.videos}: no such directory")
    return args


def bring_in(source: Path) -> list[dict]:
    """Read Hound's rows and give them the keys of the record (common.RECORD).

    Raises:
        InputError: with file and line, if a row is not one of Hound's
    """
    rows = []
    times = Counter()  # each video was there
    try:
        lines = source.read_bytes().splitlines()
    except OSError as error:
        raise common.InputError(f"{source}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        hound = read_row(line, where)
        video = hound["video"]
        row = {
            "id": f"{video}/hound/{times[video]}",
            "video": video,
            "kind": "hound",
            "question": hound["prompt"].replace("<video>", "").strip(),
            "chosen": hound["chosen"],
            "rejected": hound["rejected"],
            "hound_id": hound.get("id"),
        }
        if not row["question"]:
            raise common.InputError(f"{where}: the prompt has no words beside <video>")
        if ".." in Path(video).parts or Path(video).is_absolute() or not Path(video).parts:
            raise common.InputError(f"{where}: {video!r} is not below the videos' root")
        if row["chosen"] == row["rejected"]:
            row["dropped"] = "unchanged"
        if fault := common.find_fault(row, ()):
            raise common.InputError(f"{where}: {fault}")
        rows.append(row)
        times[video] += 1
    if not rows:
        raise common.InputError(f"{source} has no rows")
    return rows


def read_row(line: bytes, where: str) -> dict:
    """Read a line of Hound's file."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise common.InputError(f"{where}: not JSON in UTF-8 ({error})") from error
    if not isinstance(row, dict):
        raise common.InputError(f"{where}: an object is expected, not {type(row).__name__}")
    for key in KEYS:
        if key not in row:
            raise common.InputError(f"{where}: no key {key!r}")
        if not isinstance(row[key], str) or not row[key].strip():
            raise common.InputError(f"{where}: {key!r} is {row[key]!r}, where Hound has a text")
    return row


def tell_missing(rows: list[dict], root: Path):
    """Print how many videos are not there; InputError if that is all."""
    videos = dict.fromkeys(row["video"] for row in rows)
    missing = [video for video in videos if not is_there(root / video)]
    if len(missing) == len(videos):
        raise common.InputError(
            f"none of the videos is below {root}; {root / missing[0]} is missing"
        )
    if missing:
        print(
            f"{len(missing)} of {len(videos)} videos are not below {root}, such as {missing[0]}; "
            "dpo.py leaves out their pairs, and stops if they are more than --max-bad says"
        )


def is_there(path: Path) -> bool:
    """Say whether a video is there: a file, or a directory with something in it."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


if __name__ == "__main__":
    common.run(main)
