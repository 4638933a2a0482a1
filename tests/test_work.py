"""What runs side by side, and on which GPUs."""

from pathlib import Path

import pytest
import torch

from rcgrpo.config import load_recipe
from rcgrpo.stages import run
from rcgrpo.stages.directory import StageDirectory
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
