"""Processes for tests of runs: stages are forked from the test, which has torch imported, and not started afresh."""

import os
import signal
import sys

from rcgrpo.cli import app, guarded


class ForkedProcess:
    """What ``stages.run`` uses of subprocess.Popen, for ``python -m rcgrpo ...`` commands."""

    def __init__(self, command, *, stdout, stderr, env, start_new_session):
        assert command[1:3] == ["-m", "rcgrpo"] and start_new_session
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(env)
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            code = 1
            try:
                code = guarded(lambda: app(command[3:], standalone_mode=False))
            finally:
                os._exit(code)
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            _, status = os.waitpid(self.pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
        return self._code
