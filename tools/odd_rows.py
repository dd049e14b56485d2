"""Odd rows, verdicts, numbers and outputs, each with what must come of it: cases of `tools.fuzz`.

A case makes an input in a directory of its own, from what it knows composes it, tries it, and
returns what is wrong, or None. The truth comes from the making, not from reading the input back.
"""

import argparse
import contextlib
import io
import json
import math
import sys
from pathlib import Path
from unittest import mock

import common
import critique
import dpo
import evaluate
import generate
import refine

STAGES = (generate, critique, refine, dpo, evaluate)
TYPES = list(common.ERROR_TYPES)


def refusal(function, *arguments) -> str | None:
    """Call a function -> the message of its InputError; None if there is none."""
    try:
        function(*arguments)
    except common.InputError as error:
        return str(error)
    return None


def compare(message: str | None, *words: str) -> str | None:
    """Say what is wrong with a refusal that must have these words."""
    if message is None:
        return f"it is not refused; expected: {words}"
    if "\n" in message:
        return f"it is refused in more than one line: {message!r}"
    lacking = [word for word in words if word not in message]
    return f"refused without {lacking}: {message!r}" if lacking else None


# ------------------------------------------------------------------------------
# Rows


def rows_file(directory: Path, rng, **changes) -> tuple[Path, int]:
    """Write five rows, of which one has other values -> (the file, the line of that row)."""
    odd = int(rng.integers(5))
    lines = []
    for number in range(5):
        row = {"id": f"{number}", "video": "a.mp4", "question": "what is there?"}
        if number == odd:
            row |= changes
        lines.append(json.dumps(row) + "\n")
    path = directory / "rows.jsonl"
    path.write_text("".join(lines))
    return path, odd + 1


def wrong_value(directory: Path, rng) -> str | None:
    """Give a key of the record a value of another type, or seconds that are none."""
    key = str(rng.choice([key for key in common.RECORD if key != "error_types"]))
    values = [{"a": 1}, ["a"]]
    if key in ("start", "end"):
        values += [math.nan, math.inf, -math.inf, "3"]
    elif key != "id":
        values += [7, None, True]
    path, line = rows_file(directory, rng, **{key: values[rng.integers(len(values))]})
    return compare(refusal(common.read_jsonl, path), f"rows.jsonl, line {line}: ", f"'{key}'")


def half_a_character(directory: Path, rng) -> str | None:
    """Put half of a surrogate pair into a text, a key, or a text at some depth."""
    half = chr(int(rng.integers(0xD800, 0xE000)))
    text = f"caf\u00e9 {half} \U0001f600"
    changes = [
        {"question": text},
        {text: 1},
        {"video": text},
        {"notes": {"of": ["the", text]}},
        {"kind": half},
    ][rng.integers(5)]
    path, line = rows_file(directory, rng, **changes)
    return compare(refusal(common.read_jsonl, path), f"rows.jsonl, line {line}")


def whole_characters(directory: Path, rng) -> str | None:
    """Put characters of many planes into a row: nothing is wrong with them."""
    points = rng.integers(32, 0x10FFFF, 40)
    text = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
    path, line = rows_file(directory, rng, question=text)
    try:
        rows = common.read_jsonl(path)
    except common.InputError as error:
        return f"refused: {error}"
    return None if rows[line - 1]["question"] == text else "the text is another one"


def duplicate(directory: Path, rng) -> str | None:
    """Repeat a row's id."""
    path, _ = rows_file(directory, rng)
    lines = path.read_text().splitlines(keepends=True)
    first = int(rng.integers(5))
    path.write_text("".join([*lines, lines[first]]))
    return compare(refusal(common.read_jsonl, path), "line 6: duplicate id", f"'{first}'")


