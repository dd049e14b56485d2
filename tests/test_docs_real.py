"""docs/real-models.md, pasted: its commands, with the tiny model in place of the real one.

A directory is made in which the page's own names are there: InternVL2_5-8B-native is the tiny model, my_videos/ has a
few small clips. So the commands run as they stand, but for sizes and devices (SMALLER). What cannot be run here is in
LEFT_OUT, each with its reason.
"""

import contextlib
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import small_benchmarks
from shapes import world

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "real-models.md").read_text()
STAGES = ("generate.py", "critique.py", "refine.py", "dpo.py", "evaluate.py")

# How a command begins -> why it is not run
LEFT_OUT = {
    "git clone": "the repository is there already",
    "python3 -m venv": "the packages are there already",
    "source": "the packages are there already",
    "pip install": "the packages are there already",
    "nvidia-smi": "there is no GPU",
    "hf download": "gigabytes from the network",
    "mkdir -p videos/frames && tar": "unpacks what was downloaded",
    "(cd MVBench": "unpacks what was downloaded",
    "python -m tools.convert": "a published checkpoint; test_convert.py converts small ones",
    "python -m tools.rehearse": "a model of true size; test_rehearse.py runs it with a small one",
    "python -m tools.clips": "clips from the network; rendered ones lie there in their place",
}

# What is written on the page -> what is run: fewer videos, rounds and processes, and a CPU
SMALLER = (
    (r"--limit \d+", "--limit 2"),
    (r"--skip \d+", "--skip 2"),
    (r"--shard 0/75", "--shard 0/4"),
    (r"--rounds 4", "--rounds 2"),
    (r"--lrs( \d+e-\d+)+", "--lrs 5e-6 5e-6"),
    (r"--(train-)?processes 8 ", ""),
    (r"cuda:[\w$:,]+", "cpu"),
    (r"\bADAPTER DST\b", "runs/hand/round1/model runs/merged"),
)


# ------------------------------------------------------------------------------
# The page


def blocks():
    """The page's blocks of commands; the sketch of a directory (a block whose first line is one name) is none."""
    found = re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [block for block in found if not re.fullmatch(r"\S+/", block.splitlines()[0])]


def split(block):
    """A block's commands, one string each: lines that end in a backslash, and a text up to its END, are joined."""
    text = re.sub(r"\\\n\s*", "", block)
    commands = []
    for line in text.splitlines(keepends=True):
        is_open = commands and "<<'END'" in commands[-1] and not commands[-1].endswith("\nEND\n")
        if is_open:
            commands[-1] += line
        else:
            commands.append(line)
    return [command.strip() for command in commands if command.strip()]


def reason_to_leave_out(command):
    for start, reason in LEFT_OUT.items():
        if command.startswith(start):
            return reason
    return None


def make_smaller(command):
    for written, run in SMALLER:
        command = re.sub(written, run, command)
    return command


# ------------------------------------------------------------------------------
# Does all of it parse?


def stage_commands():
    """The words of each command of a stage, with 1 for each $variable."""
    found = []
    for block in blocks():
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            match = re.match(r"\s*python (\w+\.py .*)", line)
            if match:
                text = re.sub(r"\$tune\b", "--tune lora", match[1])
                text = re.sub(r"\$\w+", "1", text).split(">")[0]
                found.append(shlex.split(text, comments=True))
    return found


@pytest.mark.parametrize("words", stage_commands(), ids=" ".join)
def test_the_stage_knows_the_options(words, monkeypatch):
    stage = importlib.import_module(words[0].removesuffix(".py"))
    monkeypatch.setattr("sys.argv", words)
    stage.parse_args()  # SystemExit for an option that is unknown or missing


def test_every_stage_is_on_the_page():
    assert {words[0] for words in stage_commands()} == set(STAGES)


