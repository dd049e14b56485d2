"""Odd rows, verdicts, numbers, outputs, checkpoints and texts: the cases of `python -m tools.fuzz`, a few of each."""

import pathlib
import sys

import numpy as np
import pytest

import common
import critique
import dpo
import test_house
from tools import odd_models, odd_rows
from vlm import families, files, limits, placement

CASES = {make.__name__: make for make in [*odd_rows.CASES, *odd_models.CASES]}
QUICK = [make.__name__ for make in odd_rows.CASES]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", QUICK)
def test_of_odd_rows_and_outputs_comes_what_must(name, seed, tmp_path):
    assert CASES[name](tmp_path, np.random.default_rng(seed)) is None


@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_of_odd_models_comes_what_must(name, tmp_path):
    for seed in range(2):
        (tmp_path / f"{seed}").mkdir()
        assert CASES[name](tmp_path / f"{seed}", np.random.default_rng(seed)) is None


def encode_as_it_is(tokenizer, text, template):
    """What the code did once: control tokens in a text are control tokens."""
    return tokenizer.encode(text + template, add_special_tokens=False)


# With what was mended taken out again, the case finds the fault
MENDS = {
    "half_a_character": (common, "find_surrogate", lambda _: None),
    "verdict": (critique, "NEGATION", r"(?!)"),
    "number_in_its_range": (common.argparse.ArgumentParser, "_get_value", lambda _, action, text: text),
    "resume_after_any_byte": (common.Output, "check_rows_belong", lambda *_: True),
    "edited_output": (common.Output, "check_rows_belong", lambda *_: True),
    "other_things_in_the_output": (dpo, "WORKING_FILES", ("*",)),
    "stray_shards": (files, "find_weights", lambda directory: sorted(directory.glob("*.safetensors"))),
    "not_finite": (placement, "check_finite", lambda *_: None),
    "attention_that_is_not_full": (limits, "check_attention", lambda *_: None),
    "dropout": (limits, "remove_dropout", lambda _: None),
    "too_many_frames": (limits, "count_positions", lambda _: sys.maxsize),
    "control_tokens_in_a_text": (families, "encode_text", encode_as_it_is),
    "control_tokens_as_words": (families, "encode_text", encode_as_it_is),
}


@pytest.mark.parametrize("name", MENDS)
def test_a_fault_that_is_put_back_is_found(name, tmp_path, monkeypatch):
    monkeypatch.setattr(*MENDS[name])
    found = []
    for seed in range(12):
        (tmp_path / f"{seed}").mkdir()
        try:
            found.append(CASES[name](tmp_path / f"{seed}", np.random.default_rng(seed)))
        except Exception as error:  # such as a traceback in the place of a refusal
            found.append(error)
        if found[-1] is not None:
            return
    raise AssertionError(f"not found in {len(found)} cases")


@pytest.mark.parametrize("stage", odd_rows.STAGES, ids=lambda stage: stage.__name__)
def test_each_numeric_option_has_a_range_and_is_tried(stage, monkeypatch):
    tried = {option for _, option, _, _ in odd_rows.NUMBERS}
    for action in test_house.list_options(stage, monkeypatch)._actions:
        assert action.type not in (int, float), action.dest
        if action.type not in (None, pathlib.Path):
            assert action.option_strings[0] in tried
