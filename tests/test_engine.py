"""The rollout engine against generate(), against plain forwards, and under random schedules."""

import asyncio
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from rcgrpo.episodes.types import Sampling
from rcgrpo.errors import UserError
from rcgrpo.policy import cascade
from rcgrpo.policy.cascade import bands, cluster
from rcgrpo.policy.engine import Engine
from rcgrpo.policy.sampling import Dice, draw
from tiny_models import ARCHITECTURES, VOCABULARY, full_forward_logprobs, random_ids, tiny_model

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def prompts_with_common_parts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    base, task = random_ids(generator, 20), random_ids(generator, 9)
    forks = [(base, 3), (base, 5), (base[:10], 1), (base[:10], 30), ([], 4), (base + task, 2), (base + task, 1)]
    prompts = [prefix + random_ids(generator, n) for prefix, n in forks]
    return [*prompts, prompts[0], base]


def play(model, scripts, slots=64, stop_ids=(), **options):
    """Run scripts (prompt, sampling, [(appended ids, new tokens), ...]); per script: ids and its completions."""

    async def episode(engine, prompt, sampling, turns):
        async with engine.row(prompt, sampling) as row:
            completions = []
            for appended, limit in turns:
                row.append(appended)
                completions.append((len(row.ids), await row.generate(limit)))
            return row.ids, completions

    async def everything():
        engine = Engine(model, stop_ids=stop_ids, slots=slots, **{"max_length": 200, **options})
        async with engine:
            return await asyncio.gather(*(episode(engine, *script) for script in scripts)), engine

    return asyncio.run(everything())


def check_logprobs(model, played, temperature=1.0, tolerance=1e-10):
    for ids, completions in played:
        oracle = full_forward_logprobs(model, ids, temperature)
        for start, completion in completions:
            assert ids[start : start + len(completion.ids)] == completion.ids
            for offset, (token, logprob) in enumerate(zip(completion.ids, completion.logprobs, strict=True)):
                assert abs(oracle[start + offset - 1, token].item() - logprob) < tolerance


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_ids_equal_those_of_generate(name, attention):
    model = tiny_model(name, attn_implementation=attention)
    prompts = prompts_with_common_parts()
    played, _ = play(model, [(p, GREEDY, [([], 12 + i)]) for i, p in enumerate(prompts)], slots=5)
    for prompt, (ids, _) in zip(prompts, played, strict=True):
        ask = torch.tensor([prompt])
        expected = model.generate(
            ask, attention_mask=torch.ones_like(ask), max_new_tokens=len(ids) - len(prompt), do_sample=False
        )
        assert ids == expected[0].tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_logprobs_over_several_turns_equal_a_fresh_forward(name, dtype, tolerance):
    # moderate weights: with std 0.3 float32 rounding alone exceeds 1e-4
    model = tiny_model(name, dtype, initializer_range=0.1)
    turns = [([], 7), ([5, 6, 7, 8], 3), ([9], 9), ([], 4), (list(range(30)), 5)]
    scripts = [
        (p, Sampling(temperature=0.7, seed=i), turns[: 1 + i % 5]) for i, p in enumerate(prompts_with_common_parts())
    ]
    played, _ = play(model, scripts, slots=4)
    check_logprobs(model, played, temperature=0.7, tolerance=tolerance)


def test_the_oracle_notices_a_corrupted_cache(model, monkeypatch):
    from rcgrpo.policy.cache import RaggedCache

    honest = RaggedCache.copy
    monkeypatch.setattr(RaggedCache, "copy", lambda self, copies: honest(self, [(s, t, n - 1) for s, t, n in copies]))
    played, _ = play(model, [(p, GREEDY, [([], 3)]) for p in prompts_with_common_parts()])
    with pytest.raises(AssertionError):
        check_logprobs(model, played)


TURN = st.tuples(st.lists(st.integers(0, VOCABULARY - 1), max_size=12), st.integers(0, 9))
SCRIPT = st.tuples(
    st.integers(0, 25),
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
    st.integers(0, 99),
    st.lists(TURN, max_size=4),
    st.integers(0, 3),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(SCRIPT, min_size=1, max_size=9), st.integers(1, 4), st.sampled_from([8, 17, 4096]))
