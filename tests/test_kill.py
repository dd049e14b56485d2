"""Every stage, killed at random moments, goes on by the same command to the same bytes as an undisturbed run.

The stages run as processes of their own, forked off this one (which has imported everything, and so saves their start), and die by
SIGKILL: nothing of theirs can tidy up behind them.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import common
import critique
import dpo
import evaluate
import generate
import refine
from conftest import MODEL
from shapes import world

pytestmark = pytest.mark.slow
KILLS = 10  # a stage
ROOT = Path(__file__).parent.parent


def start(stage, arguments):
    """A process that runs a stage -> its pid."""
    if pid := os.fork():
        return pid
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.argv = [f"{stage.__name__}.py", *map(str, arguments)]
    try:
        stage.main()
    except BaseException:
        os._exit(1)
    os._exit(0)


def finish(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def wait(pid, seconds):
    """True where the process has ended by itself within so many seconds."""
    end = time.time() + seconds
    while time.time() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    return False


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """{stage: (arguments, undisturbed output, what of it is compared, seconds it took)}, each stage on the output of the one before."""
    root = tmp_path_factory.mktemp("chain")
    for split in ("round1", "dev"):
        world.write_split(root, split, 8, seed=0)
    (root / "round1" / "broken.mp4").write_text("no video")
    plan = [
        (generate, root / "round1", "responses.jsonl", [], ""),
        (critique, root / "responses.jsonl", "critiques.jsonl", [], ""),
        (refine, root / "critiques.jsonl", "pairs.jsonl", [], ""),
        (
            dpo,
            root / "pairs.jsonl",
            "model",
            ["--epochs", 4, "--videos-per-step", 2, "--lr", "1e-4", "--save-every", 2],
            "model.safetensors",
        ),
        (evaluate, root / "dev", "eval", ["--benchmark", "shapes"], "predictions.jsonl"),
    ]
    done = {}
    for stage, input, output, more, compared in plan:
        arguments, began = ["--model", MODEL, "--input", input, "--devices", "cpu", *more], time.time()
        finish(start(stage, [*arguments, "--output", root / output]))
        done[stage] = arguments, root / output, compared, time.time() - began
    return done


@pytest.mark.parametrize("stage", [generate, critique, refine, dpo, evaluate], ids=lambda stage: stage.__name__)
def test_killed_at_random_moments_it_ends_with_the_same_bytes(chain, tmp_path, stage):
    arguments, whole, compared, seconds = chain[stage]
    moment, kills, trials = random.Random(stage.__name__), 0, 0
    while kills < KILLS:
        output = tmp_path / str(trials) / whole.name
        trials += 1
        while True:
            pid = start(stage, [*arguments, "--output", output])
            if wait(pid, moment.uniform(0, 1.3 * seconds)):
                break
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1
        assert (output / compared).read_bytes() == (whole / compared).read_bytes()
        assert common.read_json(common.meta_path(output / compared if stage is evaluate else output), "finished")[0]
    print(f"{stage.__name__}: {kills} kills, {trials} runs")


def test_ctrl_c_names_the_command_that_goes_on(chain, tmp_path):
    # more videos than it can do before the signal arrives
    world.write_split(tmp_path, "round1", 60, seed=0)
    command = [
        "generate.py",
        "--model",
        str(MODEL),
        "--input",
        str(tmp_path / "round1"),
        "--output",
        str(tmp_path / "a b.jsonl"),
        "--devices",
        "cpu",
    ]
    listen = lambda: signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # where tests run in the background, Ctrl-C is ignored
    process = subprocess.Popen(
        [sys.executable, *command], stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=listen
    )
    while not (tmp_path / "a b.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130 and "Traceback" not in said
    assert said.rstrip().endswith(
        "the same command goes on: python "
        + " ".join(command).replace(str(tmp_path / "a b.jsonl"), f"'{tmp_path}/a b.jsonl'")
    )


def test_a_full_disk_ends_in_one_line_and_harms_nothing(chain, tmp_path):
    # a limit on the size of a file stands in for the disk
    arguments, whole, *_ = chain[generate]
    command = [sys.executable, str(ROOT / "generate.py"), *map(str, arguments), "--output", str(tmp_path / "out.jsonl")]
    full = subprocess.run(["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", *command], capture_output=True, text=True)
    assert full.returncode == 1 and "Traceback" not in full.stderr
    last = full.stderr.splitlines()[-1]
    assert "File too large; with this mended the same command goes on: python " in last and last.endswith(
        f"--output {tmp_path}/out.jsonl"
    )
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert (tmp_path / "out.jsonl").read_bytes() == whole.read_bytes()
