"""The report of a synthetic run: what it shows, what it escapes, that it stands alone."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from rcgrpo.algorithm.statistics import wilson
from rcgrpo.environments.split import Split
from rcgrpo.episodes.store import write_episodes
from rcgrpo.episodes.types import (
    Call,
    Episode,
    ExecutedCall,
    Message,
    ParseFailure,
    RewardToken,
    Step,
    StopReason,
    Verdict,
)
from rcgrpo.errors import UserError
from rcgrpo.report.data import read_run, select_episodes
from rcgrpo.report.figures import smooth
from rcgrpo.report.page import shorten, summary, turns, write_report
from rcgrpo.report.table import print_table
from rcgrpo.stages.directory import RunDirectory

CATEGORIES = ("base", "long_context", "miss_func", "miss_param")
HOSTILE = "</pre><script>alert('owned')</script><img src=x onerror=alert(1)>"
ROWS = [
    ("base", "base", None, 0.25),
    ("SFT", "sft", None, 0.45),
    ("RCTP, high", "rctp", "high", 0.6),
    ("RCTP, low", "rctp", "low", 0.2),
    ("SFT + GRPO", "grpo", None, 0.65),
    ("RCTP + RC-GRPO", "rc_grpo", "high", 0.8),
]


def episode(number: int, success: bool, token: str | None, policy: str = "p") -> Episode:
    """Two turns: a call that works, then one that fails, is malformed, and tries to break out of the page."""
    reward_token = RewardToken(token) if token else None
    goal = f"\n[Reward Goal: {reward_token.text}]" if reward_token else ""
    order = Call(name="place_order", arguments={"item": "tea", "count": 2})
    refused = Call(name="send_receipt", arguments={"to": HOSTILE})
    first = Step(
        turn=0,
        message=Message(role="assistant", content="I place the order first.", calls=[order]),
        calls=[ExecutedCall(turn=0, call=order, result='{"order_id": 417, "total": 9.8, "status": "placed"}')],
    )
    closing = Step(turn=0, message=Message(role="assistant", content="Your order 417 is placed."))
    second = Step(
        turn=1,
        message=Message(role="assistant", content="", calls=[refused]),
        calls=[ExecutedCall(turn=1, call=refused, result=json.dumps({"error": f"no address {HOSTILE}"}), failed=True)],
        failures=[ParseFailure(kind="json", message="not JSON: expected , at 14", text='{"name": "x" ' + HOSTILE)],
        truncated=not success,
    )
    return Episode(
        task_id=f"shop-{number}",
        category=CATEGORIES[number % 4],
        scenario=f"scenario-{number // 4}",
        group_id=f"shop-{number}",
        policy=policy,
        reward_token=reward_token,
        messages=[
            Message(role="user", content=f"Order two packs of tea, please.{goal}"),
            first.message,
            Message(role="tool", content=first.calls[0].result),
            closing.message,
            Message(role="user", content="Now send the receipt to my office."),
            second.message,
            Message(role="tool", content=second.calls[0].result),
        ],
        steps=[first, closing, second],
        token_ids=list(range(9)),
        loss_mask=[0, 0, 1, 1, 1, 0, 0, 1, 1],
        verdicts=[
            Verdict(valid=True),
            Verdict(
                valid=success, reason="" if success else "state", detail="" if success else "receipts: [] != [417]"
            ),
        ],
        stop_reason=StopReason.COMPLETED,
        rewards={"success": float(success)},
        reward=float(success),
    )


def reinforce_metrics(conditioned: bool, steps: int = 80) -> list[dict]:
    rng = random.Random(conditioned)
    lines = []
    for step in range(1, steps + 1):
        done = step / steps
        reward = 0.5 + 0.35 * done + rng.gauss(0, 0.05)
        separation = max(0.0, 0.4 * (1 - done)) + rng.gauss(0, 0.04)
        lines.append(
            {
                "step": step,
                "reward_mean": reward,
                "zero_variance_share": 0.4 + 0.3 * done + rng.gauss(0, 0.07),
                "all_zero_share": 0.1 * (1 - done),
                "all_one_share": 0.3 + 0.3 * done,
                "success_high": reward + 0.1 if conditioned else None,
                "success_low": 0.4 if conditioned else None,
                "separation": separation if conditioned else None,
                "between_variance": separation**2 / 4 if conditioned else 0.0,
                "within_variance": 0.15 - 0.08 * done + rng.gauss(0, 0.01),
                "kl": 0.02 * done,
                "entropy": 0.5 - 0.3 * done,
                "grad_norm": 0.3 + rng.random() / 5,
                "clip_fraction": 0.01 * rng.random(),
                "response_length": 60 + 3 * rng.random(),
                "mismatch_kl": 1e-7 * rng.random(),
                "loss": 0.1,
                "seconds": 0.8,
            }
        )
    return lines


def share(successes: int, n: int) -> dict:
    low, high = wilson(successes, n)
    return {"success": successes / n, "low": low, "high": high, "n": n}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run of one's own, written as the stages write it, without a report."""
    return build_run(tmp_path / "run")


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its report, for reading only."""
    return write_report(build_run(tmp_path_factory.mktemp("reported") / "run")).parent


def build_run(path: Path, per_row: int = 64) -> Path:
    run = RunDirectory(path)
    stages = {
        "tiny": {"kind": "pretrain", "pool": "train"},
        "experts": {"kind": "collect", "policy": "gold", "pool": "experts"},
        "failures": {"kind": "collect", "policy": "base", "pool": "experts"},
        "sft": {"kind": "finetune", "start": "base", "data": ["experts"]},
        "rctp": {"kind": "finetune", "start": "base", "data": ["experts", "failures"]},
        "grpo": {"kind": "reinforce", "start": "sft", "pool": "train"},
        "rc_grpo": {"kind": "reinforce", "start": "rctp", "pool": "train"},
    }
    config = {
        "name": "demo", "description": "The whole path on ToolWorld.", "seed": 0, "toolworld": {}, "stages": stages,
        "evaluate": {"pool": "test", "limit": None, "temperature": 0.0},
    }  # fmt: skip
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "provenance.json").write_text(
        json.dumps({"versions": {"python": "3.11.9", "torch": "2.13.0"}, "commit": "0123abc", "gpus": [], "seed": 0})
    )
    pools = {"experts": ["e-1"], "train": ["t-1"], "test": [f"shop-{i}" for i in range(per_row)]}
    Split(suite="toolworld", rule="by scenario, seed 0", pools=pools).save(run.split_path)
    for name, table in stages.items():
        directory = run.stage(name)
        if table["kind"] in ("pretrain", "finetune"):
            for step in range(1, 41):
                directory.metric(step=step, loss=2 / step + (0.3 if name == "sft" else 0.2), lr=1e-4, tokens=900)
        elif table["kind"] == "reinforce":
            for line in reinforce_metrics(conditioned=name == "rc_grpo"):
                directory.metric(**line)
        directory.path.mkdir(parents=True, exist_ok=True)
        directory.finish(kind=table["kind"], start="base", digest="0", seconds=12.5)
    table = []
    for row, policy, token, rate in ROWS:
        played = [episode(i, i % 20 < rate * 20, token, policy) for i in range(per_row)]
        write_episodes(run.evaluation(row) / "episodes.jsonl.gz", played)
        by_category = {
            c: share(sum(e.success for e in played if e.category == c), per_row // 4) for c in CATEGORIES
        }  # fmt: skip
        probed = {"zero_variance_share": 0.4, "separation": 0.38 if policy in ("rctp", "rc_grpo") else None}
        table.append(
            {"row": row, "policy": policy, "token": token, "temperature": 0.0, "by_category": by_category, "errors": 0,
             **share(sum(e.success for e in played), per_row), **probed}
        )  # fmt: skip
    run.table_path.write_text(json.dumps(table))
    return path


class Page(HTMLParser):
    """What a browser would make of the page: tags, attributes, text; and whether tags nest."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "line", "circle", "path", "use", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID and tag not in ("option", "p", "dt", "dd"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID and tag not in ("option", "p", "dt", "dd"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data

    def attributes(self, tag: str, name: str) -> list[str | None]:
        return [attributes.get(name) for found, attributes in self.tags if found == tag]


