"""Odd models, rows, verdicts, numbers and outputs: the right result, or a refusal in one line that says what.

The cases are those of `python -m tools.fuzz`: each knows from how it was made what must come of it.
"""

import argparse
import functools
import sys
from pathlib import Path

import numpy as np
import pytest

import common
import evaluate
import outputs
import prompts
from tools import fuzz, odd, odd_models, odd_rows, odd_runs
from vlm import chat, files, limits, placement

MODULES = (odd_models, odd_rows, odd_runs)
CASES = {make.__name__: make for module in MODULES for make in module.CASES}


@pytest.fixture(scope="module", autouse=True)
def made_once():
    """What the processes of all cases share."""
    odd_models.small_model()
    odd_rows.byte_level()


def try_case(name, directory, seed):
    """Make a case and compare, in a process of its own: a hang or a crash is an outcome, too."""
    directory.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    return fuzz.run_apart(functools.partial(fuzz.try_known, CASES[name], rng=rng), directory)


@pytest.mark.parametrize("name", CASES)
def test_what_must_come_of_it_comes(name, tmp_path):
    assert try_case(name, tmp_path, 0) == "right"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["verdict", "any_number"])  # of many forms, and quick
def test_what_has_many_forms_is_tried_more_often(name, seed, tmp_path):
    assert try_case(name, tmp_path, seed) == "right"


# ------------------------------------------------------------------------------
# With a mend taken out again, its case finds the fault


def read_all(directory):
    """Take every *.safetensors file for one of the model's, whatever the index says."""
    return sorted(Path(directory).glob("*.safetensors"))


def encode_plainly(tokenizer, text, template):
    """Take a control token's name for the token."""
    return tokenizer.encode(text + template, add_special_tokens=False)


def nothing(*_, **__):
    """Check nothing, and find nothing."""


def any_float(*_, **__):
    """Let an option have any value."""
    return float


MENDS = {
    "stray_shards": (files, "find_weights", read_all),
    "not_finite": (placement, "check_finite", nothing),
    "other_attention": (limits, "check_attention", nothing),
    "dropout": (limits, "remove_dropout", nothing),
    "too_many_frames": (limits, "check_frames", nothing),
    "tensor_twice": (placement, "check_tensors", nothing),
    "half_a_character": (common, "find_surrogate", nothing),
    "no_seconds": (common, "find_wrong_value", nothing),
    "control_tokens_in_a_text": (chat, "encode_text", encode_plainly),
    "unusable_template": (chat, "check_chat_template", nothing),
    "verdict": (prompts.verdict, "NEGATION", "(?!)"),  # which matches nowhere
    "any_number": (common, "number_between", any_float),
    "cut_anywhere": (outputs.Output, "check_rows_belong", lambda *_: True),
    "read_later": (outputs.Output, "put_in_order", nothing),
    "joined_shards": (evaluate, "check_one_run", nothing),
    "overwritten_directory": (outputs.checkpoints, "list_own", lambda output: sorted(output.iterdir())),
    "output_below_the_model": (common, "MODEL_FILES", ("*",)),
}


@pytest.mark.parametrize("name", MENDS)
def test_a_fault_that_is_put_back_is_found(name, tmp_path, monkeypatch):
    monkeypatch.setattr(*MENDS[name])
    for seed in range(30):
        outcome = try_case(name, tmp_path / f"{seed}", seed)
        if outcome.startswith("FAULT"):
            return
    pytest.fail("no case finds it")


# ------------------------------------------------------------------------------
# The cases themselves


def refuse(text):
    """Give a function that refuses what it is given."""

    def act():
        raise common.InputError(text)

    return act


def test_a_case_that_comes_out_otherwise_is_a_fault():
    assert odd.check(odd.Gives(lambda: 7, 7)) is None
    assert odd.check(odd.Gives(lambda: 8, 7)) == "gives 8, not 7"
    assert odd.check(odd.Gives(refuse("no"), 7)) == "refused: no"
    assert odd.check(odd.Refused(refuse("a.json: no"), ("a.json", "no"))) is None
    assert odd.check(odd.Refused(refuse("no"), ("a.json", "no"))) == "refused without ['a.json']: no"
    assert odd.check(odd.Refused(refuse("no\nmore"), ("no",))) == "refused in several lines: no\nmore"
    assert odd.check(odd.Refused(lambda: 7, ("no",))) == "taken, where it must be refused: ('no',)"


@pytest.mark.parametrize("stage", odd_runs.STAGES, ids=lambda stage: stage.__name__)
def test_every_numeric_option_of_a_stage_is_tried(stage, monkeypatch):
    def catch(parser, *_):
        raise SystemExit(",".join(a.dest for a in parser._actions if a.type not in (None, Path)))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", catch)
    monkeypatch.setattr(sys, "argv", ["stage.py"])
    with pytest.raises(SystemExit) as end:
        stage.parse_args()
    numeric = {dest.replace("_", "-") for dest in end.value.code.split(",")}
    numeric -= {"frame-tokens"}  # two numbers, which tests/test_families.py tries
    tried = set()
    for option, (stages, *_) in (odd_runs.WHOLE_NUMBERS | odd_runs.NUMBERS).items():
        if stage in stages:
            tried.add(option)
    assert tried == numeric


def test_seconds_that_no_float_can_hold_are_refused(tmp_path):
    # 10**400 is a whole number of Python, but more than any float, which end at 1.8e308
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"id": "a", "video": "v", "end": {10**400}}}\n')
    with pytest.raises(common.InputError, match="rows.jsonl, line 1: 'end' is 1000.*, not seconds"):
        common.read_jsonl(path)
