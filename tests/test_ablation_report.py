"""The page and the section of docs/results.md that an ablation's results file gives."""

import re
import runpy
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binomtest

from rcgrpo.experiments.results import read_results, with_cells, write_results
from rcgrpo.experiments.statistics import difference, mean_interval
from rcgrpo.report.ablation import arm_views, forest_reach, notes, render_ablation, shown_at_first, trained_arms
from rcgrpo.report.ablation_figures import Trained, band, end_of_training
from rcgrpo.report.markdown import leak_section, markdown_table, results_section
from rcgrpo.report.rows import (
    ablation_rows,
    category_rows,
    hours,
    print_ablation,
    print_plan,
    token_effects,
    training_seconds,
)
from rcgrpo.report.table import signed
from synthetic_ablation import ARMS, synthetic_results

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results() -> dict:
    return synthetic_results()


@pytest.fixture(scope="module")
def page(results) -> str:
    return render_ablation(results)


class Page(HTMLParser):
    """Ids, links to the outside, and whether tags are closed."""

    VOID = ("meta", "input", "br", "circle", "line", "path", "use", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        self.outside += [v for n, v in attrs if n in ("src", "href", "xlink:href") and not v.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_stands_alone_and_is_well_formed(page):
    parsed = Page(page)
    assert parsed.outside == [] and parsed.open == [] and "<script" not in page
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert "default-src 'none'" in page


def test_the_page_shows_every_row_with_its_mean_over_the_seeds(page, results):
    for row, _, token, *_ in ARMS:
        successes = [c["success"] for c in results["cells"] if (c["row"], c["token"]) == (row, token)]
        assert row in page and f"<strong>{100 * np.mean(successes):.1f}</strong>" in page
    for pair in results["comparisons"]:
        assert f"<strong>{100 * pair['diff']:+.1f}</strong>" in page
    for title in ("Reward", "Flat groups", "Separation", "Variance between tokens", "Variance within tokens", "Cost"):
        assert f">{title}</h" in page


def test_what_a_plan_says_is_escaped(results):
    hostile = "<img src=x onerror=alert(1)>"
    plan = {**results["plan"], "description": hostile, "command": hostile}
    page = render_ablation({"plan": plan, "cells": [], "comparisons": []})
    assert hostile not in page and "&lt;img src=x" in page


def test_an_arms_box_hides_what_is_drawn_of_it(page, results):
    """The rule of a box names the end of the ids of the arm's lines, bands and dots, and of no other arm's."""
    arms = trained_arms(results, arm_views(results))
    ids = Page(page).ids
    assert len({arm.gid for arm in arms}) == len(arms) == 7
    for arm in arms:
        assert f'main:has(#show-{arm.gid}:not(:checked)) [id$="-{arm.gid}"]' in page
        hidden = {i for i in ids if i.endswith(f"-{arm.gid}")} - {f"show-{arm.gid}"}
        assert {f"curve-reward_mean-{kind}-{arm.gid}" for kind in ("line", "band")} <= hidden
        assert not any(i.endswith(f"-{arm.gid}") for other in arms if other is not arm for i in [f"x-{other.gid}"])


def test_of_many_arms_those_in_comparisons_are_shown_first(results):
    arms = [Trained(f"arm {i}", str(i % 8), i // 8, []) for i in range(20)]
    plan = {"comparisons": [["arm 19", "arm 3"], ["SFT", "arm 18"]]}
    assert shown_at_first({"plan": plan}, arms) == {"arm 19", "arm 3", "arm 18", *(f"arm {i}" for i in (0, 1, 2, 4, 5))}
    assert shown_at_first({"plan": plan}, arms[:8]) == {arm.row for arm in arms[:8]}


def test_a_band_is_the_mean_and_the_range_of_the_seeds():
    def cell(values, steps=None):
        return {"curves": {"step": steps or list(range(1, len(values) + 1)), "kl": values}}

    found = band([cell([1.0, 2.0, None]), cell([3.0, 6.0, None]), cell([None] * 3)], "kl")
    assert found is not None
    assert (found.steps, found.mean, found.low, found.high) == ([1, 2], [2, 4], [1, 2], [3, 6])
    assert band([cell([None, None])], "kl") is None
    shorter = band([cell([1.0, 2.0, 3.0]), cell([3.0])], "kl")
    assert shorter is not None and shorter.mean == [2, 2, 3]
    thinned = band([cell([2.0, 4.0], [2, 4]), cell([1.0, 2.0, 3.0])], "kl")  # a longer run, of fewer points
    assert thinned is not None and (thinned.steps, thinned.mean, thinned.low) == ([2, 4], [2, 4], [2, 4])


def test_the_end_of_training_is_its_last_fifth():
    values = [0.0] * 8 + [1.0, 0.5]
    assert end_of_training({"curves": {"kl": values}}, "kl") == pytest.approx(0.75)
    assert end_of_training({"curves": {"kl": [1.0, None]}}, "kl") is None


def test_rows_average_what_is_known_and_time_counts_shared_stages_once(results):
    rows = {(row.row, row.token): row for row in ablation_rows(results)}
    assert len(rows) == 30 and sum(row.headline for row in rows.values()) == 10
    dapo = rows["DAPO", "none"]
    assert dapo.figures["rollouts"] == 25600 and dapo.seeds == [0, 1, 2, 3, 4] and dapo.low < dapo.success < dapo.high
    # by hand: two arms that share their stage 1
    small = with_cells(results, [])
    small["cells"] = [
        {"seed": 0, "stages": {"sft": 100.0, "grpo": 10.0}, "evaluate_seconds": 1.0},
        {"seed": 0, "stages": {"sft": 100.0}, "evaluate_seconds": 2.0},
        {"seed": 1, "stages": {"sft": 100.0}, "evaluate_seconds": 3.0},
    ]
    assert training_seconds(small) == 100 + 10 + 100 + 6
    assert [hours(s) for s in (30, 600, 7200)] == ["30 s", "10.0 min", "2.0 h"]


def test_what_a_reader_must_know_is_said(results):
    assert notes(results) == ["DAPO has another budget: it resamples flat groups, at most twice."]
    fewer = with_cells(results, [{**c, "gradient_steps": 46} for c in results["cells"] if c["row"] == "DAPO"])
    assert "DAPO: its budget of rollouts was used up after 46 of 100 gradient steps." in notes(fewer)
    partly = with_cells(results, [])
    partly["cells"] = [c for c in partly["cells"] if (c["row"], c["token"], c["seed"]) != ("SFT", "low", 3)]
    assert "Measured under other seeds than the row under its own token: SFT under low." in notes(partly)
    loose = synthetic_results(2, 20, commit=None)
    loose["cells"] = [c for c in loose["cells"] if c["seed"] == 0]
    found = " ".join(notes(loose))
    assert "not committed before" in found and "Not measured yet: seed 1" in found and "One seed only" in found
    planned = {"plan": {**loose["plan"], "started": None}, "cells": [], "comparisons": []}
    assert "not committed before" not in " ".join(notes(planned))


def test_an_ablation_under_way_is_drawn_as_far_as_it_got(results):
    plan = results["plan"]
    none = {"plan": {**plan, "started": None}, "cells": [], "comparisons": []}
    assert "0 of 150 cells" in render_ablation(none)
    some = with_cells(none, [c for c in results["cells"] if c["row"] == "base" and c["token"] == "low"])
    assert "not measured yet" in render_ablation(some) and "not measured yet" in results_section(some, "x.json")


def test_nothing_has_no_sign_of_its_own():
    assert [signed(x) for x in (-1e-9, -0.0004, -0.0006, 0.125, None)] == ["+0.0", "+0.0", "-0.1", "+12.5", "-"]


def test_the_forest_plot_reaches_the_widest_interval():
    assert forest_reach([{"low": -0.31, "high": 0.2}, {"low": None, "high": None}]) == 40
    assert forest_reach([]) == 10 and forest_reach([{"low": -1.0, "high": 0.2}]) == 100


def test_the_markdown_has_the_pages_figures(results):
    text = results_section(results, "synthetic.json")
    table = [line for line in text.splitlines() if line.startswith("| SFT + GRPO | none")]
    success = np.mean([c["success"] for c in results["cells"] if (c["row"], c["token"]) == ("SFT + GRPO", "none")])
    assert len(table) == 1 and f"**{100 * success:.1f}**" in table[0]
    assert "rcgrpo ablate recipes/synthetic.toml --results docs/results/synthetic.json" in text
    tables = {line.count("|") for line in text.splitlines() if line.startswith("| RCTP + RC-GRPO |")}
    assert len(tables) == 5  # rows, pairs, categories, tokens, pairs by separation
    assert markdown_table(["a", "b"], [["x|y", "1"]], texts=1) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


@pytest.fixture(scope="module")
def graded() -> dict:
    """Results whose plan names a reward: one on average half of the way to a success."""
    results = synthetic_results(2, 20)
    cells = [
        {**cell, "rewards": [max(float(mark), (i % 3) / 4) for i, mark in enumerate(cell["outcomes"])]}
        for cell in results["cells"]
    ]
    return with_cells({**results, "plan": {**results["plan"], "reward": "turn_fraction"}, "cells": []}, cells)


def test_a_graded_reward_is_compared_beside_success(graded, results):
    plain = synthetic_results(2, 20)
    pair, without = graded["comparisons"][0], plain["comparisons"][0]
    assert {k: v for k, v in pair.items() if k != "reward"} == without and "reward" not in without
    means = {
        row: [np.mean(c["rewards"]) for c in graded["cells"] if (c["row"], c["token"]) == (row, token)]
        for row, token in ((pair["a"], "high"), (pair["b"], "none"))
    }
    by_seed = np.subtract(means[pair["a"]], means[pair["b"]])
    assert pair["reward"]["by_seed"] == pytest.approx(list(by_seed))
    assert pair["reward"]["diff"] == pytest.approx(by_seed.mean())
    assert pair["reward"]["low"] <= pair["reward"]["diff"] <= pair["reward"]["high"]
    smallest = min(graded["comparisons"], key=lambda p: p["reward"]["p"])["reward"]
    assert smallest["p_holm"] == pytest.approx(min(1, len(graded["comparisons"]) * smallest["p"]))


def test_a_graded_reward_is_shown_wherever_success_is(graded, results):
    [mean] = [
        row.reward.value for row in ablation_rows(graded) if row.row == "SFT + GRPO" and row.headline and row.reward
    ]
    console = Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: SIM115
    print_ablation(graded, console)
    text, page = results_section(graded, "x.json"), render_ablation(graded)
    Page(page)
    for shown in (console.export_text(), text, page):
        assert f"{100 * mean:.1f}" in shown and re.search("turn.fraction", shown)
    assert all(row.reward is None for row in ablation_rows(results))
    assert "turn" not in results_section(results, "x.json") and 'id="reward"' not in render_ablation(results)
    some = with_cells({**graded, "cells": []}, [c for c in graded["cells"] if c["row"] == "base"])
    reward = render_ablation(some).partition('id="reward"')[2].partition("</section>")[0]
    assert "not measured yet" in reward and "a - b, reward" not in results_section(some, "x.json")
    for width in (80, 110):
        console = Console(record=True, width=width, file=open("/dev/null", "w"))  # noqa: SIM115
        print_ablation(graded, console)
        assert len(re.findall(r"│ SFT \+ GRPO +│ +none │", console.export_text())) == 2


def test_scenarios_are_resampled_where_the_plan_names_them(graded, results):
    plan = {**results["plan"], "scenarios": [str(i // 4) for i in range(120)]}
    clustered = with_cells({**results, "plan": plan, "cells": []}, results["cells"])
    for apart, together in zip(results["comparisons"], clustered["comparisons"], strict=True):
        assert apart["diff"] == pytest.approx(together["diff"]) and apart["low"] != pytest.approx(together["low"])
        assert apart["by_seed"] == pytest.approx(together["by_seed"]) and apart["mcnemar"] == together["mcnemar"]
    rows = zip(ablation_rows(results), ablation_rows(clustered), strict=True)
    assert all(a.success == pytest.approx(b.success) and a.low != pytest.approx(b.low) for a, b in rows)
    plan = {**graded["plan"], "scenarios": [str(i // 4) for i in range(20)]}
    rewarded = with_cells({**graded, "plan": plan, "cells": []}, graded["cells"])
    for apart, together in zip(graded["comparisons"], rewarded["comparisons"], strict=True):
        assert apart["reward"]["p"] != together["reward"]["p"]
    assert "20 tasks come from 5 scenarios" in " ".join(notes(rewarded))
    assert "scenarios" not in " ".join(notes(graded))


def test_the_leak_is_the_gain_over_the_base_that_an_honest_split_does_not_give(graded):
    leaky = {**graded, "cells": [{**c} for c in graded["cells"]]}
    for cell in leaky["cells"]:
        if cell["row"] == "SFT":
            cell["rewards"] = [min(1.0, reward + 0.25) for reward in cell["rewards"]]
    section = leak_section(graded, leaky)
    lines = [line for line in section.splitlines() if line.startswith(("| SFT |", "| RCTP |"))]
    leaks = {(line.split(" | ")[0][2:], line.split(" | ")[1]): line.split(" | ")[4] for line in lines}
    gained = np.mean(
        [
            min(1.0, reward + 0.25) - reward
            for c in graded["cells"]
            if (c["row"], c["token"]) == ("SFT", "none")
            for reward in c["rewards"]
        ]
    )
    assert leaks["SFT", "turn_fraction"] == f"**+{100 * gained:.1f}**" and leaks["SFT", "success"] == "**+0.0**"
    assert leaks["RCTP", "turn_fraction"] == "**+0.0**"
    assert leak_section(graded, {**leaky, "cells": []}) == ""
    names = [str(i // 4) for i in range(20)]
    clustered = [{**of, "plan": {**of["plan"], "scenarios": names}} for of in (graded, leaky)]
    again = [line.split(" | ") for line in leak_section(*clustered).splitlines() if line.startswith("| SFT | turn")]
    [before] = [line.split(" | ") for line in lines if line.startswith("| SFT | turn")]
    assert again[0][4] == before[4] and again[0][5] != before[5]  # the same leak, another interval
    assert "5 scenarios are tested by both" in leak_section(*clustered)


def hand_made(rows: dict, **plan) -> dict:
    """Results of 4 tasks, 2 of them probed: (row, token, seed) to outcomes and the probed tasks' means."""
    arms = [{"row": r, "policy": r, "token": "high", "unmatched": None} for r in dict.fromkeys(key[0] for key in rows)]
    seeds = sorted({key[2] for key in rows})
    tasks = {"n": 4, "probe_tasks": 2}
    cells = [
        {"row": row, "token": token, "seed": seed, "outcomes": marks, "probe_means": means}
        for (row, token, seed), (marks, means) in rows.items()
    ]
    pairs = [["x", "y"]] if len(arms) > 1 else []
    empty = {"plan": {"tasks": tasks, "seeds": seeds, "tokens": ["high", "low"], "arms": arms, "comparisons": pairs}}
    return with_cells({"plan": {**empty["plan"], **plan}, "cells": [], "comparisons": []}, cells)


def test_what_the_tokens_change_by_hand():
    rows = {
        ("x", "high", 0): ("1110", [0.75, 0.5]), ("x", "low", 0): ("1000", [0.25, 0.5]),
        ("x", "high", 1): ("1100", [0.5, 1.0]), ("x", "low", 1): ("0100", [0.5, 0.25]),
        ("y", "high", 0): ("1111", [1.0, 1.0]), ("y", "low", 0): ("1111", [0.5, 0.5]),
        ("y", "high", 1): ("1111", [1.0, 0.0]),
    }  # fmt: skip
    found = hand_made(rows)
    x, y = token_effects(found)
    assert x.evaluated.by_seed == [0.5, 0.25] and x.evaluated.diff == pytest.approx(0.375)
    assert x.sampled is not None and x.sampled.by_seed == [0.25, 0.375]
    assert y.sampled is not None and y.sampled.by_seed == [0.5]  # seed 1 has no low
    [pair] = found["comparisons"]
    assert pair["seeds"] == [0, 1] and pair["separation"]["by_seed"] == [0.25 - 0.5]
    assert pair["separation"]["p_holm"] == pair["separation"]["p"]

    older = hand_made({key: (marks, []) for key, (marks, _) in rows.items()})
    assert token_effects(older)[0].sampled is None and "separation" not in older["comparisons"][0]
    clustered = hand_made(rows, scenarios=["s", "s", "t", "t"])
    assert token_effects(clustered)[0].sampled != x.sampled  # both probed tasks are of one scenario
    assert token_effects(clustered)[0].evaluated.by_seed == x.evaluated.by_seed


def test_a_separation_that_no_probed_task_shows_may_be_twice_as_far_off_as_a_success():
    none = np.zeros((1, 8))
    unseen = binomtest(0, 8).proportion_ci(0.95, method="exact").high
    assert difference(none, none, reach=2.0).high == pytest.approx(2 * unseen)
    assert difference(none, none).high == pytest.approx(unseen)


def test_a_separation_can_differ_by_more_than_one():
    rows = {("x", "high", 0): ("1111", [1.0, 1.0]), ("x", "low", 0): ("1111", [0.0, 0.0])}
    rows |= {("y", token, 0): (marks, [m, m]) for token, marks, m in (("high", "1111", 0.0), ("low", "1111", 1.0))}
    separation = hand_made(rows)["comparisons"][0]["separation"]
    assert separation["diff"] == 2.0 and separation["low"] < 2.0 == separation["high"]


def test_success_is_shown_by_category(page, results):
    marks = [c["outcomes"] for c in results["cells"] if (c["row"], c["token"]) == ("RCTP", "high")]
    found = next(row for row in category_rows(results) if row.row == "RCTP")
    by_hand = [[int(m) for m in seed[start::2]] for start in (0, 1) for seed in [*marks]]
    assert found.success["plain"].value == pytest.approx(np.mean(by_hand[:5]))
    assert found.success["missing"].value == pytest.approx(np.mean(by_hand[5:]))
    assert found.success["plain"] == mean_interval(np.array(by_hand[:5]))
    section = results_section(results, "synthetic.json")
    assert "| row | plain (60) | missing (60) |" in section and 'colspan="2">missing (60)</th>' in page
    assert f"**{100 * found.success['plain'].value:.1f}** (" in section
    whole = {**results, "plan": {k: v for k, v in results["plan"].items() if k != "categories"}}
    assert category_rows(whole) == [] and "By category" not in render_ablation(whole)
    names = [f"{i // 4:02}" for i in range(120)]  # four tasks a scenario: fewer independent draws
    clustered = category_rows({**results, "plan": {**results["plan"], "scenarios": names}})
    alike = next(row for row in clustered if row.row == "RCTP").success["plain"]
    assert alike.value == found.success["plain"].value and alike[1:] != found.success["plain"][1:]


def test_page_and_docs_show_what_the_tokens_change(page, results):
    effect = next(e for e in token_effects(results) if e.row == "RCTP")
    assert effect.sampled is not None
    for figure in (effect.evaluated.diff, effect.sampled.diff, results["comparisons"][0]["separation"]["diff"]):
        assert f"<strong>{100 * figure:+.1f}</strong>" in page
    section = results_section(results, "synthetic.json")
    assert f"| RCTP | **{100 * effect.evaluated.diff:+.1f}** |" in section and "a - b, separation" in section


def test_a_results_file_survives_writing_and_reading(results, tmp_path):
    write_results(tmp_path / "r.json", results)
    assert read_results(tmp_path / "r.json") == results
    lines = (tmp_path / "r.json").read_text().splitlines()
    assert sum(line.startswith('  {"row"') for line in lines) == 150


def test_the_terminal_shows_plan_table_and_comparisons(results):
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    print_plan(results["plan"], console)
    print_ablation(results, console)
    shown = console.export_text()
    assert "it resamples flat groups" in shown and "8320" in shown
    assert re.search(r"SFT \+ GRPO +│ +none │ +[\d.]+ │", shown) and "p (Holm)" in shown


def test_the_page_of_results_is_up_to_date():
    maker = runpy.run_path(str(ROOT / "docs" / "make_results_md.py"))
    assert maker["page"]() == (ROOT / "docs" / "results.md").read_text(), "run: python docs/make_results_md.py"


def test_the_map_takes_each_start_from_which_both_kinds_of_training_were_run():
    points = runpy.run_path(str(ROOT / "docs" / "draw_map.py"))["points"]
    marks = {
        "RCTP": ["1100", "1110"], "RCTP + RC-GRPO": ["1000", "1100"], "RCTP + GRPO": ["1110", "1100"],
        "SFT": ["1100"], "SFT + GRPO": ["1100"],  # RC-GRPO was not run from there
    }  # fmt: skip
    found = hand_made(
        {(row, "high", s): (m, []) for row, of in marks.items() for s, m in enumerate(of)}, comparisons=[]
    )
    for cell in found["cells"]:
        cell["separation"] = [0.1, 0.3][cell["seed"]]
    (point,) = points(found)
    assert tuple(point)[:3] == pytest.approx((20, 62.5, -25)) and point.low <= point.gain <= point.high
    found["cells"] = [c for c in found["cells"] if (c["row"], c["seed"]) != ("RCTP + GRPO", 1)]
    (point,) = points(found)  # on the seed that all three have
    assert tuple(point)[:3] == pytest.approx((10, 50, -50))


def test_the_map_draws_every_file_and_no_interval_makes_the_axis(tmp_path):
    maker = runpy.run_path(str(ROOT / "docs" / "draw_map.py"))
    maker["draw"].__globals__["PICTURE"] = tmp_path / "map.svg"
    point = maker["Point"](10.0, 50.0, -5.0, -100.0, 90.0, [-20.0, 10.0])
    maker["draw"]({f"file-{i}": [point] for i in range(9)})
    drawn = (tmp_path / "map.svg").read_text()
    assert all(f"<!-- file-{i} -->" in drawn for i in range(9)) and "100 -->" not in drawn


def test_the_decay_averages_stretches_of_steps_and_seeds():
    curve = runpy.run_path(str(ROOT / "docs" / "draw_decay.py"))["curve"]

    def curves(values):
        return {"step": list(range(1, len(values) + 1)), "separation": values}

    cells = [
        {"row": "RC-GRPO", "curves": curves([None, *[0.1] * 4, *[0.3] * 5])},
        {"row": "RC-GRPO", "curves": curves([0.1] * 5 + [0.1] * 5 + [0.9])},  # one step longer
        {"row": "RC-GRPO", "curves": None},  # under another token
        {"row": "GRPO", "curves": curves([None] * 10)},
    ]
    steps, points = curve({"cells": cells}, "RC-GRPO")
    assert steps == pytest.approx([(14 + 15) / 9, 8, 11]) and points == pytest.approx([10, 20, 90])
    assert curve({"cells": cells}, "GRPO") is None and curve({"cells": cells}, "SFT") is None