def broken_json(directory: Path, rng) -> str | None:
    """Cut a line, or put something else there."""
    path, _ = rows_file(directory, rng)
    lines = path.read_text().splitlines(keepends=True)
    odd = int(rng.integers(5))
    cut = int(rng.integers(1, len(lines[odd]) - 3))
    lines[odd] = [lines[odd][:cut] + "\n", "\n", "null\n", "[1]\n", "{]\n", "\x00\n"][
        rng.integers(6)
    ]
    path.write_text("".join(lines))
    return compare(refusal(common.read_jsonl, path), f"rows.jsonl, line {odd + 1}")


# ------------------------------------------------------------------------------
# Verdicts, composed by the grammar that docs/files.md writes down


def spell(error: str, rng) -> str:
    """Write an error type in one of the ways in which models write it."""
    forms = [
        error,
        error.replace("_", " "),
        error.replace("_", "-"),
        error.replace("_", "\\_"),
        error.upper(),
        error.title(),
        f"`{error}`",
        f"**{error}**",
        f"*{error}*",
        f'"{error}"',
    ]
    return forms[rng.integers(len(forms))]


def verdict(directory: Path, rng) -> str | None:
    """Compose a critique whose verdict is known: types, none, or nothing that can be read."""
    heading = [
        "Errors:", "errors:", "ERRORS:", "**Errors:**", "**Errors**:", "Error:", "- Errors:",
        "Errors :", "Errors\uff1a", "`Errors:`", "3. Errors:", "## Errors:", "\"Errors:\"",
    ][rng.integers(13)]  # fmt: skip
    before = [
        "", "The square moves left.\n", "the errors are easy to see.\n", "Errors: none\nNo.\n",
        "<think>Errors: causal_reasoning</think>", "There are no errors in the colors.\n",
    ][rng.integers(6)]  # fmt: skip
    kind = rng.integers(3)
    if kind == 0:
        expected = sorted(rng.choice(TYPES, rng.integers(1, 4), replace=False), key=TYPES.index)
        told = [spell(error, rng) for error in rng.permutation(expected)]
        denied = str(rng.choice([error for error in TYPES if error not in expected]))
        told.append(["", f"not {denied}", f"no {denied}"][rng.integers(3)])
        said = [part for part in told if part]
        body = [
            " " + ", ".join(said),
            "\n" + "".join(f"- {part}\n" for part in said),
            "\n" + "".join(f"{number}. {part}\n" for number, part in enumerate(said, 1)),
            " [" + ", ".join(said) + "]",
            " " + "; ".join(said) + ".",
        ][rng.integers(5)]
    elif kind == 1:
        expected = []
        body = [
            " none", " None.", " **none**", " n/a", " no errors", " nothing", "\nnone", " NONE",
            f" none (no {rng.choice(TYPES)})", f" None, there is no {rng.choice(TYPES)}.",
        ][rng.integers(10)]  # fmt: skip
    else:
        expected = None
        body = [" ", " spelling", " a wrong color", f" not {rng.choice(TYPES)}", " ???"][
            rng.integers(5)
        ]
    text = before + heading + body
    read = critique.parse_error_types(text)
    return None if read == expected else f"{text!r} is read as {read}, not as {expected}"


# ------------------------------------------------------------------------------
# Numbers on the command line: (stage, option, what is taken, what is refused)

