"""A file of prompts: read, checked, and handed on from stage to stage.

As JSON, in which any part may be left out:

    {"questions": {"spatial": {"prompt": "... {aspect} ...", "aspects": ["...", "..."]},
                   "counting": {"prompt": "How many ...", "number": 2}},
     "answer": "... {question} ...",
     "critique": "... {question} ... {initial} ... {error_types} ...",
     "revision": "... {question} ... {initial} ... {critique} ...",
     "error_types": {"miscounting": "a wrong number", ...}}

The prompts that an output was made with are in its meta.json, under `prompts`, for the stages after
it; those that a model was made with may be in its directory, in prompts.json.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import common
from prompts import default
from prompts.check import FIELDS, check, check_questions, tell_no_fields

OWN = "prompts.json"  # in a model's directory: what it was made with


class Prompts(NamedTuple):
    """All prompts of a run, and its error types. As a dict it is what a file of prompts has."""

    # {kind: {"prompt": text, "aspects": [text, ...], "number": questions about each video}}
    questions: dict[str, dict]
    answer: str
    critique: str
    revision: str
    error_types: dict[str, str]  # {name: what it means}


DEFAULT = Prompts(
    questions={
        kind: {"prompt": default.QUESTION, "aspects": list(aspects), "number": default.NUMBER}
        for kind, aspects in default.ASPECTS.items()
    },
    answer=default.ANSWER,
    critique=default.CRITIQUE,
    revision=default.REVISION,
    error_types=default.ERROR_TYPES,
)

# ------------------------------------------------------------------------------
# From a prompt to what the model is asked


def fill(prompt: str, **texts: str) -> str:
    """Put texts into the fields of a prompt; all other braces, also those of texts, stay.

    >>> fill("{question} Reply as {json}.", question="Is {initial} right?")
    'Is {initial} right? Reply as {json}.'
    """
    fields = "|".join(texts)
    return re.sub(rf"\{{({fields})\}}", lambda match: texts[match[1]], prompt)


def describe_error_types(error_types: dict[str, str]) -> str:
    """Name all error types with their meanings: 'this (...), that (...) and those (...)'."""
    *first, last = [f"{name} ({meaning})" for name, meaning in error_types.items()]
    return f"{', '.join(first)} and {last}" if first else last


def list_questions(questions: dict[str, dict], counts: dict[str, int]) -> list[tuple]:
    """List what is asked for: [(kind, number, prompt), ...], the aspects of each kind in turn.

    Args:
        questions: of Prompts
        counts: number of questions of each kind, such as {"spatial": 3, "temporal": 3}
    """
    listed = []
    for kind, entry in questions.items():
        aspects = entry["aspects"] or [""]
        for number in range(counts[kind]):
            aspect = aspects[number % len(aspects)]
            listed.append((kind, number, fill(entry["prompt"], aspect=aspect)))
    return listed


def show(prompts: Prompts) -> str:
    """Write prompts as a file of them."""
    return json.dumps(prompts._asdict(), indent=1, ensure_ascii=False)


# ------------------------------------------------------------------------------
# Which prompts a stage takes


def add_option(parser):
    """Add --prompts."""
    parser.add_argument_group("the words").add_argument(
        "--prompts",
        metavar="FILE",
        help="prompts and error types in JSON; generate.py --prompts list prints the default ones "
        "as such a file (default: what the input was made with, else the model, else these)",
    )


def choose(args, inputs: list, settled: tuple = ()) -> Prompts:
    """Choose the prompts of a stage.

    Each part is that of the first of these which has it: the file of --prompts, what the inputs
    were made with (their meta.json), what the model was made with (its prompts.json), the default.

    Args:
        inputs: paths of outputs of earlier stages
        settled: parts that the inputs' rows were made with, so that no file can change them

    Raises:
        InputError: if the file is not valid, or a settled part is not the same everywhere
    """
    file = getattr(args, "prompts", None)
    given = {}
    if file:
        given = read(file)
        tell_no_fields(given, file)
    earlier = {}
    source = {}  # of each part, the first input that says it
    for path in inputs:
        made_with = recorded(path)
        for part in settled:
            check_settled(part, path, made_with, given, file)
            check_settled(part, path, made_with, earlier, source.get(part))
        for part in made_with:
            if part not in earlier:
                earlier[part] = made_with[part]
                source[part] = path
    chosen = merge(DEFAULT._asdict(), own_prompts(args.model), earlier, given)
    check_questions(chosen.questions, file or "prompts")
    return chosen


def hand_on(prompts: Prompts, args) -> dict:
    """Give what an output records of its prompts, for the stages after it.

    If nothing says with which prompt the questions of the input were asked, this does not either:
    the training must not take the default, or that of an external critic, for it.
    """
    handed_on = prompts._asdict()
    is_known = "answer" in recorded(args.input) or (args.prompts and "answer" in read(args.prompts))
    if not is_known:
        del handed_on["answer"]
    return handed_on


def check_settled(part: str, path, made_with: dict, other: dict, source):
    """Raise InputError if rows were made with another part than another source has."""
    if part in made_with and part in other and made_with[part] != other[part]:
        raise common.InputError(
            f"{path} was made with another {part!r} than {source} has, and its rows stay what "
            "they are: leave that part out, or make it anew with these prompts"
        )


def merge(*layers: dict) -> Prompts:
    """Lay prompts over each other: the last one that has a part decides. Kinds add up."""
    merged = {}
    questions = {}
    for layer in layers:
        merged |= layer
        for kind, entry in layer.get("questions", {}).items():
            before = questions.get(kind, {"prompt": default.QUESTION, "aspects": []})
            questions[kind] = before | entry
    return Prompts(**merged | {"questions": questions})


def read(path) -> dict:
    """Read a file of prompts -> the parts that it has; InputError names file, part and fault."""
    if f"{path}" == "list":
        raise common.InputError("--prompts list: generate.py prints them, without another option")
    return check(common.read_json(path), f"{path}")


def recorded(output) -> dict:
    """Read the prompts that an output was made with; {} if it has no meta.json that says it."""
    path = common.meta_path(output)
    if not path.exists():
        return {}
    meta = common.read_json(path)
    value = meta.get("prompts", {}) if isinstance(meta, dict) else {}
    return check(value, f"{path}, `prompts`")


def own_prompts(model) -> dict:
    """Read the prompts that a model was made with, or an adapter's base; {} if none are listed."""
    for directory in common.model_directories(model):
        if (directory / OWN).exists():
            return read(directory / OWN)
    return {}


