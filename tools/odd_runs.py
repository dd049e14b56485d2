"""Odd commands and outputs, each with what must come of it: cases of `tools.fuzz`.

Commands are parsed and no more. Outputs get rows that no model wrote: what must be in them in the
end is what a run that nothing disturbed has.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import common
import critique
import dpo
import evaluate
import generate
import outputs
import refine
from tools.odd import Case, Gives, Refused
from tools.odd_models import SHIPPED, choose

# ------------------------------------------------------------------------------
# Numbers on the command line

STAGES = (generate, critique, refine, dpo, evaluate)
WHOLE = 2**31 - 1
SEED = 2**63 - 1
TINY = 1e-30  # next to an end that is left out

# {option: (stages that have it, least whole number, largest)}
WHOLE_NUMBERS = {
    "limit": (STAGES, 1, WHOLE),
    "frames": (STAGES, 1, WHOLE),
    "spatial": ((generate,), 0, 1000),
    "temporal": ((generate,), 0, 1000),
    "max-new-tokens": ((generate, critique, refine), 1, WHOLE),
    "seed": ((generate, dpo, evaluate), 0, SEED),
    "skip": ((generate,), 0, WHOLE),
    "pool-seed": ((generate,), 0, SEED),
    "lora-rank": ((dpo,), 1, 4096),
    "lora-alpha": ((dpo,), 1, WHOLE),
    "epochs": ((dpo,), 1, 10_000),
    "videos-per-step": ((dpo,), 1, WHOLE),
    "videos-per-batch": ((generate, critique, refine, evaluate), 1, WHOLE),
}
LARGE = 3e38  # float32 ends at 3.4e38
# {option: (stages that have it, values inside the range, values outside)}
NUMBERS = {
    "max-bad": (STAGES, [0, 0.3, 1], [-1e-9, 1.0001]),
    "temperature": ((generate,), [0, 0.001, 0.7, LARGE], [TINY, -TINY, -1]),
    "top-p": ((generate,), [TINY, 0.5, 1], [0, -0.5, 1.0001]),
    "beta": ((dpo,), [TINY, 0.1, LARGE], [0, -0.1]),
    "label-smoothing": ((dpo,), [0, 0.1, 0.4999], [0.5, 1, -0.1]),
    "nll-weight": ((dpo,), [0, 1, LARGE], [-0.1]),
    "lr": ((dpo,), [TINY, 5e-7, 1e9], [0, -5e-7, LARGE]),
    "warmup": ((dpo,), [0, 0.1, 1], [-0.1, 1.1]),
    "weight-decay": ((dpo,), [0, 0.01, LARGE], [-0.01]),
    "max-grad-norm": ((dpo,), [0, 1, LARGE], [-1, -1e-9]),
    "save-every": ((dpo,), [0, 0.5, LARGE], [-1, -1e-9]),
}
NO_NUMBERS = ["nan", "inf", "-inf", "1e400", "1e39", "-1e39", "1e-46", "half", "", "1,5", "0x10"]


def command(stage, *more: str) -> list[str]:
    """Write a command of a stage that is complete, with these words added."""
    words = ["--model", "m", "--input", "i", "--output", "o", *more]
    if stage is evaluate:
        words += ["--benchmark", "shapes"]
    if stage is dpo:
        words += ["--tune", "lora"]
    return [f"{stage.__name__}.py", *words]


def parse(words: list[str], stage, option: str):
    """Parse a command -> the value of an option; InputError with what is said, if it is refused."""
    sys.argv = words
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = stage.parse_args()
    except SystemExit as end:
        last = said.getvalue().splitlines()[-1]
        raise common.InputError(f"exit code {end.code}: {last}") from end
    return vars(args)[option.replace("-", "_")]


def give_number(rng, option: str) -> Case:
    """Give an option a value inside its range, at an end of it, or outside."""
    if option in WHOLE_NUMBERS:
        stages, least, most = WHOLE_NUMBERS[option]
        inside = [least, most, int(rng.integers(least, most, endpoint=True))]
        outside = [least - 1, most + 1, -int(rng.integers(1, 2**40)), "1.5", "1e3", *NO_NUMBERS]
    else:
        stages, inside, outside = NUMBERS[option]
        outside = [*outside, *NO_NUMBERS]
    stage = choose(rng, stages)
    is_right = rng.integers(2)
    value = choose(rng, inside if is_right else outside)
    words = command(stage, f"--{option}={value}")
    act = functools.partial(parse, words, stage, option)
    if is_right:
        return Gives(act, value)
    return Refused(act, (f"exit code 2: {stage.__name__}.py: error: argument --{option}: ",))


def any_number(directory: Path, rng) -> Case:
    """Give one of all numeric options a value."""
    return give_number(rng, choose(rng, [*WHOLE_NUMBERS, *NUMBERS]))


# ------------------------------------------------------------------------------
# Outputs that resume

META = {
    "stage": "stage.py",
    "content": {"seed": 0},
    "root": "/videos",
    "process": 1,
    "finished": None,
}
TOLERANT = argparse.Namespace(overwrite=False, max_bad=1.0, videos_per_batch=1)


def make_groups(rng) -> list[tuple[str, list[dict]]]:
    """Make one to four rows about each of two to six videos; some letters take two bytes."""
    groups = []
    for number in range(rng.integers(2, 7)):
        video = f"{number}.mp4"
        rows = []
        for place in range(rng.integers(1, 5)):
            text = "ü" * int(rng.integers(0, 4))
            rows.append({"id": f"{video}/{place}", "video": video, "initial": text})
        groups.append((video, rows))
    return groups


def write(path: Path, groups: list, n_videos=None, again: tuple = ()) -> outputs.Output:
    """Begin or resume an output, and write the next n videos, or all that are left."""
    out = outputs.Output(path, TOLERANT, META, groups, again)
    if not out.finished:
        for [(_, rows)] in itertools.islice(out.left, n_videos):
            out.write(rows)
    return out


def fresh(directory: Path, groups: list) -> bytes:
    """Write what a run that nothing disturbs writes -> its bytes."""
    write(directory / "fresh", groups).finish("rows")
    return (directory / "fresh").read_bytes()


def cut_anywhere(directory: Path, rng) -> Case:
    """Stop a run after any number of videos, and cut its file off at any byte."""
    groups = make_groups(rng)
    whole = fresh(directory, groups)
    path = directory / "out"
    write(path, groups, int(rng.integers(0, len(groups) + 1)))
    data = path.read_bytes() if path.exists() else b""
    path.write_bytes(data[: rng.integers(len(data) + 1)])

    def resume() -> bytes:
        write(path, groups).finish("rows")
        return path.read_bytes()

    return Gives(resume, whole)


def not_its_row(directory: Path, rng) -> Case:
    """Put a row into an output that does not belong there: refused, and left as it is."""
    groups = make_groups(rng)
    path = directory / "out"
    write(path, groups)
    rows = common.read_jsonl(path)
    place = int(rng.integers(len(rows)))
    rows[place] = choose(rng, [rows[place] | {"id": "z"}, rows[place] | {"video": "z.mp4"}])
    common.write_jsonl(path, rows)
    before = path.read_bytes()

    def resume():
        try:
            write(path, groups)
        except common.InputError as error:
            if path.read_bytes() != before:
                raise AssertionError("it was refused, but changed") from error
            raise

    return Refused(resume, (f"{path}, line {place + 1}: not the row that belongs here",))


def read_later(directory: Path, rng) -> Case:
    """Have some videos unreadable, or missing, at first; the second run is stopped, too."""
    groups = make_groups(rng)
    whole = fresh(directory, groups)
    path = directory / "out"
    reason = choose(rng, ["unreadable_video", "missing_video"])
    lost = rng.integers(2, size=len(groups))
    lost[rng.integers(len(groups))] = 0  # if all were lost, the run would end with an error
    first = write(path, groups, 0)
    for is_lost, (_, rows) in zip(lost, groups):
        dropped = {"dropped": reason, "error": "moved"} if is_lost else {}
        first.write([row | dropped for row in rows])
    first.finish("rows")
    first.lock.release()

    def run_twice() -> bytes:
        again = write(path, groups, int(rng.integers(len(groups))), (reason,))
        if again.lock:
            again.lock.release()
        last = write(path, groups, None, (reason,))
        if not last.finished:
            last.finish("rows")
        return path.read_bytes()

    return Gives(run_twice, whole)


def other_arguments(directory: Path, rng) -> Case:
    """Resume an output with another value of an option: refused by its name."""
    groups = make_groups(rng)
    path = directory / "out"
    option, then, now = choose(
        rng, [("seed", 0, 1), ("top_p", 1.0, 0.5), ("limit", None, 5), ("frames", 8, None)]
    )
    begun = META | {"content": {option: then}}
    out = outputs.Output(path, TOLERANT, begun, groups)
    out.write(groups[0][1])
    changed = META | {"content": {option: now}}
    name = f"--{option.replace('_', '-')}"
    return Refused(
        functools.partial(outputs.Output, path, TOLERANT, changed, groups), ("begun with", name)
    )


def nothing_left(directory: Path, rng) -> Case:
    """Drop every row: the output is finished, and that it has nothing is said each time."""
    groups = make_groups(rng)
    reason = choose(rng, ["unchanged", "no_error_found"])
    n_rows = sum(len(rows) for _, rows in groups)

    def drop_all():
        out = outputs.Output(directory / "out", TOLERANT, META, groups)
        for [(_, rows)] in out.left:
            out.write([row | {"dropped": reason} for row in rows])
        out.finish("pairs")

    account = f"rows in {n_rows} = 0 pairs + {n_rows} dropped ({reason} {n_rows})"
    return Refused(drop_all, (account,))


# ------------------------------------------------------------------------------
# Videos that arrive, shards that are joined


def videos_that_arrive(directory: Path, rng) -> Case:
    """Let videos arrive after generate.py ran: refused, with how many and the command."""
    names = [f"{number}.mp4" for number in range(rng.integers(2, 9))]
    n_before = int(rng.integers(1, len(names) + 1))
    before = META | {"root": str(directory), "videos": names[:n_before], "content": {"inputs": "1"}}
    now = before | {"videos": names, "content": {"inputs": "1" if n_before == len(names) else "2"}}
    before["finished"] = choose(rng, [None, {"account": "all"}])
    path = directory / "first.jsonl"
    path.touch()
    common.write_json(common.meta_path(path), before)
    args = argparse.Namespace(output=path, overwrite=False, limit=None, skip=0)
    act = functools.partial(generate.refuse_new_videos, args, now)
    n_new = len(names) - n_before
    if not n_new:
        return Gives(act, None)
    second = directory / "first.new.jsonl"
    words = [f"before {n_new} videos arrived", f"--without {path} --output {second}"]
    if not before["finished"]:
        words.append(f"with --without {second} added, this command resumes")
    return Refused(act, tuple(words))


def joined_shards(directory: Path, rng) -> Case:
    """Join the shards of an evaluation: all of them, too few, one twice, or one of another run."""
    n_shards = int(rng.integers(2, 5))
    shards = [[] for _ in range(n_shards)]
    n_questions = int(rng.integers(2 * n_shards, 20))
    for number in range(n_questions):
        shards[number % n_shards].append(make_reply(number, n_questions))
    what = choose(rng, ["all", "forgotten", "twice", "another run"])
    odd = int(rng.integers(n_shards))
    if what == "forgotten":
        shards.pop(odd)
    if what == "twice":
        shards.append(shards[odd])
    if what == "another run":
        shards[odd] = [row | {"run": "another"} for row in shards[odd]]
    rows = [row for shard in shards for row in shard]
    lines = [json.dumps(row) + "\n" for row in rows]
    (directory / "predictions.jsonl").write_text("".join(lines))

    def rescore() -> tuple:
        words = ["--benchmark", "shapes", "--output", str(directory), "--rescore"]
        sys.argv = ["evaluate.py", *words]
        evaluate.RESAMPLES = 20
        evaluate.main()
        results = common.read_json(directory / "results.json")
        return results["partial"], results["n"], results["n_questions"], results["score"]

    if what == "twice":
        return Refused(rescore, ("predictions.jsonl", "duplicate id"))
    if what == "another run":
        return Refused(rescore, ("rows of different runs", "`run` is"))
    n_right = sum(row["initial"] == "up" for row in rows)
    score = round(n_right / len(rows), 4)
    return Gives(rescore, (what == "forgotten", len(rows), n_questions, score))


def make_reply(number: int, n_questions: int) -> dict:
    """Make a row of evaluate.py's predictions; every third reply is wrong."""
    reply = "down" if number % 3 == 0 else "up"
    return {
        "id": f"{number}.mp4/direction",
        "video": f"{number}.mp4",
        "benchmark": "shapes",
        "task": "direction",
        "question": "which way?",
        "options": ["up"],
        "answer": 0,
        "tags": {"kind": "temporal", "error_type": "factual_inaccuracy"},
        "start": None,
        "end": None,
        "run": "one",
        "n_questions": n_questions,
        "initial": reply,
    }