NO_NUMBERS = ("nan", "inf", "-inf", "1e39", "x", "")
NUMBERS = (
    (generate, "--temperature", ("0", "0.7", "3"), ("-0.1", *NO_NUMBERS)),
    (generate, "--top-p", ("0.1", "1"), ("0", "1.1", "-1", *NO_NUMBERS)),
    (generate, "--max-new-tokens", ("1", "512"), ("0", "-3", "2.5", "9" * 12, *NO_NUMBERS)),
    (generate, "--seed", ("0", str(2**63 - 1)), ("-1", str(2**63), "1.5", *NO_NUMBERS)),
    (generate, "--frames", ("1", "64"), ("0", "-1", "1.5", *NO_NUMBERS)),
    (generate, "--limit", ("1", "4000"), ("0", "-1", *NO_NUMBERS)),
    (generate, "--max-bad", ("0", "0.5", "1"), ("-0.1", "1.5", *NO_NUMBERS)),
    (generate, "--spatial", ("0", "3"), ("-1", "0.5", *NO_NUMBERS)),
    (generate, "--temporal", ("0", "3"), ("-1", "0.5", *NO_NUMBERS)),
    (critique, "--max-new-tokens", ("1", "512"), ("0", "-3", *NO_NUMBERS)),
    (refine, "--max-new-tokens", ("1", "512"), ("0", "-3", *NO_NUMBERS)),
    (evaluate, "--seed", ("0", "7"), ("-1", str(2**64), *NO_NUMBERS)),
    (dpo, "--beta", ("0.1", "3"), ("0", "-0.1", *NO_NUMBERS)),
    (dpo, "--label-smoothing", ("0", "0.3"), ("0.5", "-0.1", "1", *NO_NUMBERS)),
    (dpo, "--nll-weight", ("0", "1"), ("-1", *NO_NUMBERS)),
    (dpo, "--lora-rank", ("1", "64"), ("0", "-4", "1.5", *NO_NUMBERS)),
    (dpo, "--lr", ("5e-7", "1e-3"), ("0", "-1e-4", "1e-50", *NO_NUMBERS)),
    (dpo, "--warmup", ("0", "0.1", "1"), ("-0.1", "1.5", *NO_NUMBERS)),
    (dpo, "--weight-decay", ("0", "0.1"), ("-0.1", *NO_NUMBERS)),
    (dpo, "--max-grad-norm", ("0", "1"), ("-1", *NO_NUMBERS)),
    (dpo, "--epochs", ("1", "3"), ("0", "-1", "0.5", *NO_NUMBERS)),
    (dpo, "--videos-per-step", ("1", "8"), ("0", "-1", *NO_NUMBERS)),
    (dpo, "--seed", ("0", "1"), ("-1", str(2**63), *NO_NUMBERS)),
    (dpo, "--save-every", ("1", "20"), ("0", "-1", *NO_NUMBERS)),
)


def number_in_its_range(directory: Path, rng) -> str | None:
    """Give an option a number inside its range, or outside."""
    stage, option, good, bad = NUMBERS[rng.integers(len(NUMBERS))]
    value = str(rng.choice([*good, *bad]))
    words = [f"{stage.__name__}.py", "--model", "m", "--input", "i", "--output", "o"]
    if stage is evaluate:
        words += ["--benchmark", "shapes"]
    said = io.StringIO()
    code = 0
    with mock.patch.object(sys, "argv", [*words, f"{option}={value}"]):
        try:
            with contextlib.redirect_stderr(said):
                stage.parse_args()
        except SystemExit as end:
            code = end.code
    if code != (0 if value in good else 2):
        return f"{stage.__name__}.py {option}={value} ends with {code}"
    if code and option not in said.getvalue().splitlines()[-1]:
        return f"{stage.__name__}.py {option}={value}: {said.getvalue()!r}"
    return None


# ------------------------------------------------------------------------------
# Outputs: a fake stage, whose rows are three about each of six videos


def make_groups(videos: list[str]) -> list:
    """Make the rows of videos, before they are written."""
    return [(video, [{"id": f"{video}/{n}", "video": video} for n in range(3)]) for video in videos]


def write_output(path: Path, videos: list[str], unreadable: set = frozenset(), again: tuple = ()):
    """Write an output as a stage does, or resume it; some videos cannot be read."""
    groups = make_groups(videos)
    meta = {"content": {"inputs": common.fingerprint(*videos)}, "process": 0, "finished": None}
    args = argparse.Namespace(overwrite=False, max_bad=1.0)
    with contextlib.redirect_stdout(io.StringIO()):
        out = common.Output(path, args, meta, groups, again)
        if out.finished:
            return
        for video, rows in out.left:
            for row in rows:
                row["text"] = f"an \u00e4nswer about {video}"
                if video in unreadable:
                    row |= {"dropped": "unreadable_video", "error": f"{video}: damaged"}
            out.write(rows)
        out.finish("answers")