def test_any_schedule_gives_each_episode_what_it_gets_alone(scripts, slots, prefill_tokens):
    model = _MODEL
    base = random_ids(torch.Generator().manual_seed(3), 25)

    async def episode(engine, common, tail, seed, turns, naps):
        async with engine.row(base[:common] + tail, Sampling(seed=seed, top_p=0.9 if seed % 2 else 1.0)) as row:
            completions = []
            for appended, limit in turns:
                for _ in range(naps):
                    await asyncio.sleep(0)
                row.append(appended)
                completions.append((len(row.ids), await row.generate(limit)))
            return row.ids, completions

    async def everything():
        engine = Engine(model, stop_ids=[1, 2], slots=slots, max_length=200, prefill_tokens=prefill_tokens)
        async with engine:
            return await asyncio.gather(*(episode(engine, *script) for script in scripts))

    played = asyncio.run(everything())
    check_logprobs(model, played)
    for (common, tail, seed, turns, _), (ids, completions) in zip(scripts, played, strict=True):
        sampling = Sampling(seed=seed, top_p=0.9 if seed % 2 else 1.0)
        alone, _ = play(model, [(base[:common] + tail, sampling, turns)], stop_ids=[1, 2], share_prefixes=False)
        assert alone[0][0] == ids
        for _, completion in completions:
            assert completion.stopped == (bool(completion.ids) and completion.ids[-1] in (1, 2))
            assert not set(completion.ids[:-1]) & {1, 2}


_MODEL = tiny_model()


def test_common_prefixes_are_computed_once(model):
    generator = torch.Generator().manual_seed(2)
    schemas, tasks = random_ids(generator, 60), [random_ids(generator, 10) for _ in range(3)]
    prompts = [schemas + task + [token] for task in tasks for token in (3, 4, 3, 4)]
    scripts = [(p, GREEDY, [([], 5)]) for p in prompts]
    shared, engine = play(model, scripts)
    apart, plain = play(model, scripts, share_prefixes=False)
    assert [ids for ids, _ in shared] == [ids for ids, _ in apart]
    check_logprobs(model, shared)
    assert engine.forwards["cascade"] == engine.forwards["decode"] == 4
    assert plain.forwards["cascade"] == 0
    assert plain.tokens["computed"] == 12 * 71
    # schemas once, each task once, then one token per row: the last token of a prompt is always computed
    assert engine.tokens["computed"] == 60 + 3 * 10 + 12
    assert engine.tokens["shared"] + engine.tokens["computed"] == 12 * 71
    # late members find the prefix in a slot, be it in use or just left
    late, engine = play(model, scripts, slots=3)
    assert [ids for ids, _ in late] == [ids for ids, _ in apart]
    assert engine.tokens["computed"] <= 60 + 5 * 10 + 12  # a task may be computed again, the schemas never


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_that_share_a_long_prompt_read_it_once_and_right(name):
    model = tiny_model(name)
    generator = torch.Generator().manual_seed(2)
    tasks = [random_ids(generator, n) for n in (90, 80)]
    lone = random_ids(generator, 85)
    prompts = [lone, *([*task, token] for token in (3, 4, 3, 5, 6) for task in tasks)]
    scripts = [(p, Sampling(seed=i), [([], 2 + i % 4), ([7, 8], 2 + i % 3)]) for i, p in enumerate(prompts)]
    for slots in (64, 6):
        played, engine = play(model, scripts, slots=slots)
        check_logprobs(model, played)
        assert engine.forwards["cascade"] > 0


def two_bands(order):
    """Two groups of four whose prompts differ in length by more than 256, each row with two turns and tool results."""
    generator = torch.Generator().manual_seed(4)
    tasks = [random_ids(generator, n) for n in (40, 400)]
    prompts = [[*tasks[g], 3 + j] for g, j in order]
    turns = [([], 3), ([7, 8, 9], 2), (random_ids(generator, 11), 4)]
    return [(p, Sampling(seed=i), [([], 2 + i % 3), *turns[1:]]) for i, p in enumerate(prompts)]


GROUPED = [(g, j) for g in (1, 0) for j in range(4)]