# ------------------------------------------------------------------------------
# Directories


OWN = ["model.safetensors", "config.json", "README.md", "tokenizer.json"]
WORKING = ["metrics.jsonl", "reference.jsonl", "checkpoint-000004.state", "checkpoint.part"]
STRANGE = ["notes.txt", "pairs.jsonl", "eval/", "model/", ".hidden", "my.safetensors", "link"]


def draw(rng, names: list[str], most: int) -> list[str]:
    """Draw up to `most` of some names, each once."""
    return sorted(rng.permutation(names)[: rng.integers(most + 1)].tolist())


def make_entry(path: Path, is_directory: bool):
    """Make a file, a link or a directory with something in it."""
    if is_directory:
        path.mkdir()
        (path / "model.safetensors").touch()
    elif path.name == "link":
        path.symlink_to(SHIPPED)
    else:
        path.touch()


def overwritten_directory(directory: Path, rng) -> Case:
    """Overwrite a training's output: what dpo.py wrote goes, and what it did not is named."""
    output = directory / "out"
    output.mkdir()
    common.write_json(common.meta_path(output), META | {"files": OWN})
    strange = draw(rng, STRANGE, 2)
    for name in [*draw(rng, [*OWN, *WORKING, f"{outputs.PART}/"], 9), *strange]:
        make_entry(output / name, name.endswith("/"))

    def clear() -> tuple:
        before = sorted(output.rglob("*"))
        try:
            outputs.clear_directory(output, META)
        except common.InputError as error:
            if sorted(output.rglob("*")) != before:
                raise AssertionError("it was refused, but changed") from error
            raise
        return sorted(output.iterdir()), common.read_json(common.meta_path(output))

    if strange:
        names = ", ".join(sorted(name.rstrip("/") for name in strange))
        return Refused(clear, (f"what dpo.py did not write: {names}. Move it away",))
    return Gives(clear, ([], META))


