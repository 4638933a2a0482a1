"""Check our world and verdicts against the official checker: on gold, and on mutated answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import Field

from rcgrpo.environments.bfcl import official_worker
from rcgrpo.environments.bfcl.data import CATEGORIES, SCENARIOS, entries, load_task
from rcgrpo.environments.bfcl.environment import BfclEnvironment
from rcgrpo.environments.bfcl.install import location
from rcgrpo.environments.bfcl.memory import Memory
from rcgrpo.environments.bfcl.mutate import Answer, gold_answer, mutants
from rcgrpo.episodes.types import Call, Record, Task, Verdict

REASONS = {
    "multi_turn:empty_turn_model_response": "empty",
    "multi_turn:instance_state_mismatch": "state",
    "multi_turn:execution_response_mismatch": "response",
}
"""Official error types in our words."""

KNOWN_DEFECTS = {
    "aliasing": "official worlds share objects (long_context cards and bookings, default lists of post_tweet)",
    "rewriting": "the official executor rewrites call-shaped text inside text arguments",
}


class Difference(Record):
    """An answer that the two checkers judged differently. Judgements are empty for valid, else the reason."""

    task_id: str
    mutation: str
    ours: str
    official: str
    reason: str
    """What explains it: a known defect of the official code whose mending makes both agree, or ``unexplained``."""


class ValidationReport(Record):
    """Outcome of :func:`validate_bfcl`."""

    gold_valid: int = 0
    """Gold answers that are valid in our world, with withheld tools refused (the default)."""
    gold_total: int = 0
    gold_agreed: int = 0
    """Gold answers on which ours and the official checker agree."""
    mutants: int = 0
    agreed: int = 0
    """Mutants on which both agree: the same validity, and the same reason where invalid."""
    valid_by_mutation: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """Per kind of mutation: how many the official checker calls valid, of how many."""
    seconds: float = 0.0
    differences: list[Difference] = Field(default_factory=list)


class OfficialChecker:
    """The official ``multi_turn_checker`` in a subprocess; a context manager."""

    def __enter__(self) -> OfficialChecker:
        command = [sys.executable, str(Path(official_worker.__file__)), str(location())]
        self._log = tempfile.TemporaryFile("w+")  # a pipe that nobody reads could fill up and block it
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def judge(self, task: Task, answer: Answer | None = None, patches: Sequence[str] = ()) -> str:
        """The official judgement of ``answer`` (None: the raw gold strings): empty if valid, else the reason.

        Raises RuntimeError if the subprocess died.
        """
        gold = entries(task.category)[task.id]["ground_truth"]  # pyright: ignore[reportArgumentType]
        calls = gold if answer is None else [[render(call) for call in turn] for turn in answer]
        steps = [[[call] for call in turn] for turn in calls]
        verdict = self.ask(task, {"gold": gold, "answer": steps, "patches": list(patches)})
        if verdict["valid"]:
            return ""
        error: str = verdict["error"]
        return REASONS.get(error, error)

    def ask(self, task: Task, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request (see ``official_worker``) about a task's world. Raises RuntimeError if the process died."""
        world = {
            "id": task.id,
            "initial_config": task.data["config"],
            "involved_classes": task.data["classes"],
        }
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # it died: the empty answer says so
            self._process.stdin.write(json.dumps({"patches": [], **request, "entry": world}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"the official checker died on {task.id}: {self._log.read()[-2000:]}")
        return json.loads(line)


def render(call: Call) -> str:
    """A call in the form that the official executor evaluates: ``cd(folder='a')``."""
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"


async def play(environment: BfclEnvironment, answer: Answer) -> list[Verdict]:
    """Play an answer turn by turn, as a rollout would; one verdict per turn."""
    for calls in answer:
        environment.open_turn()
        for call in calls:
            await environment.call(call)
        environment.close_turn()
    return environment.verdicts


def judgement(verdicts: Sequence[Verdict]) -> str:
    """Empty if all turns are valid, else the reason of the first that is not."""
    return next((verdict.reason for verdict in verdicts if not verdict.valid), "")


def validate_bfcl(
    count: int = 2000, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> ValidationReport:
    """Replay all 800 gold answers, then judge ``count`` mutated ones by ours and by the official checker.

    Gold is played in our default world; for the comparison withheld tools are callable, as officially.
    ``progress`` is called with the answers judged so far and their total. Raises :class:`UserError` where BFCL is
    not installed.
    """
    began = time.perf_counter()
    tasks = [load_task(category, number) for category in CATEGORIES for number in range(SCENARIOS)]
    answers: list[tuple[Task, str, Answer | None]] = [(task, "gold", None) for task in tasks]
    answers += mutants(tasks, count, seed)
    report = ValidationReport(gold_total=len(tasks), mutants=count)
    memories = {task.id: Memory(task) for task in tasks}
    with OfficialChecker() as official:
        for done, (task, mutation, answer) in enumerate(answers, 1):
            memory = memories[task.id]
            if answer is None:
                default = asyncio.run(play(BfclEnvironment(task, memory=memory), gold_answer(task)))
                report.gold_valid += not judgement(default)
            world = BfclEnvironment(task, withheld_callable=True, memory=memory)
            ours = judgement(asyncio.run(play(world, answer or gold_answer(task))))
            theirs = official.judge(task, answer)
            if ours == theirs:
                report.gold_agreed += answer is None
                report.agreed += answer is not None
            else:
                reason = _explain(official, task, answer, ours)
                report.differences.append(
                    Difference(task_id=task.id, mutation=mutation, ours=ours, official=theirs, reason=reason)
                )
            if answer is not None:
                valid, total = report.valid_by_mutation.get(mutation, (0, 0))
                report.valid_by_mutation[mutation] = (valid + (not theirs), total + 1)
            if progress:
                progress(done, len(answers))
    report.seconds = round(time.perf_counter() - began, 2)
    return report


def _explain(official: OfficialChecker, task: Task, answer: Answer | None, ours: str) -> str:
    for defects in (["aliasing"], ["rewriting"], ["aliasing", "rewriting"]):
        if official.judge(task, answer, defects) == ours:
            return "; ".join(KNOWN_DEFECTS[name] for name in defects)
    return "unexplained"