@pytest.mark.parametrize("order", [GROUPED, sorted(GROUPED, key=lambda at: at[1])], ids=["neighbours", "mixed"])
def test_prefixes_of_other_lengths_are_read_apart_and_also_where_tool_results_are_added(order, monkeypatch):
    model = tiny_model(max_position_embeddings=512)
    planned, met = [], []
    honest_plan, honest_flash = cascade.plan_cascade, cascade.flash

    def plan(clusters, seats, seen_TLS, dtype):
        cascades = honest_plan(clusters, seats, seen_TLS, dtype)
        if len(seats) == len(order):
            assert cascades is not None
            planned.append((seen_TLS.shape[1] == 1, [isinstance(c.rows, slice) for c in cascades[1]]))
        return cascades

    def flash(query, key, value, causal, scale, mask=None):
        if mask is None:  # a prefix: of what a row reads alone a mask hides a part
            met.append((query.shape[2], key.shape[2]))
        return honest_flash(query, key, value, causal, scale, mask)

    monkeypatch.setattr("rcgrpo.policy.engine.plan_cascade", plan)
    monkeypatch.setattr(cascade, "flash", flash)
    played, _ = play(model, two_bands(order), max_length=500)
    check_logprobs(model, played)
    assert all(rows == [True, True] for decoding, rows in planned if not decoding)
    first = next(rows for decoding, rows in planned if decoding)  # later ones take the rows as they have been moved
    assert first == ([True, True] if order is GROUPED else [False, False])
    assert {keys for _, keys in met} == {40, 400}  # of one prefix each, not more
    assert (
        max(queries for queries, _ in met) == 4 * 2 * 12
    )  # rows x heads per key head x the last token and 11 new ones


def test_a_shorter_cluster_without_rows_between_two_others_is_not_read():
    """Three groups whose prompts sort by slot; the one in the middle, with the shortest prompt, is done first."""
    generator = torch.Generator().manual_seed(5)
    tasks = [random_ids(generator, n) for n in (90, 60, 85)]
    steps = [[([], 12), ([7, 8, 9], 5)], [([], 2)], [([], 12), ([7, 8, 9], 5)]]
    scripts = [([*tasks[g], 3 + j], Sampling(seed=4 * g + j), steps[g]) for g in range(3) for j in range(4)]
    played, engine = play(tiny_model(), scripts)
    check_logprobs(tiny_model(), played)
    assert engine.forwards["cascade"] >= 12


def test_a_wrong_merge_of_prefix_and_own_is_noticed(monkeypatch):
    honest = cascade.flash

    def flash(*args):
        out, lse = honest(*args)
        return out, lse + 0.1 * (len(args) == 5)  # of the prefix, which has no mask

    monkeypatch.setattr(cascade, "flash", flash)
    played, _ = play(tiny_model(max_position_embeddings=512), two_bands(GROUPED), max_length=500)
    with pytest.raises(AssertionError):
        check_logprobs(tiny_model(max_position_embeddings=512), played)


def test_a_band_ends_where_prefixes_get_much_longer():
    assert bands([350, 340, 376]) == [0, 0, 0]
    assert bands([6038, 5142, 5200]) == [1, 0, 0]
    assert bands([100, 900, 400, 380]) == [0, 2, 1, 1]


def test_clusters_form_where_they_save_reads():
    common, other = list(range(50)), list(range(60, 90))
    prompts = [[*common, 1, 1], other, [*common, 1, 2], [*common[:20], 9], [*common, 2]]
    groups = cluster([np.array(p) for p in prompts])
    assert [(sorted(members), length) for members, length in groups] == [([3], 21), ([0, 2, 4], 50), ([1], 30)]


def test_a_seed_gives_the_same_ids_in_any_company(model):
    prompts = prompts_with_common_parts()
    script = (prompts[0], Sampling(seed=11, temperature=1.3, top_p=0.8), [([], 20), ([1, 2], 20)])
    others = [(p, Sampling(seed=i), [([], 5 + 7 * i)]) for i, p in enumerate(prompts)]
    alone, _ = play(model, [script])
    for slots in (1, 3, 64):
        crowd, _ = play(model, [*others[:4], script, *others[4:]], slots=slots)
        assert crowd[4][0] == alone[0][0]
    other_seed, _ = play(model, [(prompts[0], Sampling(seed=12, temperature=1.3, top_p=0.8), script[2])])
    assert other_seed[0][0] != alone[0][0]


def test_a_slow_tool_holds_up_nobody(model):
    finished = {}

    async def episode(engine, name, nap):
        async with engine.row([1, 2, 3], Sampling(seed=len(name))) as row:
            for _ in range(3):
                await row.generate(4)
                await asyncio.sleep(nap)
                row.append([5, 6])
            finished[name] = time.perf_counter()

    async def everything():
        async with Engine(model, stop_ids=[], slots=4, max_length=100) as engine:
            await asyncio.gather(episode(engine, "slow", 0.4), *(episode(engine, f"quick{i}", 0) for i in range(3)))

    start = time.perf_counter()
    asyncio.run(everything())
    assert finished["slow"] - start > 1.2
    assert all(finished[f"quick{i}"] < finished["slow"] - 0.4 for i in range(3))


