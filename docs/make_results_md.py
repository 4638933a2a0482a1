"""Write docs/results.md from the results files of ablations: ``python docs/make_results_md.py``."""

from __future__ import annotations

from pathlib import Path

from rcgrpo.experiments.results import read_results
from rcgrpo.report.markdown import leak_section, results_section

PAGE = Path(__file__).with_name("results.md")
FOLDER = Path(__file__).with_name("results")

HEAD = """# Results

<!-- Written by docs/make_results_md.py from the files in docs/results: make those with rcgrpo ablate. -->

Each section is drawn from one file under `docs/results/`: its plan (tasks, seeds, comparisons, fixed in a commit before
the runs started), its cells (one per row, seed and token at inference, with the outcome of every task), its
comparisons. `rcgrpo results FILE` draws the same file as a page with training curves.

How to read the figures:

- Success is the share of tasks solved, in percent, mean over the seeds, each row under its own token at inference.
- Intervals are 95% and speak of other seeds and other tasks of the same kind: a bootstrap that resamples seeds, and
  tasks jointly for all seeds, calibrated by simulation (`tests/test_experiment_statistics.py`); where all outcomes
  are equal, the exact binomial bound over tasks.
- Differences are paired: the same tasks and the same seeds. `p (Holm)` is corrected over all planned comparisons of a
  file; p alone is corrected for nothing. h is Cohen's effect size (0.2 small, 0.5 medium, 0.8 large). McNemar's exact p
  is of each seed alone. p also heeds Student's t far out, so an interval may just exclude 0 beside a p above 0.05.
- Flat groups: the share of groups sampled at temperature 1 under the row's token in which all outcomes are the same.
  Separation: sampled success under high minus that under low, in points.
- Where a section names a reward (`turn_fraction`: the share of a task's turns before the first wrong one), "sampled",
  "flat groups" and "separation" are of that reward; its means and differences stand in tables of their own, with a Holm
  correction of their own. Success is the primary measure.
- Where several test tasks come from one scenario, intervals and p resample scenarios instead of tasks.
- High - low: what the tokens change, the same policy under high minus under low. A row that never met the tokens shows
  what the words themselves do to it, for they start as the words that they name. p is corrected for nothing there.
- Budgets (episodes of stage 1, rollouts) are equal among rows that have the stage in question, except where a note says
  why not.
- Times are by the clock, on two cores that other work shared: they say what it took, not how fast a row is.

When do sampled tokens help? Every stage-1 policy of ToolWorld from which GRPO and RC-GRPO were both run is a point, SFT
included, which never met the tokens (`python docs/draw_map.py`, from the same files, seeds that all three rows have):

![RC-GRPO minus GRPO, against the separation and the success of the policy both start from](map.svg)

What wears the separation down? RC-GRPO from one stage-1 policy, one setting changed at a time
(`python docs/draw_decay.py`, from `toolworld-decay.json`):

![The separation during training and afterwards, by learning rate, KL and baseline](decay.svg)
"""


def page() -> str:
    """The whole page."""
    files = {path.stem: read_results(path) for path in sorted(FOLDER.glob("*.json"))}
    by_name = {stem: results_section(results, f"{stem}.json") for stem, results in files.items()}
    if {"bfcl", "bfcl-leaky"} <= files.keys() and (leak := leak_section(files["bfcl"], files["bfcl-leaky"])):
        by_name["bfcl"] += f"\n\n{leak}"
    sections = list(by_name.values())
    return "\n\n".join([HEAD.rstrip(), *(sections or ["No ablation has been run yet."])]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
