"""Several processes at one output: the bytes are those of one, whatever their number and whoever is killed.

Processes are forked from one that has imported everything (forked.py), and are told their numbers as torchrun tells
them; its store is in the test's own process. The last tests start the real torchrun.
"""

import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import common
from conftest import MODEL
from forked import Processes
from shapes import world

ROOT = Path(__file__).parent.parent
N_VIDEOS = 7  # so that the last batch of four is not full


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The tiny world, of which seven videos are asked about and three are a benchmark."""
    directory = tmp_path_factory.mktemp("world")
    world.write_split(directory, "round1", N_VIDEOS, seed=0)
    world.write_split(directory, "dev", 3, seed=0)
    return directory


def run(environment, n, words):
    """Run a command in n processes, all of which must end well -> what the first one printed."""
    ended = Processes(environment, n, words).wait()
    assert [code for code, _ in ended] == [0] * n, ended
    assert [text for _, text in ended[1:]] == [""] * (n - 1)  # the first one speaks for all
    return ended[0][1]


def commands(videos, directory, size):
    """The four stages that answer, one after another: {output: command}."""
    common_options = ["--model", MODEL, "--devices", "cpu", "--videos-per-batch", size]
    stages = [
        ("generate.py", videos / "round1", "responses.jsonl", []),
        ("critique.py", directory / "responses.jsonl", "critiques.jsonl", []),
        ("refine.py", directory / "critiques.jsonl", "pairs.jsonl", []),
        ("evaluate.py", videos / "dev", "eval", ["--benchmark", "shapes"]),
    ]
    for stage, input, output, more in stages:
        yield output, [stage, *common_options, "--input", input, "--output", directory / output, *more]


def run_all(environment, n, videos, directory, size):
    """Run all stages -> the bytes of their outputs."""
    written = {}
    for output, words in commands(videos, directory, size):
        run(environment, n, words)
        path = directory / output
        written[output] = (path / "predictions.jsonl" if path.is_dir() else path).read_bytes()
    return written


only_slowly = pytest.mark.slow


@pytest.fixture(scope="module", params=[4, pytest.param(1, marks=only_slowly)], ids="V={}".format)
def of_one(request, environment, videos, tmp_path_factory):
    """What one process writes, with V videos at a time -> (V, {output: bytes})."""
    directory = tmp_path_factory.mktemp("one")
    return request.param, run_all(environment, 1, videos, directory, request.param)


@pytest.mark.parametrize("n", [2, pytest.param(3, marks=only_slowly)])
def test_several_processes_write_what_one_writes(n, of_one, environment, videos, tmp_path):
    size, written = of_one
    assert run_all(environment, n, videos, tmp_path, size) == written
    assert written["responses.jsonl"].count(b"\n") == 6 * N_VIDEOS


@only_slowly
def test_a_process_that_was_told_another_output_works_at_the_first_ones(of_one, environment, videos, tmp_path):
    size, written = of_one
    output, words = next(commands(videos, tmp_path, size))
    others = [tmp_path / "other.jsonl" if word == tmp_path / output else word for word in words]
    assert [code for code, _ in Processes(environment, 2, words, others).wait()] == [0, 0]
    assert (tmp_path / output).read_bytes() == written[output]
    assert not (tmp_path / "other.jsonl").exists()


@only_slowly
def test_shards_are_joined_to_what_one_process_writes(of_one, environment, videos, tmp_path):
    size, written = of_one
    output, words = next(commands(videos, tmp_path, size))
    parts = []
    for number in range(2):
        parts.append(tmp_path / f"{number}.jsonl")
        shard = [parts[-1] if word == tmp_path / output else word for word in words]
        run(environment, 1, [*shard, "--shard", f"{number}/2"])
    run(environment, 1, ["-m", "tools.join", *reversed(parts), "--output", tmp_path / output])
    assert (tmp_path / output).read_bytes() == written[output]
    assert run(environment, 1, words) == f"{tmp_path / output} is finished; nothing to do\n"


# ------------------------------------------------------------------------------
# What is refused


def ends_with(ended, message):
    """Whether the last process, and no other, ends with this message."""
    return message in ended[-1][1] and not any(message in text for _, text in ended[:-1])


def test_a_process_that_reads_another_model_is_refused_by_name(environment, videos, tmp_path):
    _, words = next(commands(videos, tmp_path, 1))
    other = tmp_path / "other"
    shutil.copytree(MODEL, other)
    (other / "config.json").write_text((MODEL / "config.json").read_text() + " ")
    others = [other if word == MODEL else word for word in words]
    group = Processes(environment, 2, words, others)
    group.processes[1].wait(60)
    group.send(signal.SIGTERM)  # as torchrun does
    assert ends_with(group.wait(), "process 1, reads other files than process 0: its model differs")


@only_slowly
def test_a_process_without_the_videos_is_refused_by_name(environment, videos, tmp_path):
    responses, words = next(commands(videos, tmp_path, 1))
    run(environment, 1, words)
    words = ["critique.py", "--model", MODEL, "--devices", "cpu", "--input", tmp_path / responses]
    words += ["--output", tmp_path / "critiques.jsonl", "--videos"]
    group = Processes(environment, 2, [*words, videos / "round1"], [*words, tmp_path / "not mounted"])
    group.processes[1].wait(60)
    group.send(signal.SIGTERM)
    assert ends_with(group.wait(), "not mounted: no such directory")


@only_slowly
def test_a_process_that_is_stopped_says_the_command_of_torchrun(environment, videos, tmp_path):
    _, words = next(commands(videos, tmp_path, 1))
    group = Processes(environment, 2, words)
    wait_for(tmp_path / "responses.jsonl")
    group.send(signal.SIGTERM)  # as torchrun does when one was killed
    for code, text in group.wait():
        assert code == 130
        assert "stopped; the same command resumes: torchrun --standalone --nproc-per-node 2 generate.py" in text


@only_slowly
def test_a_process_that_waits_for_one_that_was_killed_can_be_stopped(environment, videos, tmp_path):
    _, words = next(commands(videos, tmp_path, 1))
    group = Processes(environment, 2, words, lost=True)
    group.processes[1].wait(60)  # all other batches are made
    time.sleep(2)
    group.send(signal.SIGTERM)
    code, text = group.wait()[0]
    assert code == 130
    assert "the same command resumes" in text


def test_restarts_by_torchrun_are_refused_with_the_loop_that_does_it(environment, videos, tmp_path):
    _, words = next(commands(videos, tmp_path, 1))
    [(code, text), *_] = Processes(environment, 2, words, TORCHELASTIC_MAX_RESTARTS=3).wait()
    assert code == 1
    assert "until torchrun --standalone --nproc-per-node 2 generate.py" in text
    assert text.rstrip().endswith("; do sleep 5; done")


# ------------------------------------------------------------------------------
# Kills


@only_slowly
@pytest.mark.parametrize("seed", range(4))
def test_killed_processes_lose_nothing(seed, of_one, environment, videos, tmp_path):
    """A process is killed at a random moment, and the others, as torchrun does it; then another number resumes."""
    size, written = of_one
    draw = random.Random(seed)
    for output, words in commands(videos, tmp_path, size):
        n_killed = 0
        while n_killed < 3:
            group = Processes(environment, draw.randint(1, 3), words)
            time.sleep(draw.uniform(0.5, 4.0))
            victim = draw.choice(group.processes)
            is_over = victim.poll() is not None
            group.send(signal.SIGKILL, [victim])
            group.send(signal.SIGTERM)
            group.wait()
            n_killed += 1
            if is_over:
                break
        run(environment, draw.randint(1, 3), words)
        path = tmp_path / output
        assert (path / "predictions.jsonl" if path.is_dir() else path).read_bytes() == written[output]


# ------------------------------------------------------------------------------
# The real torchrun


def torchrun(*options):
    return [sys.executable, "-m", "torch.distributed.run", *map(str, options)]


@only_slowly
def test_the_real_torchrun(of_one, videos, tmp_path):
    size, written = of_one
    if size == 1:
        pytest.skip("once is enough")
    output, words = next(commands(videos, tmp_path, size))
    command = torchrun("--standalone", "--nproc-per-node", 2, *words)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / output).read_bytes() == written[output]


@only_slowly
def test_two_nodes(of_one, videos, tmp_path):
    """Two agents on one machine, as on two: each starts its own processes."""
    size, written = of_one
    output, words = next(commands(videos, tmp_path, size))
    nodes = ["--nnodes", 2, "--master-addr", "127.0.0.1", "--master-port", free_port()]
    agents = []
    for rank in range(2):
        command = torchrun(*nodes, "--node-rank", rank, "--nproc-per-node", 1, *words)
        agents.append(subprocess.Popen(command, cwd=ROOT))
    assert [agent.wait(300) for agent in agents] == [0, 0]
    assert (tmp_path / output).read_bytes() == written[output]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@only_slowly
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_torchrun_is_stopped_or_killed(stop, of_one, videos, tmp_path):
    """Its processes end as well, and the command that resumes is said."""
    size, written = of_one
    output, words = next(commands(videos, tmp_path, size))
    command = torchrun("--standalone", "--nproc-per-node", 2, *words)
    agent = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / output)
    agent.send_signal(stop)
    _, said = agent.communicate(timeout=120)  # until its processes have closed the pipe, too
    if not is_finished(tmp_path / output):
        assert "the same command resumes: torchrun --standalone --nproc-per-node 2 generate" in said
    done = subprocess.run(command, cwd=ROOT, check=False)
    assert done.returncode == 0
    assert (tmp_path / output).read_bytes() == written[output]


def wait_for(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_finished(output):
    [finished] = common.read_keys(common.meta_path(output), "finished")
    return bool(finished)