def test_a_failing_episode_leaves_its_slot_to_the_next(model):
    async def broken(engine):
        async with engine.row([1, 2, 3], GREEDY) as row:
            await row.generate(2)
            raise ZeroDivisionError

    async def cancelled(engine):
        async with engine.row([1, 2, 3], GREEDY) as row:
            await row.generate(150)

    async def everything():
        engine = Engine(model, stop_ids=[], slots=1, max_length=200)
        async with engine:
            task = asyncio.create_task(cancelled(engine))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(ZeroDivisionError):
                await broken(engine)
            async with engine.row([4, 5], GREEDY) as row:
                assert len((await row.generate(3)).ids) == 3
        async with engine, engine.row([4, 5], GREEDY) as row:  # a second session
            await row.generate(3)
            return row.ids

    assert len(asyncio.run(everything())) == 5


def test_leaving_the_engine_cancels_who_still_generates(model):
    async def everything():
        async with Engine(model, stop_ids=[], slots=1, max_length=200) as engine:

            async def episode():
                async with engine.row([1], GREEDY) as row:
                    await row.generate(199)

            task = asyncio.create_task(episode())
            await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(everything())


def test_nan_logits_are_an_error_and_not_a_token():
    model = tiny_model()
    model.get_output_embeddings().weight.data[5] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN"):
        play(model, [([1, 2], Sampling(), [([], 3)]), ([1, 2], GREEDY, [([], 3)])])


def test_limits_of_a_row(model):
    async def everything():
        async with Engine(model, stop_ids=[], slots=2, max_length=12) as engine:
            async with engine.row([1, 2, 3, 4], GREEDY) as row:
                first = await row.generate(6)
                assert (len(first.ids), first.stopped, row.room) == (6, False, 2)
                with pytest.raises(UserError, match="room for 2"):
                    row.append([1, 2, 3])
                assert len((await row.generate(6)).ids) == 2
                assert await row.generate(6) == ([], [], False)
            with pytest.raises(UserError, match="max_length"):
                async with engine.row(list(range(12)), GREEDY):
                    pass

    asyncio.run(everything())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "full attention"),
        ({"max_position_embeddings": 64}, "64 positions"),
    ],
)
def test_models_that_would_be_served_wrongly_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Engine(tiny_model("qwen2", **options), stop_ids=[], max_length=200)


def sample_many(logits: torch.Tensor, sampling: Sampling, count: int) -> torch.Tensor:
    dice = Dice(sampling.seed)
    tokens, _ = draw(logits.expand(count, -1), [sampling] * count, [dice] * count)
    return torch.bincount(tokens, minlength=len(logits)).double()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_follow_the_softmax(temperature):
    logits = torch.linspace(-1.5, 1.5, 12)[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    counts = sample_many(logits, Sampling(temperature=temperature, seed=5), 20_000)
    expected = (logits.double() / temperature).softmax(-1) * 20_000
    assert chisquare(counts, expected).pvalue > 1e-3
    assert chisquare(counts, (logits.double() / (1.15 * temperature)).softmax(-1) * 20_000).pvalue < 1e-6


def test_top_p_draws_from_the_smallest_sufficient_set():
    probs = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    counts = sample_many(probs.log(), Sampling(top_p=0.75, seed=2), 20_000)
    assert counts[[0, 2]].sum() == 0  # 0.4 + 0.3 < 0.75 <= 0.4 + 0.3 + 0.15
    kept = torch.tensor([0.4, 0.3, 0.15]).double()
    assert chisquare(counts[[1, 3, 4]], kept / kept.sum() * 20_000).pvalue > 1e-3
    assert sample_many(probs.log(), Sampling(top_p=0.0), 50)[1] == 50


def test_logprobs_are_those_of_the_whole_vocabulary_at_the_rows_temperature():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    kinds = [Sampling(temperature=0.5, top_p=0.5), Sampling(temperature=0), Sampling(temperature=2)]
    tokens, logprobs = draw(logits, kinds, [Dice(s) for s in range(3)])
    for row, temperature in enumerate((0.5, 1.0, 2.0)):
        expected = (logits[row].double() / temperature).log_softmax(-1)[tokens[row]]
        assert abs(expected - logprobs[row]) < 1e-5
    assert tokens[1] == logits[1].argmax()
