r"""Join the outputs of --shard 0/N, 1/N, ... into the one that a single process would write.

    python critique.py --model DIR --input responses.jsonl --shard 0/2 --output critiques.0.jsonl
    python critique.py --model DIR --input responses.jsonl --shard 1/2 --output critiques.1.jsonl
    python -m tools.join critiques.0.jsonl critiques.1.jsonl --output critiques.jsonl

For processes that do not know of each other, such as an array of jobs; torchrun
needs no joining. The rows come in the order of a single process, with one
meta.json, so that the next stage takes them. Refused are shards that are
unfinished, missing, there twice, or of another run. Of evaluate.py join
predictions.jsonl; then evaluate.py --rescore scores it.
"""

import argparse
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import common
import outputs


class Shard(NamedTuple):
    """The output of one shard."""

    path: Path
    number: int  # of n
    n: int
    meta: dict
    rows: list[dict]


def read_shard(path: Path) -> Shard:
    """Read the output of a shard; InputError if it is none, or unfinished."""
    meta_path = common.meta_path(path)
    stage, content, finished = common.read_keys(meta_path, "stage", "content", "finished")
    if not finished:
        raise common.InputError(
            f"{path} is unfinished; the command that began it resumes it: {stage}"
        )
    match = re.fullmatch(r"(\d+)/(\d+)", str(content.get("shard")))
    if not match or match[2] == "1":
        raise common.InputError(f"{path} is no shard: it was not made with --shard")
    rows = common.read_jsonl(path, ("id", "video"))
    return Shard(path, int(match[1]), int(match[2]), common.read_json(meta_path), rows)


def check_shards(shards: list[Shard]):
    """Raise InputError unless these are all shards of one run, each once."""
    first = shards[0]
    for shard in shards[1:]:
        for key in {*first.meta["content"], *shard.meta["content"]} - {"shard"}:
            if first.meta["content"].get(key) != shard.meta["content"].get(key):
                raise common.InputError(
                    f"{first.path} and {shard.path} are of different runs: `{key}` differs in "
                    "their meta.json, under `content`"
                )
        if shard.n != first.n or shard.meta["stage"] != first.meta["stage"]:
            raise common.InputError(
                f"{first.path} is shard {first.number}/{first.n} of {first.meta['stage']}, "
                f"{shard.path} is shard {shard.number}/{shard.n} of {shard.meta['stage']}"
            )
    times = Counter(shard.number for shard in shards)
    for number in range(first.n):
        if times[number] != 1:
            said = "missing" if times[number] == 0 else f"there {times[number]} times"
            raise common.InputError(f"shard {number}/{first.n} is {said}")


def interleave(shards: list[Shard]) -> list[dict]:
    """Put the rows of all shards, 0/N first, into the order of a single process.

    Batch k of the run is the next batch of shard k mod N.
    """
    size = shards[0].meta["content"]["videos_per_batch"]
    batches = []  # of each shard
    for shard in shards:
        batches.append(common.cut_in_batches(common.group_by_video(shard.rows), size))
    rows = []
    for number in range(sum(len(part) for part in batches)):
        turn, shard = divmod(number, len(shards))
        for _, of_video in batches[shard][turn]:
            rows += of_video
    return rows


def join_meta(shards: list[Shard], output: Path, rows: list[dict]) -> dict:
    """Make the meta.json of the joined output."""
    meta = shards[0].meta
    seconds = sum(shard.meta["finished"]["seconds"] for shard in shards)
    kept = re.search(r"= \d+ (\w+) \+", meta["finished"]["account"])[1]  # such as pairs
    whole = {"shard": "0/1"}
    return meta | {
        "arguments": meta["arguments"] | whole | {"output": str(output)},
        "content": meta["content"] | whole,
        "finished": outputs.account_for(rows, kept) | {"seconds": round(seconds, 1)},
    }


def main():
    """Join shards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("shards", type=Path, nargs="+", help="the outputs of all shards, in any order")
    add("--output", type=Path, required=True, help="file to write, which must not exist")
    args = parser.parse_args()

    shards = [read_shard(path) for path in args.shards]
    check_shards(shards)
    shards.sort(key=lambda shard: shard.number)
    for path in (args.output, common.meta_path(args.output)):
        if path.exists():
            raise common.InputError(f"{path} exists already; remove it, or choose another --output")
    rows = interleave(shards)
    meta = join_meta(shards, args.output, rows)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    common.write_jsonl(args.output, rows)
    common.write_json(common.meta_path(args.output), meta)
    print(f"{args.output}: {meta['finished']['account']}")


if __name__ == "__main__":
    common.run(main)
