"""What the model is asked, in words, and how its verdicts are read.

default.py   the prompts and the error types, unless a file says otherwise
wording.py   a file of prompts: which a stage takes, and how they are handed on
check.py     what such a file may say
verdict.py   which errors a critique names

The stages use what is listed below, as prompts.NAME.
"""

from prompts.default import ERROR_TYPES
from prompts.verdict import parse_error_types, tell_if_no_verdict, tell_if_unreadable
from prompts.wording import (
    DEFAULT,
    OWN,
    Prompts,
    add_option,
    choose,
    describe_error_types,
    fill,
    hand_on,
    list_questions,
    list_texts,
    read,
    recorded,
    save_with_model,
    show,
)

__all__ = [
    "DEFAULT",
    "ERROR_TYPES",
    "OWN",
    "Prompts",
    "add_option",
    "choose",
    "describe_error_types",
    "fill",
    "hand_on",
    "list_questions",
    "list_texts",
    "parse_error_types",
    "read",
    "recorded",
    "save_with_model",
    "show",
    "tell_if_no_verdict",
    "tell_if_unreadable",
]
