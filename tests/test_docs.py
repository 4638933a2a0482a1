"""The documentation says what is so: links resolve, commands exist, examples run, generated pages are fresh."""

import asyncio
import importlib.util
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer
from pydantic import BaseModel

from rcgrpo.cli import app
from rcgrpo.codec.codec import Codec
from rcgrpo.codec.tokenizer import train_tokenizer
from rcgrpo.config import Recipe, load_recipe
from rcgrpo.episodes.store import read_episodes, write_episodes
from rcgrpo.episodes.types import Call, Episode, Task
from rcgrpo.stages.evaluate import replay
from rcgrpo.stages.rollout import Job, Player

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "LOG.md", "CHANGELOG.md")] + sorted((ROOT / "docs").glob("*.md"))
TO_COME = {"docs/demo.png"}
"""Link targets that need not exist yet."""

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FILE_BLOCK = re.compile(r"```\w*\n# file: (\S+)\n(.*?)```", re.DOTALL)
UNWANTED = (
    *(rf"(?<![\w.]){re.escape(path)}" for path in ("/home/", "/root/", "/tmp/", "/work/", "/Users/")),
    r"\b(?:TODO|FIXME|TBD)\b",
    r"\b(?:seamless|effortless|blazing|cutting-edge|revolutionary|world-class|game-chang)\w*",
)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def broken_links(text: str, folder: Path) -> list[str]:
    targets = [t for t in LINK.findall(text) if "://" not in t and not t.startswith("mailto:")]
    return [
        t for t in targets if not (folder / t).exists() and str((folder / t).resolve().relative_to(ROOT)) not in TO_COME
    ]


