"""The driver, tools/loop.sh: which commands it prints, that they are what it runs, and what it needs before it starts.

Stages run as processes of their own, forked from one that has imported everything (forked.py), so that they start fast.
"""

import argparse
import doctest
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import types
from pathlib import Path

import pytest
import torch
import transformers

import common
import critique
import dpo
import evaluate
import generate
import outputs
import refine
from conftest import MODEL
from forked import forked_python
from shapes import world
from tools import clips, memory, needs

ROOT = Path(__file__).parent.parent
STAGES = {f"{stage.__name__}.py": stage for stage in (generate, critique, refine, dpo, evaluate)}


def loop(*words, env=None):
    """Run tools/loop.sh to its end -> the process, with what it printed."""
    command = ["bash", "tools/loop.sh", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def printed_commands(text):
    """The commands that the driver printed, as they are."""
    return [line for line in text.splitlines() if line.startswith("python ")]


# ------------------------------------------------------------------------------
# What it prints

LORA = """\
python -m tools.needs --model m --videos my\\ videos --run r --rounds 2 --limit 5 --prompts README.md -- --tune lora
# round 1
python generate.py --model m --input my\\ videos --output r/round1/responses.jsonl --seed 1 --skip 0 --limit 5 \
--prompts README.md
python critique.py --model m --input r/round1/responses.jsonl --output r/round1/critiques.jsonl --prompts README.md
python refine.py --model m --input r/round1/critiques.jsonl --output r/round1/pairs.jsonl --prompts README.md \
--gate none
python dpo.py --model m --input r/round1/pairs.jsonl --output r/round1/model --seed 1 --tune lora
# round 2
python generate.py --model r/round1/model --input my\\ videos --output r/round2/responses.jsonl --seed 2 --skip 5 \
--limit 5 --prompts README.md
python critique.py --model r/round1/model --input r/round2/responses.jsonl --output r/round2/critiques.jsonl \
--prompts README.md
python refine.py --model r/round1/model --input r/round2/critiques.jsonl --output r/round2/pairs.jsonl \
--prompts README.md --gate none
python dpo.py --model r/round1/model --input r/round2/pairs.jsonl --output r/round2/model --seed 2 --tune lora
python -m tools.report r
python -m tools.page r
"""

OWN_VIDEOS = """\
python -m tools.needs --model m --videos a/round\\{round\\} b\\{round\\} --run r --rounds 2 --limit 5 \
--benchmark mvbench d --
python evaluate.py --benchmark mvbench --model m --input d --output r/base/eval
# round 1
python generate.py --model m --input a/round1 b1 --output r/round1/responses.jsonl --seed 1 --limit 5
python critique.py --model m --input r/round1/responses.jsonl --output r/round1/critiques.jsonl
python refine.py --model m --input r/round1/critiques.jsonl --output r/round1/pairs.jsonl
python dpo.py --model m --input r/round1/pairs.jsonl --output r/round1/model --seed 1 --lr 1e-4
python evaluate.py --benchmark mvbench --model r/round1/model --input d --output r/round1/eval
# round 2
python generate.py --model r/round1/model --input a/round2 b2 --output r/round2/responses.jsonl --seed 2 --limit 5
python critique.py --model r/round1/model --input r/round2/responses.jsonl --output r/round2/critiques.jsonl
python refine.py --model r/round1/model --input r/round2/critiques.jsonl --output r/round2/pairs.jsonl
python dpo.py --model r/round1/model --input r/round2/pairs.jsonl --output r/round2/model --seed 2 --lr 5e-5
python evaluate.py --benchmark mvbench --model r/round2/model --input d --output r/round2/eval
python -m tools.report r
python -m tools.page r
"""

TINY_WORLD = """\
python -m tools.needs --model m --videos v --run r --rounds 1 --frames 4 --benchmark shapes d -- --beta 3
python evaluate.py --benchmark shapes --model m --input d --output r/base/eval --frames 4
python critique.py --model m --input r/base/eval/predictions.jsonl --output r/base/eval/critiques.jsonl --frames 4
python refine.py --model m --input r/base/eval/critiques.jsonl --output r/base/eval/pairs.jsonl --frames 4
# round 1
python generate.py --model m --input v --output r/round1/responses.jsonl --seed 1 --frames 4
python critique.py --model m --input r/round1/responses.jsonl --output r/round1/critiques.jsonl --frames 4
python refine.py --model m --input r/round1/critiques.jsonl --output r/round1/pairs.jsonl --frames 4
python dpo.py --model m --input r/round1/pairs.jsonl --output r/round1/model --seed 1 --frames 4 --beta 3
python evaluate.py --benchmark shapes --model r/round1/model --input d --output r/round1/eval --frames 4
python critique.py --model r/round1/model --input r/round1/eval/predictions.jsonl \
--output r/round1/eval/critiques.jsonl --frames 4
python refine.py --model r/round1/model --input r/round1/eval/critiques.jsonl --output r/round1/eval/pairs.jsonl \
--frames 4
python -m tools.report r
python -m tools.page r
"""

REPLAYED = """\
python -m tools.needs --model m --videos v --run r --rounds 2 --temperature 0 --critic c --
# round 1
python generate.py --model m --input v --output r/round1/responses.jsonl --seed 1 --temperature 0
python critique.py --model c --input r/round1/responses.jsonl --output r/round1/critiques.jsonl
python refine.py --model c --input r/round1/critiques.jsonl --output r/round1/pairs.jsonl
python dpo.py --model m --input r/round1/pairs.jsonl --output r/round1/model --seed 1
# round 2
python generate.py --model r/round1/model --input v --output r/round2/responses.jsonl --seed 2 --temperature 0
python critique.py --model c --input r/round2/responses.jsonl --output r/round2/critiques.jsonl
python refine.py --model c --input r/round2/critiques.jsonl --output r/round2/pairs.jsonl
python dpo.py --model m --input r/round1/pairs.jsonl r/round2/pairs.jsonl --output r/round2/model --seed 2
python -m tools.report r
python -m tools.page r
"""

# README.md stands in for a file of prompts, which nobody reads here
PRINTED = [
    ("--videos 'my videos' --rounds 2 --limit 5 --gate none --prompts README.md -- --tune lora", LORA),
    ("--videos a/round{round} b{round} --rounds 2 --limit 5 --lrs 1e-4 5e-5 --benchmark mvbench d", OWN_VIDEOS),
    ("--videos v --rounds 1 --frames 4 --benchmark shapes d --beside -- --beta 3", TINY_WORLD),
    ("--videos v --rounds 2 --critic c --replay --temperature 0", REPLAYED),
]
PRINTED_NAMES = ["pool", "own videos", "tiny world", "replay"]


@pytest.mark.parametrize("options, expected", PRINTED, ids=PRINTED_NAMES)
def test_dry_run_prints_every_command_in_order_and_runs_none(options, expected):
    done = loop("--model", "m", "--run", "r", "--dry-run", *shlex.split(options))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected
    assert not (ROOT / "r").exists()


@pytest.mark.parametrize("options, expected", PRINTED, ids=PRINTED_NAMES)
def test_every_command_is_understood_by_what_it_starts(options, expected, monkeypatch):
    for command in printed_commands(expected):
        words = shlex.split(command)[1:]
        if words[:2] == ["-m", "tools.needs"]:
            monkeypatch.setattr("sys.argv", words[1:])
            args, training = needs.parse_args()
            needs.parse_training(args, training)
        elif words[0] != "-m":
            monkeypatch.setattr("sys.argv", words)
            STAGES[words[0]].parse_args()  # SystemExit for an option that is unknown or missing


def test_tokens_of_frames_go_to_every_stage():
    options = ["--model", "m", "--run", "r", "--videos", "v", "--rounds", 1, "--benchmark", "shapes", "d"]
    done = loop(*options, "--frames", 4, "--frame-tokens", 16, 40, "--dry-run")
    commands = [line for line in done.stdout.splitlines() if line.startswith("python")][:-2]  # report, page
    assert len(commands) == 11
    assert all("--frames 4 --frame-tokens 16 40" in line for line in commands)
    done = loop(*options, "--frame-tokens", 16, "--dry-run")
    assert "--frame-tokens takes 2 value(s), not 1" in done.stderr


def test_processes_that_answer_and_processes_that_train_are_started_by_torchrun():
    words = ("--model", "m", "--run", "r", "--videos", "v", "--rounds", 1, "--dry-run")
    lines = loop(*words, "--processes", 4, "--train-processes", 2).stdout.splitlines()
    assert "--processes 4 --train-processes 2" in lines[0]  # tools.needs is told of both
    for stage, n in (("generate", 4), ("critique", 4), ("refine", 4), ("dpo", 2)):
        start = f"torchrun --standalone --nproc-per-node {n} {stage}.py "
        assert [line for line in lines if line.startswith(start)], stage

    lines = loop(*words, "--processes", 4).stdout.splitlines()
    assert [line for line in lines if line.startswith("python dpo.py ")]


def test_an_option_of_dpo_that_we_give_too_is_overruled_by_the_users(monkeypatch):
    done = loop("--model", "m", "--run", "r", "--videos", "v", "--rounds", 1, "--dry-run", "--", "--seed", "7")
    [command] = [line for line in printed_commands(done.stdout) if "dpo.py" in line]
    monkeypatch.setattr("sys.argv", shlex.split(command)[1:])
    assert dpo.parse_args().seed == 7


NO_FILE = "--prompts no.json: no such file; python generate.py --prompts list > FILE writes the default ones"


@pytest.mark.parametrize(
    "options, complaint",
    [
        ("", "--model M is missing"),
        ("--model m --run r", "--videos DIR is missing"),
        ("--model m --videos v", "--run RUN is missing"),
        ("--model m --videos v --run", "--run takes 1 value(s), not 0"),
        ("--model m n --videos v --run r", "--model takes 1 value(s), not 2"),
        ("--model m --videos v --run r --beside yes", "--beside takes 0 value(s), not 1"),
        ("--model m --videos v --run r --lrs", "--lrs takes 1 value(s), not 0"),
        ("--model m --videos v --run r --rounds 1 --lrs 1.2.3", "--lrs 1.2.3: it is no number"),
        ("--model m --videos v --run r --videos w", "--videos is there twice"),
        ("--model m --videos v --run r --overwrite", "--overwrite would lose finished rounds: begin another --run"),
        ("--model m --videos v --run r --benchmark shapes", "--benchmark takes 2 value(s), not 1"),
        ("--model m --videos v --run r --beta 3", "--beta is no option here (those of dpo.py stand after --)"),
        ("--model m --videos v --run r --rounds 0", "--rounds 0: it must be a whole number from 1 on"),
        ("--model m --videos v --run r --limit many", "--limit many: it must be a whole number from 1 on"),
        ("--model m --videos v --run r --gate half", "--gate half: critic or none"),
        ("--model m --videos v --run r --prompts no.json", NO_FILE),
        ("--model m --videos v --run r --rounds 3 --lrs 1e-4 1e-5", "--lrs has 2 for 3 rounds"),
        ("--model m --videos v --run r --rounds 1 --lrs high", "--lrs high: it is no number"),
        ("--model m --videos v w{round} --run r", "--videos: {round} in all of the DIRs or in none"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(options, complaint):
    done = loop(*shlex.split(options))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"loop.sh: error: {complaint}; bash tools/loop.sh --help shows all options\n"


def shapes_loop(tmp_path, *words, **environment):
    """What `make loop` would run: python, which would make the videos, does nothing."""
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\n")
    stub.chmod(0o755)
    own = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | environment
    command = ["bash", "shapes/loop.sh", *words, "--dry-run"]
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=True).stdout


def test_make_loop_has_a_recipe_and_a_world(tmp_path):
    usual = shapes_loop(tmp_path, "test", "runs/loop")
    assert "--output runs/loop/round1/responses.jsonl" in usual
    assert "--lr 2e-5 --beta 3 --epochs 2" in usual

    recipe = tmp_path / "mine.txt"
    recipe.write_text("# one round\n--rounds 1 --lrs 7e-5\n-- --beta 1  # a small one\n")
    own = shapes_loop(tmp_path, "dev", "", RECIPE=str(recipe), SEED="7")
    assert "--input runs/shapes-7/round1 --output runs/loop-7-mine/round1/responses.jsonl" in own
    assert "--input runs/shapes-7/dev --output runs/loop-7-mine/base/eval" in own
    assert "--lr 7e-5 --beta 1" in own
    assert "round2" not in own

    with pytest.raises(subprocess.CalledProcessError) as refused:
        shapes_loop(tmp_path, "dev", "", RECIPE="no_such.txt")
    assert "RECIPE=no_such.txt: no such file" in refused.value.stderr


def test_help_names_every_option():
    done = loop("--help")
    assert (done.returncode, done.stderr) == (0, "")
    script = (ROOT / "tools" / "loop.sh").read_text()
    taken = re.findall(r"^    (--[a-z-]+)\) (?!refuse)", script, re.MULTILINE)
    assert len(taken) == 19
    for option in taken:
        assert option in done.stdout
    assert "#" not in done.stdout


# ------------------------------------------------------------------------------
# What it runs


@pytest.fixture(scope="module")
def env(tmp_path_factory, model):
    """An environment in which `python` starts fast. The model has been loaded, so that its classes are imported."""
    with forked_python(tmp_path_factory.mktemp("python")) as environment:
        yield environment


def start(*words, env):
    """Start tools/loop.sh as a process group of its own."""
    command = ["bash", "tools/loop.sh", *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True, process_group=0)


def wait_for(*paths):
    end = time.time() + 60
    while not all(path.exists() for path in paths):
        assert time.time() < end, f"none of {paths} in a minute"
        time.sleep(0.01)


def check_that_it_was_stopped(output):
    """Check that the process that has an output is gone, or is gone in a moment, and that it did not finish."""
    pid = int(outputs.process_path(output).read_text())
    end = time.time() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.time() < end, f"process {pid} still writes {output}"
        time.sleep(0.01)
    assert common.read_keys(common.meta_path(output), "finished") == [None]


def test_replay_trains_the_first_model_anew_on_the_pairs_of_all_rounds(tmp_path, env):
    for name in ("round1", "round2"):
        world.write_split(tmp_path, name, 2, seed=0)
    options = ["--model", MODEL, "--videos", tmp_path / "round{round}", "--run", tmp_path / "run", "--rounds", 2]
    done = loop(*options, "--replay", "--gate", "none", "--", "--lr", "1e-4", "--beta", 3, env=env)
    assert done.returncode == 0, done.stderr

    inputs = [tmp_path / "run" / name / "pairs.jsonl" for name in ("round1", "round2")]
    [arguments] = common.read_keys(tmp_path / "run" / "round2" / "model.meta.json", "arguments")
    assert (arguments["model"], arguments["input"]) == (str(MODEL), [str(path) for path in inputs])
    n_pairs = sum("chosen" in row for path in inputs for row in common.read_jsonl(path))
    assert f"on the {n_pairs} pairs of" in (tmp_path / "run" / "round2" / "model" / "README.md").read_text()
    # The questions of round 2 were answered by the model of round 1
    [arguments] = common.read_keys(tmp_path / "run" / "round2" / "responses.jsonl.meta.json", "arguments")
    assert arguments["model"] == str(tmp_path / "run" / "round1" / "model")


# Its revisions are made of critiques that say nothing, but some differ from the answers
PROMPTS = {"critique": "Their answer: {initial}\nQuestion: {question}\nLook closely. {error_types}"}


@pytest.mark.slow
def test_two_rounds_of_lora_without_the_gate_killed_resumed_and_pasted(tmp_path, env):
    world.write_split(tmp_path, "round1", 4, seed=0)
    common.write_json(tmp_path / "prompts.json", PROMPTS)
    options = ["--model", MODEL, "--videos", tmp_path / "round1", "--limit", 2, "--rounds", 2]
    options += ["--gate", "none", "--prompts", tmp_path / "prompts.json"]
    training = ["--", "--tune", "lora", "--lr", "1e-3", "--beta", 3]

    killed = start(*options, "--run", tmp_path / "killed", *training, env=env)
    wait_for(tmp_path / "killed" / "round2" / "critiques.jsonl")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "round2" / "model.meta.json").exists()
    resumed = loop(*options, "--run", tmp_path / "killed", *training, env=env)
    assert resumed.returncode == 0, resumed.stderr
    assert "round1/model is finished; nothing to do" in resumed.stdout

    # What --dry-run prints, pasted line by line
    dry = loop(*options, "--run", tmp_path / "pasted", "--dry-run", *training)
    paste = ["bash", "-ec", dry.stdout]
    pasted = subprocess.run(paste, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert pasted.returncode == 0, pasted.stderr
    assert printed_commands(resumed.stdout) == [
        line.replace(str(tmp_path / "pasted"), str(tmp_path / "killed")) for line in printed_commands(dry.stdout)
    ]
    products = ["responses.jsonl", "critiques.jsonl", "pairs.jsonl", "model/adapter_model.safetensors"]
    for product in [f"round{number}/{name}" for number in (1, 2) for name in products]:
        assert (tmp_path / "pasted" / product).read_bytes() == (tmp_path / "killed" / product).read_bytes(), product

    # Every round had two of the four videos, and no answer was kept back by the critic
    taken = [
        common.read_json(tmp_path / "pasted" / f"round{n}" / "responses.jsonl.meta.json")["videos"] for n in (1, 2)
    ]
    assert sorted(taken[0] + taken[1]) == [f"round1_{number:04}.mp4" for number in range(4)]
    rows = common.read_jsonl(tmp_path / "pasted" / "round1" / "pairs.jsonl")
    assert {row.get("dropped") for row in rows} == {None, "unchanged"}
    [made_with] = common.read_keys(tmp_path / "pasted" / "round2" / "pairs.jsonl.meta.json", "prompts")
    assert made_with["critique"] == PROMPTS["critique"]


# All six answers about this video are right, to its own critic
@pytest.fixture
def video_without_an_error(tmp_path):
    (tmp_path / "right").mkdir()
    world.render(world.make_scene(0, "round1", 0), tmp_path / "right" / "round1_0000.mp4", seed=[0, 1, 0])
    return tmp_path / "right"


@pytest.mark.parametrize("beside", [(), pytest.param(("--beside",), marks=pytest.mark.slow)], ids=["", "beside"])
def test_a_round_without_a_pair_ends_with_one_line_that_says_so(tmp_path, env, video_without_an_error, beside):
    world.write_split(tmp_path, "dev", 20, seed=0)  # more than can be scored beside one video
    run = tmp_path / "run"
    options = ["--model", MODEL, "--videos", video_without_an_error, "--run", run, "--rounds", 2]
    if beside:
        options += ["--benchmark", "shapes", tmp_path / "dev", *beside]
    done = loop(*options, env=env)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"refine.py: {run}/round1/pairs.jsonl: rows in 6 = 0 pairs + 6 dropped (no_error_found 6). It is finished, "
        "but has nothing for the next stage"
    )
    assert not (run / "round1" / "model.meta.json").exists()
    if beside:  # what was being scored is finished, or no run would ever have it
        assert (run / "base" / "eval" / "results.json").exists()


@pytest.fixture
def listening_to_ctrl_c():
    """Have new processes listen to Ctrl-C, which they ignore where the tests themselves run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_ctrl_c_stops_the_scoring_beside_a_round_too(tmp_path, env, listening_to_ctrl_c):
    for split in ("round1", "dev"):
        world.write_split(tmp_path, split, 80, seed=0)  # more videos than it can do before the signal arrives
    run = tmp_path / "run"
    options = ["--model", MODEL, "--videos", tmp_path / "round1", "--run", run]
    process = start(*options, "--benchmark", "shapes", tmp_path / "dev", "--beside", env=env)
    outputs = [run / "round1" / "responses.jsonl", run / "base" / "eval" / "predictions.jsonl"]
    wait_for(*outputs)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the group in the foreground
    _, said = process.communicate()
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("stopped; the same command resumes: python generate.py")
    for output in outputs:
        check_that_it_was_stopped(output)


@pytest.mark.slow
def test_a_fault_in_the_scoring_beside_a_round_ends_the_run_and_is_shown(tmp_path, env):
    world.write_split(tmp_path, "round1", 2, seed=0)
    world.write_split(tmp_path, "dev", 2, seed=0)
    for video in (tmp_path / "dev" / "videos").iterdir():
        video.write_text("not a video")
    run = tmp_path / "run"
    options = ["--model", MODEL, "--videos", tmp_path / "round1", "--run", run, "--gate", "none", "--rounds", 2]
    done = loop(*options, "--benchmark", "shapes", tmp_path / "dev", "--beside", env=env)
    assert done.returncode == 1
    assert done.stdout.endswith((run / "base" / "eval.log").read_text())
    assert "evaluate.py: none of the first 2 videos can be read" in done.stdout.splitlines()[-1]
    assert not (run / "round2").exists()


@pytest.mark.slow
def test_a_benchmark_in_which_the_critic_finds_no_error_is_scored_all_the_same(tmp_path, env):
    world.write_split(tmp_path, "dev", 1, seed=0)
    questions = [item for item in common.read_json(tmp_path / "dev" / "questions.json") if item["type"] == "order"]
    common.write_json(tmp_path / "dev" / "questions.json", questions)
    world.write_split(tmp_path, "round1", 3, seed=0)
    run = tmp_path / "run"
    options = ["--model", MODEL, "--videos", tmp_path / "round1", "--run", run, "--rounds", 1]
    done = loop(*options, "--benchmark", "shapes", tmp_path / "dev", env=env)
    [finished] = common.read_keys(run / "base" / "eval" / "pairs.jsonl.meta.json", "finished")
    assert finished["kept"] == 0
    assert done.returncode == 0, done.stderr
    assert (run / "round1" / "eval" / "results.json").exists()


@pytest.mark.slow
def test_the_driver_on_real_clips(tmp_path, env):
    try:
        videos = clips.fetch(ROOT / "runs" / "clips")
    except OSError as error:
        pytest.skip(f"the clips cannot be downloaded: {error}")
    assert len(videos) == 8
    options = ["--model", MODEL, "--videos", ROOT / "runs" / "clips", "--run", tmp_path, "--rounds", 2, "--limit", 4]
    done = loop(*options, "--gate", "none", "--", "--beta", 3, "--lr", "1e-4", env=env)
    assert done.returncode == 0, done.stderr
    taken = [common.read_json(tmp_path / f"round{n}" / "responses.jsonl.meta.json")["videos"] for n in (1, 2)]
    assert sorted(taken[0] + taken[1]) == sorted(video.name for video in videos)
    for number in (1, 2):
        assert common.read_json(tmp_path / f"round{number}" / "model.meta.json")["finished"]


# ------------------------------------------------------------------------------
# What it needs


def need(monkeypatch, *words):
    """Run tools.needs."""
    monkeypatch.setattr("sys.argv", ["needs.py", *map(str, words)])
    needs.main()


@pytest.fixture
def pool(tmp_path):
    """Two directories, of three and two videos: the names are enough."""
    for name, n in (("a", 3), ("b", 2)):
        (tmp_path / name).mkdir()
        for number in range(n):
            (tmp_path / name / f"{number}.mp4").touch()
    return tmp_path


def test_a_critic_that_is_not_there_is_refused_before_the_first_round(pool, monkeypatch):
    options = ["--model", MODEL, "--run", pool / "run", "--videos", pool / "a", "--rounds", 1]
    with pytest.raises(common.InputError, match="no/such/model"):
        need(monkeypatch, *options, "--critic", "no/such/model")


def test_a_pool_is_shared_out_between_the_rounds(pool, monkeypatch, capsys):
    options = ["--model", MODEL, "--run", pool / "run", "--videos", pool / "a", pool / "b"]
    need(monkeypatch, *options, "--rounds", 2, "--limit", 2)
    assert "videos: 5 in the pool, of which each of 2 rounds takes 2 of its own\n" in capsys.readouterr().out
    need(monkeypatch, *options, "--rounds", 2)
    assert "videos: 5, which every round takes" in capsys.readouterr().out
    with pytest.raises(
        common.InputError,
        match=r"4 rounds of --limit 2 take 8 videos, but there are 5: rounds 1 to 4 would get 2, 2, 1, 0.* --limit 1 ",
    ):
        need(monkeypatch, *options, "--limit", 2)


def test_rounds_with_videos_of_their_own_are_counted_apart(pool, monkeypatch, capsys):
    (pool / "a").rename(pool / "round1")
    (pool / "b").rename(pool / "round2")
    options = ["--model", MODEL, "--run", pool / "run", "--videos", pool / "round{round}"]
    need(monkeypatch, *options, "--rounds", 2)
    assert "videos: 3, 2 in rounds 1 to 2\n" in capsys.readouterr().out
    need(monkeypatch, *options, "--rounds", 2, "--limit", 2)
    assert "videos: 2, 2 in rounds 1 to 2\n" in capsys.readouterr().out
    with pytest.raises(common.InputError, match="--videos .*round3: no such file or directory"):
        need(monkeypatch, *options, "--rounds", 3)


def test_a_pool_that_changed_after_a_round_was_drawn_from_it_is_told(pool, monkeypatch, capsys):
    options = ["--model", MODEL, "--run", pool / "run", "--videos", pool / "a", pool / "b", "--rounds", 2, "--limit", 1]
    drawing = ["generate.py", "--model", "m", "--input", pool / "a", pool / "b", "--output", "o", "--limit", "1"]
    monkeypatch.setattr("sys.argv", [str(word) for word in drawing])
    draw = generate.draw_videos(generate.parse_args())
    meta = pool / "run" / "round1" / "responses.jsonl.meta.json"
    meta.parent.mkdir(parents=True)
    common.write_json(meta, {"pool": draw.pool})

    need(monkeypatch, *options)
    assert "warning" not in capsys.readouterr().out
    (pool / "a" / "new.mp4").touch()
    need(monkeypatch, *options)
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("warning: round 1 was drawn from 5 videos, and --videos has 6 now, or others: rounds")

    # Nothing is drawn any more: no matter, also if there are too few by now
    shutil.copytree(meta.parent, pool / "run" / "round2")
    need(monkeypatch, *options, "--limit", 100)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--model", "nowhere"], "nowhere: no such directory"),
        (["--videos", "nowhere"], "--videos nowhere: no such file or directory"),
        (["--benchmark", "shapse", "d"], "--benchmark shapse: it is none of shapes, egoschema"),
        (["--benchmark", "shapes", "nowhere"], "nowhere/questions.json"),
        (["--prompts", "README.md"], "README.md: not JSON"),
        # What each round has of its own
        (["--", "--output", "elsewhere"], "--output behind --: each round has its own"),
        (["--", "--model", "m", "--input", "i"], "--model, --input and --output behind --"),
        (["--", "--overwrite"], "--overwrite and --limit behind --: the former would lose finished rounds"),
        (["--", "--limit", 8], "--overwrite and --limit behind --"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(pool, monkeypatch, words, complaint):
    with pytest.raises(common.InputError, match=complaint):
        need(monkeypatch, "--model", MODEL, "--run", pool / "run", "--videos", pool / "a", *words)


def test_a_benchmark_without_its_videos_is_refused(pool, monkeypatch):
    world.write_split(pool, "dev", 2, seed=0)
    (pool / "dev" / "videos" / "dev_0001.mp4").unlink()
    options = ["--model", MODEL, "--run", pool / "run", "--videos", pool / "a", "--benchmark", "shapes", pool / "dev"]
    with pytest.raises(common.InputError, match="1 of 2 videos are missing, such as videos/dev_0001.mp4"):
        need(monkeypatch, *options)


def test_a_wrong_option_of_dpo_is_refused_as_dpo_does(pool, monkeypatch, capsys):
    with pytest.raises(SystemExit) as refusal:
        need(monkeypatch, "--model", MODEL, "--run", pool / "run", "--videos", pool / "a", "--", "--btea", 3)
    assert refusal.value.code == 2
    assert "dpo.py: error: unrecognized arguments: --btea 3" in capsys.readouterr().err


GIB = 2**30


def plan_8b(
    *words,
    devices=("cuda:0",),
    processes=1,
    train_processes=1,
    videos_per_batch=1,
    monkeypatch,
    name="internvl2_5-8b",
):
    """Plan a run of InternVL2.5-8B, or of another fixture, on GPUs that are not there."""
    fixture = str(ROOT / "tests" / "fixtures" / name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(devices))
    args = argparse.Namespace(
        model=fixture,
        frames=None,
        processes=processes,
        train_processes=train_processes,
        videos_per_batch=videos_per_batch,
    )
    args.frame_tokens = None
    return needs.plan_memory(args, needs.parse_training(args, list(words)))


def test_disk_of_8b_by_hand(monkeypatch):
    """7.74 billion weights are trained; the model has 8.08 billion, in bfloat16."""
    whole = plan_8b(monkeypatch=monkeypatch)
    assert whole.n_trained == pytest.approx(7.74e9, rel=1e-3)
    assert whole.saved == pytest.approx(2 * 8.08e9, rel=2e-3)
    checkpoint = 12 * whole.n_trained
    assert checkpoint / GIB == pytest.approx(86.5, abs=0.1)
    # Four rounds: three models are there when the last training has two checkpoints
    assert needs.count_disk(4, whole.saved, checkpoint) / GIB == pytest.approx(3 * 15.05 + 2 * 86.5, abs=0.3)

    # Factors of rank 16 in float32: 32 layers, q and o, k and v, gate and up and down
    factors = plan_8b("--tune", "lora", monkeypatch=monkeypatch)
    assert factors.n_trained == 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert factors.saved == 4 * factors.n_trained


@pytest.mark.parametrize(
    "n_rounds, model, checkpoint, most", [(4, 15, 86, 3 * 15 + 2 * 86), (1, 15, 1, 16), (0, 9, 9, 0)]
)
def test_the_fullest_moment_of_the_disk_is_in_the_last_training(n_rounds, model, checkpoint, most):
    assert needs.count_disk(n_rounds, model, checkpoint) == most


def test_the_examples_in_its_docstrings_are_true():
    assert doctest.testmod(needs) == (0, 3)  # none of three fails


def test_finished_rounds_need_no_disk_any_more(tmp_path, monkeypatch, capsys):
    plan = needs.Plan({}, {}, n_trained=GIB, saved=5 * GIB, uncounted="")
    args = argparse.Namespace(run=tmp_path / "run", rounds=2, frame_tokens=None)
    free = 10 * GIB
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free))
    [warning] = needs.tell_disk(args, plan)  # a model, and two checkpoints of 12 GiB
    assert "2 rounds are left and need 29.0; 10.0 are free" in capsys.readouterr().out
    assert "has 10.0 GiB free, and the rounds that are left need 29.0" in warning

    for number, finished in ((1, {"steps": 3}), (2, None)):
        path = tmp_path / "run" / f"round{number}" / "model.meta.json"
        path.parent.mkdir(parents=True)
        common.write_json(path, {"finished": finished})
    free = 24 * GIB
    assert needs.tell_disk(args, plan) == []
    assert "1 rounds are left and need 24.0; 24.0 are free" in capsys.readouterr().out


def test_memory_is_what_the_memory_tool_says_and_a_tenth_is_left_free(monkeypatch, capsys):
    plan = plan_8b("--activation-checkpointing", devices=("cuda:0", "cuda:1"), monkeypatch=monkeypatch)
    fixture = str(ROOT / "tests" / "fixtures" / "internvl2_5-8b")
    config = transformers.InternVLConfig.from_pretrained(fixture)
    rows = memory.plan(config, ["cuda:0", "cuda:1"], memory.parse_args([fixture, "--activation-checkpointing"]))
    assert list(plan.training.values()) == [row.training for row in rows]
    assert list(plan.answering.values()) == [row.answering for row in rows]
    training = max(plan.training.values())  # 90.1 GiB, as docs/real-models.md has it
    args = argparse.Namespace(model=fixture, frame_tokens=None)
    for size, n_warnings in ((training / 0.9 + 1, 0), (training / 0.9 - GIB, 1), (GIB, 2)):
        monkeypatch.setattr(needs, "measure_device", lambda device, size=size: size)
        assert len(needs.tell_memory(args, plan)) == n_warnings
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(
        "memory, GiB: answering 8.35, training 90.08 (calculated, on the fullest device); the smallest"
    )


@pytest.mark.parametrize(
    "name, words, counted",
    [
        ("internvl2_5-8b", ("--tune", "all"), "(calculated, on the fullest device); "),
        ("qwen3-vl-8b", (), "(calculated, on the fullest device); "),
        (
            "qwen3-vl-8b",
            ("--tune", "all"),
            "(calculated, on the fullest device, without what the vision tower keeps for its gradients); ",
        ),
    ],
)
def test_what_is_not_counted_of_a_tower_is_told(name, words, counted, monkeypatch, capsys):
    plan = plan_8b(*words, name=name, monkeypatch=monkeypatch)
    monkeypatch.setattr(needs, "measure_device", lambda device: 1000 * GIB)
    needs.tell_memory(argparse.Namespace(model=name), plan)
    assert counted in capsys.readouterr().out


def test_each_of_several_processes_answers_with_its_share_of_the_devices(monkeypatch):
    devices = [f"cuda:{number}" for number in range(4)]
    alone = plan_8b(devices=devices[:2], monkeypatch=monkeypatch).answering
    [first, second] = plan_8b(devices=devices, processes=2, monkeypatch=monkeypatch).answering.items()
    assert [first, second] == list(alone.items())  # two processes, over two of four devices each

    [weights_and_cache] = plan_8b(devices=devices, processes=4, monkeypatch=monkeypatch).answering.values()
    [four_caches] = plan_8b(
        devices=devices, processes=4, videos_per_batch=4, monkeypatch=monkeypatch
    ).answering.values()
    cache = 32 * 2 * 8 * 128 * 2 * 32 * (256 + 8)  # layers x keys, values x heads x size x bytes x tokens
    assert four_caches - weights_and_cache == 3 * cache


def test_processes_that_train_together_need_less_each(monkeypatch):
    """40.2 GiB on each of four GPUs, as docs/performance.md has it; on a CPU they are all in the same memory."""
    devices = [f"cuda:{number}" for number in range(4)]
    words = ["--activation-checkpointing"]
    together = plan_8b(*words, devices=devices, train_processes=4, monkeypatch=monkeypatch).training
    assert {device: round(n_bytes / GIB, 1) for device, n_bytes in together.items()} == dict.fromkeys(devices, 40.2)
    [on_cpu] = plan_8b(*words, devices=(), train_processes=4, monkeypatch=monkeypatch).training.values()
    assert on_cpu > 4 * together["cuda:0"]  # of float32


def test_the_tiny_world_needs_three_lines(pool, monkeypatch, capsys):
    need(monkeypatch, "--model", MODEL, "--run", pool / "run", "--videos", pool / "a", "--rounds", 4)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["videos", "memory, GiB", "disk, GiB"]
