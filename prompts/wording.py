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

import difflib
import json
import re
from pathlib import Path
from typing import NamedTuple

import common
from prompts import default
from prompts.verdict import parse_error_types

OWN = "prompts.json"  # in a model's directory: what it was made with

# The fields that a prompt must have, and those that it may have. Other braces are plain text.
REQUIRED = {
    "answer": ("question",),
    "critique": ("question", "initial"),
    "revision": ("question", "initial", "critique"),
}
OPTIONAL = {"answer": (), "critique": ("error_types",), "revision": ()}
FIELDS = ("aspect", "question", "initial", "critique", "error_types")


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


def tell_if_unknown(prompts: Prompts, model, parts: tuple):
    """Print a line if a model lists the prompts that it was made with, and these are others.

    parts: the names of those that the stage asks it
    """
    own = own_prompts(model)
    its_own = merge(DEFAULT._asdict(), own)
    unknown = []
    for part in parts:
        if part in own:
            known = set(spell_out(its_own, part).values())
            asked = spell_out(prompts, part)
            unknown += [name for name, text in asked.items() if text not in known]
    if unknown:
        print(
            f"{model} was not made with these prompts, and may not understand them: "
            f"{', '.join(unknown)} ({OWN} in it lists those that it was made with)"
        )


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


# ------------------------------------------------------------------------------
# What is checked


def read(path) -> dict:
    """Read a file of prompts -> the parts that it has; InputError names file, part and fault."""
    if f"{path}" == "list":
        raise common.InputError("--prompts list: generate.py prints them, without another option")
    return check(common.read_json(path), f"{path}")


def check(value, where: str) -> dict:
    """Check the parts that a file of prompts has -> the same parts.

    Raises:
        InputError: for a part or a field that does not exist, a field that is missing, or a value
            of the wrong type
    """
    if not isinstance(value, dict):
        raise common.InputError(f"{where}: an object is expected, not {type(value).__name__}")
    for part in value:
        if part not in Prompts._fields:
            raise common.InputError(
                f"{where}: there is no part {part!r}; the parts are {', '.join(Prompts._fields)}"
            )
    for part, required in REQUIRED.items():
        if part in value:
            check_prompt(value[part], f"{where}: {part}", required, OPTIONAL[part])
    for kind, entry in check_object(value.get("questions", {}), f"{where}: questions").items():
        check_kind(kind, entry, f"{where}: questions: {kind}")
    if "error_types" in value:
        check_error_types(value["error_types"], f"{where}: error_types")
    return value


def check_object(value, where: str) -> dict:
    """Check that a value is an object of JSON -> the value."""
    if not isinstance(value, dict):
        raise common.InputError(f"{where}: an object is expected, not {type(value).__name__}")
    return value


def check_text(value, where: str):
    """Check that a value is a text with a word in it."""
    if not isinstance(value, str) or not value.strip():
        raise common.InputError(f"{where}: a text is expected, not {json.dumps(value)[:60]}")


def check_prompt(value, where: str, required: tuple, optional: tuple):
    """Check the fields of a prompt; a word in braces that is nearly one is taken for a typo."""
    check_text(value, where)
    words = set(re.findall(r"\{(\w+)\}", value))
    for word in sorted(words - set(FIELDS)):
        if nearest := difflib.get_close_matches(word, FIELDS, n=1, cutoff=0.8):
            raise common.InputError(f"{where}: {{{word}}} is no field; is {{{nearest[0]}}} meant?")
    found = words & set(FIELDS)
    for field in required:
        if field not in found:
            raise common.InputError(f"{where}: the field {{{field}}} is missing")
    for field in sorted(found - {*required, *optional}):
        raise common.InputError(f"{where}: the field {{{field}}} is not known in this prompt")


def tell_no_fields(given: dict, file):
    """Print a line for each word in braces that is no field: it stays as it is."""
    texts = {part: given[part] for part in REQUIRED if part in given}
    for kind, entry in given.get("questions", {}).items():
        texts[f"questions: {kind}"] = entry.get("prompt", "")
    for name, text in texts.items():
        for word in sorted(set(re.findall(r"\{(\w+)\}", text)) - set(FIELDS)):
            print(f"{file}: {name}: {{{word}}} is no field, and stays as it is")


def check_kind(kind: str, entry, where: str):
    """Check what a file says of a kind of questions."""
    if not re.fullmatch(r"[A-Za-z][\w-]*", kind):
        raise common.InputError(
            f"{where}: the name of a kind has letters, digits, - and _, and begins with a letter"
        )
    for key, value in check_object(entry, where).items():
        if key == "prompt":
            check_prompt(value, f"{where}: prompt", (), ("aspect",))
        elif key == "aspects":
            if not isinstance(value, list):
                raise common.InputError(f"{where}: aspects: a list of texts is expected")
            for aspect in value:
                check_text(aspect, f"{where}: aspects")
        elif key != "number":
            raise common.InputError(f"{where}: there is no {key!r}: prompt, aspects, number")
        elif type(value) is not int or not 0 <= value <= 1000:
            raise common.InputError(f"{where}: number: a whole number from 0 to 1000 is expected")


def check_questions(questions: dict[str, dict], where: str):
    """Check that every kind, with what it takes from the default, can be asked about."""
    for kind, entry in questions.items():
        has_field = "{aspect}" in entry["prompt"]
        if has_field and not entry["aspects"]:
            raise common.InputError(
                f"{where}: questions: {kind}: its prompt has the field {{aspect}}, but there are "
                "no aspects to fill it with"
            )
        if entry["aspects"] and not has_field:
            raise common.InputError(
                f"{where}: questions: {kind}: the field {{aspect}} is missing in its prompt, so "
                "its aspects would not be asked for ('\"aspects\": []' takes them away)"
            )
        if "number" not in entry:
            raise common.InputError(
                f"{where}: questions: {kind}: number is missing: how many about each video"
            )


def check_error_types(value, where: str):
    """Check error types: a critic that names one, or all of them, must be understood."""
    for name, meaning in check_object(value, where).items():
        check_text(meaning, f"{where}: {name}")
        if parse_error_types(f"Errors: {name}", value) != [name]:
            raise common.InputError(
                f"{where}: {name!r} in a verdict could not be told from another name, or from "
                "the words of a verdict; take a name of letters and _, such as wrong_count"
            )
    if not value:
        raise common.InputError(f"{where}: at least one is needed")
    if parse_error_types(f"Errors: {', '.join(value)}", value) != list(value):
        raise common.InputError(f"{where}: the names cannot be told apart")
