"""Every stage, killed at random moments, resumes by the same command, and ends with the bytes of an undisturbed run.

The stages run as processes of their own. They are forked from this one, which has imported everything, so that they
start fast; and they are killed by SIGKILL, so that nothing in them can tidy up.
"""

import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from tqdm import tqdm

import common
import critique
import dpo
import evaluate
import generate
import refine
from conftest import MODEL
from shapes import world

pytestmark = pytest.mark.slow

STAGES = [generate, critique, refine, dpo, evaluate]
KILLS = 10  # of each stage
ROOT = Path(__file__).parent.parent


def start(stage, arguments):
    """Start a process that runs a stage -> its pid."""
    pid = os.fork()
    if pid:
        return pid

    # From here on this is the new process, which must never return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tqdm.set_lock(threading.RLock())  # its own: of those that share one, a killed process would leave it locked
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.argv = [f"{stage.__name__}.py", *map(str, arguments)]
    try:
        stage.main()
    except BaseException:
        os._exit(1)
    os._exit(0)


def ends_by_itself(pid, seconds):
    """Wait for so many seconds -> whether the process has ended within them."""
    end = time.time() + seconds
    while time.time() < end:
        ended, _ = os.waitpid(pid, os.WNOHANG)
        if ended:
            return True
        time.sleep(0.002)
    return False


class Undisturbed(NamedTuple):
    """A run of a stage that was not killed."""

    arguments: list  # but for --output
    output: Path
    product: Path  # the file whose bytes are compared
    seconds: float


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Run all stages, each on the output of the one before -> {stage: its undisturbed run}."""
    root = tmp_path_factory.mktemp("chain")
    for split in ("round1", "dev"):
        world.write_split(root, split, 8, seed=0)
    (root / "round1" / "broken.mp4").write_text("not a video")

    training = ["--epochs", 4, "--videos-per-step", 2, "--lr", "1e-4", "--save-every", 0]
    plan = [  # stage, input, output, more options, the file within the output that is compared
        (generate, "round1", "responses.jsonl", [], ""),
        (critique, "responses.jsonl", "critiques.jsonl", [], ""),
        (refine, "critiques.jsonl", "pairs.jsonl", [], ""),
        (dpo, "pairs.jsonl", "model", training, "model.safetensors"),
        (evaluate, "dev", "eval", ["--benchmark", "shapes"], "predictions.jsonl"),
    ]
    runs = {}
    for stage, input, output, more, product in plan:
        arguments = ["--model", MODEL, "--input", root / input, "--devices", "cpu", *more]
        begun = time.time()
        pid = start(stage, [*arguments, "--output", root / output])
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        runs[stage] = Undisturbed(arguments, root / output, root / output / product, time.time() - begun)
    return runs


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_stage_killed_at_random_moments_ends_with_the_same_bytes(chain, tmp_path, stage):
    whole = chain[stage]
    moment = random.Random(stage.__name__)
    kills = 0
    trials = 0
    while kills < KILLS:
        output = tmp_path / str(trials) / whole.output.name
        trials += 1
        while True:  # until it is finished
            pid = start(stage, [*whole.arguments, "--output", output])
            if ends_by_itself(pid, moment.uniform(0, 1.3 * whole.seconds)):
                break
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1

        product = output / whole.product.relative_to(whole.output)
        assert product.read_bytes() == whole.product.read_bytes()
        described = product if stage is evaluate else output  # what meta.json lies beside
        [finished] = common.read_keys(common.meta_path(described), "finished")
        assert finished
    print(f"{stage.__name__}: {kills} kills, {trials} runs")


@pytest.fixture
def listening_to_ctrl_c():
    """Have new processes listen to Ctrl-C, which they ignore where the tests themselves run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_names_the_command_that_resumes(listening_to_ctrl_c, tmp_path):
    world.write_split(tmp_path, "round1", 60, seed=0)  # more videos than it can do before the signal arrives
    output = tmp_path / "a b.jsonl"
    arguments = ["--model", MODEL, "--input", tmp_path / "round1", "--output", output, "--devices", "cpu"]
    command = ["generate.py", *map(str, arguments)]
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while not output.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()

    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.rstrip().endswith(f"the same command resumes: python {shlex.join(command)}")
    assert f"--output '{output}'" in said  # a name with a space is quoted, so that the line can be copied


def test_a_full_disk_ends_in_one_line_and_the_same_command_resumes(chain, tmp_path):
    # A limit on the size of a file stands in for the disk
    output = tmp_path / "out.jsonl"
    arguments = [*chain[generate].arguments, "--output", output]
    command = [sys.executable, str(ROOT / "generate.py"), *map(str, arguments)]
    limited = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", *command]
    full = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    last = full.stderr.splitlines()[-1]
    assert "File too large. Once this is fixed, the same command resumes: python " in last
    assert last.endswith(f"--output {output}")

    subprocess.run(command, capture_output=True, check=True)
    assert output.read_bytes() == chain[generate].output.read_bytes()