def save_with_model(directory: Path, model, answer: str):
    """Write into the directory of a trained model which prompts it was made with.

    They are those of the model that it was trained from, with the prompt that its answers were
    trained behind.
    """
    common.write_json(directory / OWN, own_prompts(model) | {"answer": answer})


def spell_out(prompts: Prompts, part: str) -> dict[str, str]:
    """Spell out a part of the prompts as the model sees it -> {name: text}."""
    if part == "critique":
        listed = describe_error_types(prompts.error_types)
        return {part: fill(prompts.critique, error_types=listed)}
    if part != "questions":
        return {part: getattr(prompts, part)}
    counts = {kind: max(1, len(entry["aspects"])) for kind, entry in prompts.questions.items()}
    texts = {}
    for kind, number, text in list_questions(prompts.questions, counts):
        texts[f"questions/{kind}/{number}"] = text
    return texts


def list_texts(prompts: Prompts, file) -> list[tuple[str, str]]:
    """List the prompts of a file with where they are from, for vlm.check_model; [] without one."""
    if not file:
        return []
    empty = dict.fromkeys(FIELDS, " ")
    listed = []
    for part in ("questions", "answer", "critique", "revision"):
        for name, text in spell_out(prompts, part).items():
            listed.append((f"{file}, {name!r}", fill(text, **empty)))
    return listed
