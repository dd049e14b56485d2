"""The house itself: six files at the top, arrows that run one way, docstrings that are true, --help that helps."""

import argparse
import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import common
import critique
import dpo
import evaluate
import generate
import refine

ROOT = Path(common.__file__).parent
STAGES = (generate, critique, refine, dpo, evaluate)
NAMES = {stage.__name__ for stage in STAGES}
ROOMS = {"media", "outputs", "prompts", "vlm", "benchmarks", "shapes", "tools"}

# What a file may import of ours. Stages never import each other; shapes plays their parts, but imports no tool
MAY_IMPORT = {
    "common": set(),
    "media": {"common", "media"},
    "outputs": {"common", "outputs", "vlm"},
    "prompts": {"common", "prompts"},
    "vlm": {"common", "media", "vlm"},
    "benchmarks": {"common", "media", "benchmarks"},
    "stage": {"common", "media", "outputs", "prompts", "vlm", "benchmarks"},
    "shapes": {"common", "media", "outputs", "prompts", "vlm", "shapes"} | NAMES,
    "tools": {"common", "benchmarks"} | NAMES | ROOMS,
}


def imported(path):
    """The first parts of all names that a file imports, at any depth of it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def test_the_top_level_has_exactly_six_python_files():
    assert {path.stem for path in ROOT.glob("*.py")} == NAMES | {"common"}


def test_arrows_between_the_rooms_run_one_way():
    ours = NAMES | ROOMS | {"common"}
    files = [*ROOT.glob("*.py"), *(file for room in ROOMS for file in (ROOT / room).glob("*.py"))]
    for file in files:
        if file.parent != ROOT:
            room = file.parent.name
        elif file.stem == "common":
            room = "common"
        else:
            room = "stage"
        assert imported(file) & ours <= MAY_IMPORT[room], file


def test_inside_vlm_the_shared_prefix_stands_on_top():
    below = {
        "chat": set(),
        "families": {"chat"},
        "files": set(),
        "attention": set(),
        "processes": set(),
        "lora": {"processes"},
        "limits": {"families"},
        "placement": {"attention", "chat", "families", "files", "limits", "lora"},
        "prefix": {"attention", "chat", "families", "limits"},
        "sharding": {"files", "lora", "placement", "prefix", "processes"},  # several processes that train
    }
    for name, allowed in below.items():
        text = (ROOT / "vlm" / f"{name}.py").read_text()
        used = set(re.findall(r"^from vlm\.(\w+) import", text, re.MULTILINE))
        for line in re.findall(r"^from vlm import (.*)", text, re.MULTILINE):
            used |= set(line.split(", "))
        assert used <= allowed, name


@pytest.mark.parametrize(
    "name", ["media.sample", "prompts.verdict", "prompts.wording", "vlm.families", "vlm.placement"]
)
def test_the_examples_in_docstrings_are_true(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def list_options(stage, monkeypatch):
    """The options of a stage's parser, as argparse has them."""
    parsers = []

    def catch(parser, *_):
        parsers.append(parser)
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        stage.parse_args()
    return parsers[0]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_help_shows_every_default_and_fits_eighty_columns(stage, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser = list_options(stage, monkeypatch)
    said = parser.format_help()
    assert max(map(len, said.splitlines())) <= 80
    for action in parser._actions:
        words = " ".join(action.help.split())
        assert words
        if action.default not in (None, False, argparse.SUPPRESS):
            words += f" (default: {action.default})"  # argparse adds it, if the text does not have it
        assert words.replace("%%", "%") in " ".join(said.split()), action.dest


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_options_are_in_groups_with_names(stage, monkeypatch):
    parser = list_options(stage, monkeypatch)
    named = [group.title for group in parser._action_groups if group._group_actions]
    assert named[0] == "options"  # --help itself
    assert {"what is read and written", "the model", "the machine"} <= set(named)
    [general] = [group for group in parser._action_groups if group.title == "options"]
    assert [action.dest for action in general._group_actions] == ["help"]


@pytest.mark.slow
def test_a_stage_does_nothing_when_it_is_imported():
    code = "import sys; sys.argv = ['x']; import generate, critique, refine, dpo, evaluate"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