@pytest.fixture(scope="module")
def page(reported: Path) -> Page:
    return Page((reported / "report.html").read_text())


def test_the_page_stands_alone(reported: Path, page: Page):
    assert page.open == []  # all that opens is closed, in order
    loaded = [v for _, attributes in page.tags for k, v in attributes.items() if k.endswith(("src", "href")) and v]
    assert loaded and all(target.startswith("#") for target in loaded)
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object"}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {t[1:] for t in loaded} <= set(ids)
    assert not [path for path in reported.iterdir() if "partial" in path.name]


def test_what_the_policy_wrote_stays_text(reported: Path, page: Page):
    assert HOSTILE in page.words  # shown as it was written
    assert page.attributes("script", "src") == [None]  # the page's own script, and no other
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    text = (reported / "report.html").read_text()
    assert "<script>alert" not in text
    assert text.count("<script") == 1 < html.unescape(text).count("<script")  # control: only the escaping holds it


def test_the_browser_is_told_to_run_only_the_pages_own_script(reported: Path, page: Page):
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    script = re.search(r"<script>(.*)</script>", (reported / "report.html").read_text(), re.DOTALL)
    assert policy and script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_the_table_gives_each_row_with_its_interval(reported: Path, page: Page):
    for row in json.loads((reported / "table.json").read_text()):
        label = f"{100 * row['success']:.1f} percent, {100 * row['low']:.1f} to {100 * row['high']:.1f}"
        assert row["row"] in page.words
        assert label in page.attributes("svg", "aria-label")
    assert "+38.0" in page.words  # separation in points


