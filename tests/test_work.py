"""What runs side by side, on which GPUs, and how it ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rcgrpo.config import load_recipe
from rcgrpo.errors import UserError
from rcgrpo.stages import run
from rcgrpo.stages.directory import RunDirectory, StageDirectory
from rcgrpo.stages.run import Work, default_jobs, share_of_gpus, visible_gpus, work_off


class Popen:
    """A process that ends after some polls: one whose name ends in a number, after so many."""

    started: list["Popen"]

    def __init__(self, command, *, env, **_):
        self.name, self.gpus, self.left = command[-1], env.get("CUDA_VISIBLE_DEVICES"), int(command[-1][-1])
        Popen.started.append(self)

    def poll(self):
        self.left -= 1
        return 0 if self.left < 0 else None


@pytest.fixture
def machine(monkeypatch):
    """Sets the GPUs of the machine, and CUDA_VISIBLE_DEVICES."""
    Popen.started = []
    monkeypatch.setattr(run.subprocess, "Popen", Popen)
    monkeypatch.setattr(run.time, "sleep", lambda _: None)

    def has(gpus: int, visible: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return has


def pieces(tmp_path: Path, *names: str, processes: int = 1) -> list[Work]:
    return [Work(n, ["stage", n], StageDirectory(tmp_path / n), set(), processes) for n in names]


def test_work_side_by_side_gets_gpus_of_its_own_and_a_freed_one_is_taken_again(machine, tmp_path):
    machine(2)
    work_off(pieces(tmp_path, "a9", "b1", "c1", "d1"), jobs=2, processes=1)
    assert [(p.name, p.gpus) for p in Popen.started] == [("a9", "0"), ("b1", "1"), ("c1", "1"), ("d1", "1")]


def test_each_process_of_a_piece_gets_a_gpu_among_those_that_are_visible(machine, tmp_path):
    machine(4, visible="3,5,6,7")
    work_off(pieces(tmp_path, "a3", "b3", processes=2), jobs=2, processes=2)
    assert [p.gpus for p in Popen.started] == ["3,5", "6,7"]
    machine(2, visible="GPU-1f,GPU-2e")
    assert visible_gpus() == ["GPU-1f", "GPU-2e"]


@pytest.mark.parametrize(("gpus", "jobs"), [(0, 2), (4, 1)])
def test_where_nothing_is_to_be_shared_out_the_environment_stays(machine, tmp_path, gpus, jobs):
    machine(gpus)
    work_off(pieces(tmp_path, "a0", "b0"), jobs=jobs, processes=1)
    assert [p.gpus for p in Popen.started] == [None, None]


def test_more_slots_than_gpus_share_them():
    assert [share_of_gpus(["0", "1"], slot, 1) for slot in range(4)] == [["0"], ["1"], ["0"], ["1"]]
    assert share_of_gpus(["0", "1"], 1, 4) == ["0", "1"]


def test_by_default_each_process_has_a_gpu_of_its_own(machine, monkeypatch):
    machine(8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / "demo.toml", ["model.device=auto"])
    assert [default_jobs(recipe, processes) for processes in (1, 4, 8, 16)] == [8, 2, 1, 1]


WORKER = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def stop(*_):
    if sys.argv[2] == "slow":
        return
    time.sleep(0.3)  # the batch under way
    (folder / "saved").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
(folder / "ready").touch()
time.sleep(60)
"""
LAUNCHER = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], start_new_session=True)
try:
    sys.exit(worker.wait())
except KeyboardInterrupt:
    worker.kill()  # as torch's launcher does, though after 30 seconds
"""


def launched(tmp_path: Path, pace: str) -> Work:
    [work] = pieces(tmp_path, "a", processes=2)
    command = [sys.executable, "-c", LAUNCHER, WORKER, str(tmp_path), pace]
    work.process = subprocess.Popen(command, start_new_session=True)
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    return work


def test_the_processes_of_a_stage_are_asked_to_stop_and_not_their_launcher(tmp_path):
    work = launched(tmp_path, "quick")
    run._wind_down([work])
    assert (tmp_path / "saved").exists() and work.process is not None and work.process.poll() == 130


def test_a_second_ctrl_c_ends_launcher_and_processes(tmp_path, monkeypatch):
    work = launched(tmp_path, "slow")
    [worker] = work.workers()
    assert work.process is not None
    waited = work.process.wait

    def again(*_):
        monkeypatch.setattr(work.process, "wait", waited)
        raise KeyboardInterrupt

    monkeypatch.setattr(work.process, "wait", again)
    run._wind_down([work])
    assert work.process.wait(10) == -signal.SIGKILL
    worker.wait(10)
    assert not worker.is_running()


def test_a_mistake_that_a_launcher_hides_is_still_told(tmp_path):
    [work] = pieces(tmp_path, "a", processes=2)
    with pytest.raises(UserError), work.directory.complaining():
        raise UserError("stages.a.groups = 3: choose a multiple of 2")
    with pytest.raises(UserError, match=r"a: stages.a.groups = 3: choose a multiple"):
        run._check_exit(work, 1)


def test_two_sessions_do_not_work_on_one_run(tmp_path):
    with RunDirectory(tmp_path / "run").alone():
        with pytest.raises(UserError, match=r"another session works on .*run"), RunDirectory(tmp_path / "run").alone():
            pass
        with RunDirectory(tmp_path / "other").alone():
            pass
    with RunDirectory(tmp_path / "run").alone():
        pass
