"""What a file of prompts may say: its parts, the fields of a prompt, names that can be read back.

`where` is the place in a file, for the message of an InputError.
"""

import difflib
import json
import re

import common
from prompts.verdict import parse_error_types

PARTS = ("questions", "answer", "critique", "revision", "error_types")
# The fields that a prompt must have, and those that it may have. Other braces are plain text.
REQUIRED = {
    "answer": ("question",),
    "critique": ("question", "initial"),
    "revision": ("question", "initial", "critique"),
}
OPTIONAL = {"answer": (), "critique": ("error_types",), "revision": ()}
FIELDS = ("aspect", "question", "initial", "critique", "error_types")


def check(value, where: str) -> dict:
    """Check the parts that a file of prompts has -> the same parts.

    Raises:
        InputError: for a part or a field that does not exist, a field that is missing, or a value
            of the wrong type
    """
    if not isinstance(value, dict):
        raise common.InputError(f"{where}: an object is expected, not {type(value).__name__}")
    for part in value:
        if part not in PARTS:
            raise common.InputError(
                f"{where}: there is no part {part!r}; the parts are {', '.join(PARTS)}"
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
    for key in check_object(entry, where):
        if key not in ("prompt", "aspects", "number"):
            raise common.InputError(f"{where}: there is no {key!r}: prompt, aspects, number")
    if "prompt" in entry:
        check_prompt(entry["prompt"], f"{where}: prompt", (), ("aspect",))
    if not isinstance(entry.get("aspects", []), list):
        raise common.InputError(f"{where}: aspects: a list of texts is expected")
    for aspect in entry.get("aspects", []):
        check_text(aspect, f"{where}: aspects")
    number = entry.get("number", 0)
    if type(number) is not int or not 0 <= number <= 1000:
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