def wrong_commands(text: str) -> list[str]:
    """Lines that call `rcgrpo` with a command or an option that it does not have."""
    wrong = []
    quoted = re.findall(r"`(rcgrpo(?: [^`\n]+)?)`", text)
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    commands = [m[1] for line in lines if (m := re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(rcgrpo\b.*)", line))]
    for command in [*quoted, *commands]:
        words = shlex.split(command.split("#")[0].split(" | ")[0])[1:]
        group = typer.main.get_command(app)
        while words and hasattr(group, "commands") and words[0] in group.commands:  # pyright: ignore
            group = group.commands[words.pop(0)]  # pyright: ignore
        if hasattr(group, "commands") and words and not words[0].startswith("-") and words[0] != "...":
            wrong.append(command)
        options = {name for parameter in group.params for name in parameter.opts} | {"--help"}
        if any(word.startswith("--") and word.split("=")[0] not in options for word in words):
            wrong.append(command)
    return wrong


@pages
def test_relative_links_resolve(page):
    assert broken_links(page.read_text(), page.parent) == []


@pages
def test_commands_and_their_options_exist(page):
    assert wrong_commands(page.read_text()) == []


@pages
def test_no_private_paths_placeholders_or_advertising(page):
    assert [m[0] for pattern in UNWANTED for m in re.finditer(pattern, page.read_text(), re.IGNORECASE)] == []


@pages
def test_recipes_that_are_named_exist(page):
    named = set(re.findall(r"\brecipes/[\w.-]+\.toml", page.read_text()))
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


PAPERS_ROWS = (
    "SFT + GRPO",
    "SFT + RC-GRPO",
    "RCTP + GRPO",
    "RCTP + RC-GRPO",
    "GRPO",
    "RC-GRPO",
    "much + GRPO",
    "much + RC-GRPO",
)
WITHOUT_STAGE_2 = {"bfcl-base", "bfcl-gpu-base", "toolworld-base"}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_grpo_and_rc_grpo_of_a_recipe_differ_in_start_and_sampler_only(path):
    """What the README calls a matched stage 2. Other arms of an ablation vary more on purpose."""
    recipe = load_recipe(path)
    arms = recipe.ablation.arms if recipe.ablation else []
    named = {arm.policy for arm in arms if arm.row in PAPERS_ROWS} if arms else set(recipe.stages)
    tables = [s for name, s in recipe.stages.items() if s.kind == "reinforce" and name in named]
    settings = {t.model_dump_json(exclude={"start", "sampler"}) for t in tables}
    assert (len(tables) >= 2 and len(settings) == 1) or path.stem in WITHOUT_STAGE_2


def test_the_checks_see_what_is_wrong():
    assert broken_links("[a](docs/none.md) [b](README.md) [c](https://x.y/z)", ROOT) == ["docs/none.md"]
    assert wrong_commands("`rcgrpo fly`, `rcgrpo run a.toml --dry-run`") == ["rcgrpo fly"]
    assert wrong_commands("```\nrcgrpo validate bfcl --quickly\nrcgrpo bfcl install  # fine\n```") == [
        "rcgrpo validate bfcl --quickly"
    ]


def test_the_page_of_recipe_keys_is_up_to_date():
    maker = runpy.run_path(str(ROOT / "docs" / "make_recipes_md.py"))
    assert maker["page"]() == (ROOT / "docs" / "recipes.md").read_text(), "run: python docs/make_recipes_md.py"


def tables_within(annotation) -> set[type[BaseModel]]:
    """The models that a recipe's type is made of, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}.union(*(tables_within(field.annotation) for field in annotation.model_fields.values()))
    return set().union(*map(tables_within, get_args(annotation)))


def test_every_table_and_key_of_a_recipe_is_described():
    tables = {model for _, model in runpy.run_path(str(ROOT / "docs" / "make_recipes_md.py"))["TABLES"]}
    assert tables == tables_within(Recipe)
    keys = [(table.__name__, name, field) for table in tables for name, field in table.model_fields.items()]
    assert [f"{table}.{name}" for table, name, field in keys if not field.description and name != "kind"] == []


@pytest.fixture
def helpdesk(tmp_path, monkeypatch):
    """The files of the example in docs/environments.md, its tasks made; the current folder is theirs."""
    blocks = FILE_BLOCK.findall((ROOT / "docs" / "environments.md").read_text())
    assert [name for name, _ in blocks] == ["helpdesk.py", "make_tasks.py", "helpdesk.toml"]
    for name, content in blocks:
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "helpdesk", raising=False)
    runpy.run_path("make_tasks.py")
    yield load_recipe(tmp_path / "helpdesk.toml")
    sys.modules.pop("helpdesk", None)


def player(recipe: Recipe) -> Player:
    texts = [recipe.suite.task(i).model_dump_json() for i in recipe.suite.split().pools["test"]]
    tokenizer = train_tokenizer(texts, 512)
    return Player(recipe.suite, Codec(tokenizer, detail=recipe.chat.schemas), recipe.rollout, recipe.reward)


def test_the_example_environment_plays_gold(helpdesk, tmp_path):
    tasks = [helpdesk.suite.task(i) for i in helpdesk.suite.split().pools["test"]]
    episodes = player(helpdesk).gold([Job(task, group_id=task.id) for task in tasks])
    assert len(episodes) == 40
    assert all(e.success and e.reward == 1.0 and not any(c.failed for s in e.steps for c in s.calls) for e in episodes)
    assert [m.content for m in episodes[0].messages if m.role == "tool"][1] == '{"ok": true}'
    assert "close(" not in episodes[0].messages[0].content
    assert "close(ticket: string)" in next(m.content for m in episodes[0].messages if "updated" in m.content)

    write_episodes(tmp_path / "gold.jsonl.gz", episodes)
    assert list(read_episodes(tmp_path / "gold.jsonl.gz")) == episodes
    rescored, changed = asyncio.run(replay(helpdesk.suite, tmp_path / "gold.jsonl.gz"))
    assert rescored == episodes and changed == []


def test_the_example_environment_judges_wrong_answers(helpdesk):
    task: Task = helpdesk.suite.task("helpdesk_0")

    async def verdicts(answer: list[list[Call]]) -> list[str]:
        world = helpdesk.suite.environment(task)
        for calls in answer:
            world.open_turn()
            for call in calls:
                await world.call(call)
            world.close_turn()
        return [verdict.reason for verdict in world.verdicts]

    search, assign = task.turns[0].gold
    close = task.turns[2].gold
    wrong = Call(name="assign", arguments={**assign.arguments, "to": "nobody"})
    assert asyncio.run(verdicts([[search, assign], [], close])) == ["", "", ""]
    assert asyncio.run(verdicts([[search, wrong], [], close])) == ["state", "state", "state"]
    assert asyncio.run(verdicts([[], [], []])) == ["empty", "state", "empty"]
    assert asyncio.run(verdicts([[search, assign], close, []])) == ["", "", "empty"]  # not there yet: it did nothing


def test_the_tool_of_the_readme_works(tmp_path):
    [(name, content)] = FILE_BLOCK.findall((ROOT / "README.md").read_text())
    (tmp_path / name).write_text(content)
    spec = importlib.util.spec_from_file_location("readme_example", tmp_path / name)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task = Task.model_validate(
        {
            "id": "1",
            "category": "base",
            "scenario": "1",
            "block": "notes",
            "turns": [{"messages": [{"role": "user", "content": "Note: milk."}]}],
            "data": {"notes": [], "wanted": [["milk"]]},
        }
    )
    world = module.Notes(task)
    world.open_turn()
    assert [schema["function"]["name"] for schema in world.visible()] == ["add"]
    executed = asyncio.run(world.call(Call(name="add", arguments={"text": "milk"})))
    assert (executed.result, executed.failed) == ('{"notes": 1}', False)
    assert world.close_turn().valid
    assert world.rewards() == {"success": 1.0, "turn_fraction": 1.0}


def test_the_episode_of_the_docs_is_one():
    text = (ROOT / "docs" / "episodes.md").read_text()
    block = re.search(r"```json\n(\{.*?\})\n```", text, re.DOTALL)
    assert block
    content = json.loads(block[1])
    episode = Episode.model_validate(content)
    assert episode.success
    assert json.loads(episode.model_dump_json()) == content
    cells = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(Episode.model_fields)


def test_the_figures_of_flat_groups_are_as_calculated(capsys):
    text = (ROOT / "docs" / "method.md").read_text()
    block = re.search(r"```python\n(.*?flat_group_probability.*?)```", text, re.DOTALL)
    assert block
    exec(block[1], {})
    printed = [tuple(map(float, line.split())) for line in capsys.readouterr().out.splitlines()]
    stated = [(float(a), float(b)) for a, b in re.findall(r"^# ([\d.]+) -> ([\d.]+)", block[1], re.MULTILINE)]
    # by hand: groups of 5 are flat with probability q^5 + (1 - q)^5, q the mean success under the drawn tokens
    by_hand = [(q**5 + (1 - q) ** 5, m**5 + (1 - m) ** 5) for q, m in ((0.9, 0.5), (0.85, 0.85), (0.5, 0.275))]
    assert len(stated) == 3
    for shown, said, right in zip(printed, stated, by_hand, strict=True):
        assert shown == pytest.approx(right) and said == pytest.approx(right, abs=0.005)
