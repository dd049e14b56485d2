"""Commands `python STAGE.py ...` as processes that start in no time: forked from one that has imported everything.

A directory with a program `python` is put before PATH. That program sends its command to a server, which forks a
process for it: with the words, the working directory, the output and the process group of the command, so that a signal
to the group reaches it. What it runs is what Python would run, but for the seconds that imports take.
"""

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path

from torch import distributed
from tqdm import tqdm

# What torchrun tells a process, in its environment
TOLD = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_MAX_RESTARTS",
)
CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the forked process says what becomes of Ctrl-C
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    told = {{name: os.environ[name] for name in {told!r} if name in os.environ}}
    command = {{"words": sys.argv[1:], "directory": os.getcwd(), "group": os.getpgid(0), "told": told}}
    socket.send_fds(server, [json.dumps(command).encode()], [1, 2])
    code = server.recv(100)
sys.exit(int(code) if code else 137)  # nothing is said by a process that was killed
"""


@contextlib.contextmanager
def forked_python(directory: Path):
    """Serve `python` from a directory while the block runs -> the environment that finds it there."""
    address = str(directory / "server")
    program = directory / "python"
    program.write_text(CLIENT.format(python=sys.executable, address=address, told=TOLD))
    program.chmod(0o755)
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    pid = os.fork()
    if pid == 0:
        serve(server)
    server.close()
    try:
        yield os.environ | {"PATH": f"{directory}:{os.environ['PATH']}", "TOKENIZERS_PARALLELISM": "false"}
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def serve(server):
    """Fork a process for every command, for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended ones leave nothing behind
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            code = 1
            try:
                code = run(connection)
            finally:
                connection.send(str(code).encode())
                os._exit(code)
        connection.close()


def run(connection) -> int:
    """Run one command as Python's command line would -> its exit code."""
    message, outputs, _, _ = socket.recv_fds(connection, 2**16, 2)
    command = json.loads(message)
    os.setpgid(0, command["group"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tqdm.set_lock(threading.RLock())  # its own: of those that share one, a killed process would leave it locked
    os.chdir(command["directory"])
    os.environ.update(command["told"])
    for number, descriptor in zip((1, 2), outputs):
        os.dup2(descriptor, number)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115

    words = command["words"]
    sys.orig_argv = ["python", *words]
    sys.path[0] = command["directory"]
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.modules.pop(words[1], None)
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


class Processes:
    """n processes of one command, as torchrun starts them."""

    def __init__(self, environment, n, words, words_of_others=None, lost=False, **told):
        self.store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        if lost:  # the first batch was taken by a process that is not there any more
            distributed.PrefixStore("queue", self.store).add("taken", 1)
        self.processes = []
        for rank in range(n):
            told |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
            told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
            process = subprocess.Popen(
                ["python", *map(str, words_of_others if rank and words_of_others else words)],
                cwd=Path(__file__).parent.parent,
                env=environment | {name: str(value) for name, value in told.items()},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                process_group=0,  # in which the forked process is as well
            )
            self.processes.append(process)

    def send(self, signal, processes=None):
        """Send a signal to all processes, or to some."""
        for process in processes or self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal)

    def wait(self):
        """Wait for all -> (exit code, what it printed) of each."""
        printed = [process.communicate(timeout=120)[0] for process in self.processes]
        return [(process.returncode, text) for process, text in zip(self.processes, printed)]
