"""Processes for tests of runs: stages come from a server that has torch imported, and are not started afresh.

The server runs nothing itself. A child forked from the test's own process would inherit the state of thread pools
without their threads, and could wait for them for ever.
"""

import multiprocessing
import os
import signal
import subprocess

import torch

from rcgrpo.cli import app, guarded

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["rcgrpo.stages.run", "rcgrpo.stages.reinforce", "rcgrpo.stages.evaluate", "accelerate", "peft"]
)


def _work(arguments: list[str], env: dict[str, str], stdout: str, stderr: str) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    os._exit(guarded(lambda: app(arguments, standalone_mode=False)))


class ForkedProcess:
    """What ``stages.run`` uses of subprocess.Popen, for ``python -m rcgrpo ...`` commands."""

    def __init__(self, command, *, stdout, stderr, env, start_new_session):
        assert command[1:3] == ["-m", "rcgrpo"] and start_new_session
        self._process = SERVER.Process(target=_work, args=(command[3:], dict(env), stdout.name, stderr.name))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("rcgrpo", timeout or 0.0)
        return self._process.exitcode