VIDEOS = [f"{letter}.mp4" for letter in "abcdef"]


def resume_after_any_byte(directory: Path, rng) -> str | None:
    """Cut an unfinished output off at any byte: what an undisturbed run writes must come of it."""
    write_output(directory / "whole.jsonl", VIDEOS)
    path = directory / "rows.jsonl"
    write_output(path, VIDEOS)
    data = path.read_bytes()
    path.write_bytes(data[: rng.integers(len(data) + 1)])
    meta = common.read_json(common.meta_path(path))
    common.write_json(common.meta_path(path), meta | {"finished": None})
    write_output(path, VIDEOS)
    same = path.read_bytes() == (directory / "whole.jsonl").read_bytes()
    return None if same else "other bytes than those of an undisturbed run"


def read_again(directory: Path, rng) -> str | None:
    """Let some videos be unreadable at first, and then readable."""
    n_unreadable = int(rng.integers(1, 6))
    unreadable = set(rng.choice(VIDEOS, n_unreadable, replace=False).tolist())
    write_output(directory / "whole.jsonl", VIDEOS)
    path = directory / "rows.jsonl"
    write_output(path, VIDEOS, unreadable)
    before = path.read_bytes()
    write_output(path, VIDEOS)
    if path.read_bytes() != before:
        return "a finished output was changed without --retry-unreadable"
    write_output(path, VIDEOS, again=("unreadable_video",))
    same = path.read_bytes() == (directory / "whole.jsonl").read_bytes()
    return None if same else "other bytes than those of a run that could read all"


def edited_output(directory: Path, rng) -> str | None:
    """Change an unfinished output by hand: it is refused with its line, and left as it is."""
    path = directory / "rows.jsonl"
    write_output(path, VIDEOS)
    meta = common.read_json(common.meta_path(path))
    common.write_json(common.meta_path(path), meta | {"finished": None})
    rows = common.read_jsonl(path)
    number = int(rng.integers(len(rows) - 1))
    rows[number] |= [{"id": "x"}, {"video": "z.mp4"}][rng.integers(2)]
    common.write_jsonl(path, rows)
    before = path.read_bytes()
    message = refusal(write_output, path, VIDEOS)
    if path.read_bytes() != before:
        return "it was changed"
    return compare(message, f"line {number + 1}: not the row that belongs here")


def other_things_in_the_output(directory: Path, rng) -> str | None:
    """Put notes, scores or a link beside a trained model: --overwrite names and keeps them."""
    output = directory / "model"
    output.mkdir()
    own = ["config.json", "model.safetensors", "metrics.jsonl", "checkpoint-000020.state"]
    for name in own:
        (output / name).write_text("dpo.py's")
    others = rng.choice(["eval", "notes.txt", "round2", "pairs.jsonl", "link"], 2, replace=False)
    for name in others:
        if name in ("eval", "round2"):
            (output / name).mkdir()
        elif name == "link":
            (output / name).symlink_to(output / "config.json")
        else:
            (output / name).write_text("somebody's")
    common.write_json(common.meta_path(output), {"files": own[:2]})
    wrong = compare(refusal(dpo.clear, output, {}), *others)
    if wrong:
        return wrong
    names = {path.name for path in output.iterdir()}
    return None if names == {*own, *others} else f"left are {names}"


CASES = [
    wrong_value,
    half_a_character,
    whole_characters,
    duplicate,
    broken_json,
    verdict,
    number_in_its_range,
    resume_after_any_byte,
    read_again,
    edited_output,
    other_things_in_the_output,
]