def test_a_row_has_one_colour_everywhere(reported: Path, page: Page):
    run = read_run(reported)
    colours = {row.figures["row"]: row.colour for row in run.rows}
    assert colours["base"] == "base" and len(set(colours.values())) == len(ROWS)
    assert run.colours["rc_grpo"] == colours["RCTP + RC-GRPO"] and run.colours["grpo"] == colours["SFT + GRPO"]
    assert run.colours["rctp"] == colours["RCTP, high"]  # the first row that evaluates the stage
    curves = re.search(r'<svg[^>]*aria-label="Separation.*?</svg>', (reported / "report.html").read_text(), re.DOTALL)
    assert curves  # only the conditioned stage has a separation
    assert f"var(--c-{colours['RCTP + RC-GRPO']})" in curves[0] and f"var(--c-{colours['SFT + GRPO']})" not in curves[0]
    assert not re.search(r"#0[123]0[0-9a-f]{3}", curves[0])  # no placeholder is left


def test_the_browser_offers_both_outcomes_of_every_row(page: Page):
    shown = [a for t, a in page.tags if t == "details" and a.get("class") == "episode"]
    for row, *_ in ROWS:
        for outcome in ("solved", "failed"):
            fitting = [a for a in shown if a["data-row"] == row and a["data-outcome"] == outcome]
            assert len(fitting) == 6
            assert {a["data-category"] for a in fitting} == set(CATEGORIES)


def test_an_episode_reads_turn_by_turn(page: Page):
    first, second = turns(episode(0, False, "high"))
    assert [m.content for m in second.said] == ["Now send the receipt to my office."]
    assert [len(turn.steps) for turn in (first, second)] == [2, 1]
    assert first.verdict and first.verdict.valid and second.verdict and second.verdict.reason == "state"
    for text in (
        "[Reward Goal: <|high_reward|>]",
        'place_order(item="tea", count=2)',
        '"order_id": 417',
        "receipts: [] != [417]",
        "malformed call (json)",
    ):
        assert text in page.words