def output_below_the_model(directory: Path, rng) -> Case:
    """Write outputs into a model's directory: it is the same model; with other files it is not."""
    model = directory / "model"
    shutil.copytree(SHIPPED, model)
    before = common.fingerprint(model)
    outputs = ["out.jsonl", "out.jsonl.meta.json", ".out.jsonl.lock", "results.json", "eval/a.json"]
    outputs.append("more.safetensors")  # nothing loads it
    parts = ["config.json", "tokenizer.json", "chat_template.jinja", "merges.txt"]
    parts += ["additional_chat_templates/rag.jinja"]
    is_part = bool(rng.integers(2))
    path = model / choose(rng, parts if is_part else outputs)
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.write(b"\n")
    return Gives(lambda: common.fingerprint(model) != before, is_part)


def relative_videos(directory: Path, rng) -> Case:
    """Give --videos relative to where a stage is started, or name a directory that is not there."""
    path = directory / "rows.jsonl"
    common.write_jsonl(path, [{"id": "a", "video": "a.mp4"}])
    (directory / "videos").mkdir()
    name = choose(rng, ["videos", "./videos", "videos/../videos", "rond1", "videos/rond1"])

    def read() -> str:
        os.chdir(directory)
        root, _ = common.read_input(path, name, ("id", "video"))
        return str(root)

    if "rond1" in name:
        return Refused(read, (f"{directory.resolve() / name}: no such directory; --videos DIR",))
    return Gives(read, str((directory / "videos").resolve()))


def empty_input(directory: Path, rng) -> Case:
    """Give an input without rows, or with rows that were all dropped."""
    path = directory / "rows.jsonl"
    n_rows = int(rng.integers(0, 5))
    rows = [{"id": f"{n}", "video": "a", "dropped": "unchanged"} for n in range(n_rows)]
    common.write_jsonl(path, rows)
    stage = choose(rng, [critique, refine])
    more = ["--videos", str(directory), "--output", str(directory / "out")]
    words = command(stage, "--model", str(SHIPPED), "--input", str(path), *more)

    def run():
        sys.argv = words
        stage.main()

    if n_rows:
        return Refused(run, (f"all {n_rows} rows are dropped already (unchanged {n_rows})",))
    return Refused(run, ("rows.jsonl has no rows",))


CASES = [
    any_number,
    cut_anywhere,
    not_its_row,
    read_later,
    other_arguments,
    nothing_left,
    videos_that_arrive,
    joined_shards,
    overwritten_directory,
    output_below_the_model,
    relative_videos,
    empty_input,
]