def test_each_command_is_one_that_can_be_run_or_has_a_reason_not_to():
    for block in blocks():
        for command in split(block):
            can_run = command.startswith(("python ", "bash tools/loop.sh"))
            assert can_run or reason_to_leave_out(command), command


def test_no_reason_is_left_over():
    commands = [command for block in blocks() for command in split(block)]
    for start in LEFT_OUT:
        assert any(command.startswith(start) for command in commands), start


# ------------------------------------------------------------------------------
# Does it run?


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A directory like the reader's: the repository's files, the page's models and its videos."""
    directory = tmp_path_factory.mktemp("machine")
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".git") and not path.name.startswith("."):
            (directory / path.name).symlink_to(path)
    (directory / "InternVL2_5-8B-native").symlink_to(ROOT / "shapes" / "model")

    number = 0
    for name in ("my_videos", "more_videos", "videos/star", "videos/vidal", "videos/webvid"):
        (directory / name).mkdir(parents=True)
        for clip in ("one.mp4", "two.mp4", "three.mp4", "four.mp4"):
            world.render(world.make_scene(0, "round1", number), directory / name / clip)
            number += 1
    (directory / "runs" / "clips").mkdir(parents=True)
    (directory / "runs" / "clips" / "bikes.mp4").symlink_to(directory / "my_videos" / "one.mp4")
    (directory / "runs" / "clips" / "park.mp4").symlink_to(directory / "my_videos" / "two.mp4")
    small_benchmarks.write_mvbench(directory / "MVBench")
    return directory


def run_in_process(command, monkeypatch):
    """Run `python STAGE.py ...` or `python -m MODULE ...`, where another process would take seconds to begin."""
    text, _, output = command.partition(">")
    words = shlex.split(text, comments=True)[1:]
    with contextlib.ExitStack() as stack:
        if output:
            file = stack.enter_context(Path(output.strip()).open("w"))
            stack.enter_context(contextlib.redirect_stdout(file))
        if words[0] == "-m":
            monkeypatch.setattr("sys.argv", words[1:])
            importlib.import_module(words[1]).main()
        else:
            monkeypatch.setattr("sys.argv", words)
            importlib.import_module(words[0].removesuffix(".py")).main()


def run_in_shell(command, directory):
    """Run a command as it stands -> what it prints; python is the one of these tests."""
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    shell = subprocess.run(
        ["bash", "-euc", command], cwd=directory, env=environment, check=False, capture_output=True, text=True
    )
    assert shell.returncode == 0, f"{command}\n{shell.stdout}\n{shell.stderr[-3000:]}"
    return shell.stdout


def run(command, directory, monkeypatch):
    """Run a command of the page, made smaller; loop.sh by the commands that --dry-run prints."""
    command = make_smaller(command)
    if command.startswith("bash tools/loop.sh"):
        printed = run_in_shell(command.replace("tools/loop.sh", "tools/loop.sh --dry-run"), directory)
        commands = [line for line in split(printed) if line.startswith("python ")]
        assert {line.split()[1] for line in commands} >= {"generate.py", "critique.py", "refine.py", "dpo.py"}
        for line in commands:
            run_in_process(line, monkeypatch)
    elif command.startswith("python "):
        run_in_process(command, monkeypatch)
    else:
        run_in_shell(command, directory)


def test_the_first_round_by_hand(machine, monkeypatch):
    monkeypatch.chdir(machine)
    [block] = [block for block in blocks() if "runs/hand/round1/critiques.jsonl" in block and "dpo.py" in block]
    for command in split(block):
        run(command, machine, monkeypatch)
    assert (machine / "runs" / "hand" / "round1" / "model" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_the_page_from_top_to_bottom(machine, monkeypatch):
    monkeypatch.chdir(machine)
    for block in blocks():
        for command in split(block):
            if not reason_to_leave_out(command):
                run(command, machine, monkeypatch)
    for round in (1, 2):
        assert (machine / "runs" / "eight" / f"round{round}" / "model" / "adapter_model.safetensors").exists()