def test_turns_never_reached_and_turns_without_an_answer_are_shown():
    whole = episode(0, False, None)
    cut = whole.model_copy(
        update={
            "messages": whole.messages[:5],
            "steps": whole.steps[:2],
            "verdicts": [*whole.verdicts, Verdict(valid=False, reason="unreached")],
        }
    )
    views = turns(cut)
    assert [len(view.said) for view in views] == [1, 1, 0]
    assert [len(view.steps) for view in views] == [2, 0, 0]
    silent = turns(whole.model_copy(update={"messages": whole.messages[:1], "steps": []}))
    assert len(silent[0].said) == 1 and silent[1].said == []


def test_the_summary_names_the_best_row_and_what_it_cannot_settle(reported: Path):
    text = summary(read_run(reported))
    assert "Highest success on pool 'test' under greedy decoding: RCTP + RC-GRPO, 81.2% of 64" in text
    assert "overlaps with RCTP, high; SFT + GRPO: " in text  # and not with those below


def test_training_on_the_evaluated_tasks_is_said_at_the_top(run_dir: Path, page: Page):
    assert "plumbing" not in page.words
    run = RunDirectory(run_dir)
    split = run.split()
    Split(suite="toolworld", rule="all", pools={**split.pools, "train": split.pools["test"][:16]}).save(run.split_path)
    assert "16 of the evaluated tasks are also in pool 'train'" in Page(write_report(run_dir).read_text()).words


def test_a_run_under_way_is_reported_as_far_as_it_got(run_dir: Path):
    (run_dir / "table.json").unlink()
    (run_dir / "stages/rc_grpo/stage.json").unlink()
    words = Page(write_report(run_dir).read_text()).words
    assert "Nothing is evaluated yet" in words and "Not finished when this page was written: rc_grpo" in words


def test_a_missing_or_damaged_run_is_the_users_to_mend(run_dir: Path, tmp_path: Path):
    with pytest.raises(UserError, match="not a run directory"):
        write_report(tmp_path / "nowhere")
    with (run_dir / "stages/grpo/metrics.jsonl").open("a") as stream:
        stream.write('{"step": 81, "rew\n')
    with pytest.raises(UserError, match="stage 'grpo'"):
        write_report(run_dir)


def test_writing_twice_gives_the_same_bytes(run_dir: Path):
    assert write_report(run_dir).read_bytes() == write_report(run_dir).read_bytes()


def test_control_characters_and_lone_surrogates_are_made_visible(run_dir: Path):
    run = RunDirectory(run_dir)
    table = json.loads(run.table_path.read_text())
    table[0]["row"] = "a\x00b\u202ec\ud800"
    run.table_path.write_text(json.dumps(table))
    text = write_report(run_dir).read_text()
    assert "a\\u0000b\\u202ec\\ud800" in text and "\x00" not in text and "\u202e" not in text


def test_long_texts_are_cut_and_say_so():
    assert shorten("a" * 10, 10) == "a" * 10
    assert shorten("a" * 1300, 100) == "a" * 100 + "\n… 1,200 more characters"


def test_selection_takes_categories_in_turn():
    played = [episode(i, False, None) for i in (0, 4, 8, 12, 16, 20, 1, 2)]
    assert [e.task_id for e in select_episodes(played, 4)] == ["shop-0", "shop-1", "shop-2", "shop-4"]


def test_smoothing_averages_known_neighbours():
    values = smooth([0.0, None, 3.0, 6.0, float("nan")], 3)
    assert values == pytest.approx([0.0, 1.5, 4.5, 4.5, 6.0])


def test_the_terminal_table_shows_what_there_is(reported: Path):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_table(json.loads((reported / "table.json").read_text()), console)
    text = console.export_text()
    assert "RCTP + RC-GRPO" in text and "+38.0" in text and "miss_param" in text
    print_table(
        [{"row": "[bold]x[/bold]", "success": 0.5, "low": 0.25, "high": 0.75, "n": 8, "token": "high"}], console
    )
    text = console.export_text()
    assert "[bold]x[/bold]" in text and "25.0 - 75.0" in text and "separation" not in text
