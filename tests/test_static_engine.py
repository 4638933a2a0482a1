"""The engine with static decode steps against generate(), the plain engine, fresh forwards, and random schedules."""

import asyncio

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rcgrpo.episodes.types import Sampling
from rcgrpo.errors import UserError
from rcgrpo.policy import static_attention
from rcgrpo.policy.engine import Engine
from rcgrpo.policy.sampling import Dice, draw
from rcgrpo.policy.static_engine import StaticEngine, _bucket, rollout_engine
from rcgrpo.policy.static_sampling import draw_static
from test_engine import GREEDY, SCRIPT, check_logprobs, prompts_with_common_parts
from tiny_models import ARCHITECTURES, random_ids, tiny_model

_MODEL = tiny_model()


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(static_attention, "CHUNK", 32)
    monkeypatch.setattr("rcgrpo.policy.static_engine.CHUNK", 32)


def play(model, scripts, kind=StaticEngine, slots=64, stop_ids=(), **options):
    async def episode(engine, prompt, sampling, turns, naps=0):
        async with engine.row(prompt, sampling) as row:
            completions = []
            for appended, limit in turns:
                for _ in range(naps):
                    await asyncio.sleep(0)
                row.append(appended)
                completions.append((len(row.ids), await row.generate(limit)))
            return row.ids, completions

    async def everything():
        async with kind(model, stop_ids=stop_ids, slots=slots, max_length=200, **options) as engine:
            return await asyncio.gather(*(episode(engine, *script) for script in scripts)), engine

    return asyncio.run(everything())


def long_groups(copies=5):
    generator = torch.Generator().manual_seed(2)
    tasks = [random_ids(generator, n) for n in (90, 80)]
    return [random_ids(generator, 85), *([*task, token] for token in range(3, 3 + copies) for task in tasks)]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("prefixes", ["matmul", "flash"])
def test_greedy_ids_equal_those_of_generate(name, prefixes):
    model = tiny_model(name)
    prompts = long_groups(6) + prompts_with_common_parts()
    scripts = [(p, GREEDY, [([], 8 + i)]) for i, p in enumerate(prompts)]
    played, engine = play(model, scripts, slots=13, prefixes=prefixes, window=16)
    assert engine.forwards["cascade"] > 0
    for prompt, (ids, _) in zip(prompts, played, strict=True):
        ask = torch.tensor([prompt])
        expected = model.generate(
            ask, attention_mask=torch.ones_like(ask), max_new_tokens=len(ids) - len(prompt), do_sample=False
        )
        assert ids == expected[0].tolist()


@pytest.mark.parametrize("prefixes", ["matmul", "flash"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_logprobs_over_several_turns_equal_a_fresh_forward(prefixes, dtype, tolerance):
    model = tiny_model("qwen3", dtype, initializer_range=0.1)
    turns = [([], 7), ([5, 6, 7, 8], 3), ([9], 9), ([], 4), (list(range(30)), 5)]
    scripts = [(p, Sampling(temperature=0.7, seed=i), turns[: 1 + i % 5]) for i, p in enumerate(long_groups())]
    played, engine = play(model, scripts, slots=64, prefixes=prefixes, window=16)
    assert engine.forwards["cascade"] > 0
    check_logprobs(model, played, temperature=0.7, tolerance=tolerance)


def test_a_prefix_of_wrong_length_is_noticed(monkeypatch):
    honest = static_attention.shared_prefixes
    monkeypatch.setattr(
        "rcgrpo.policy.static_engine.shared_prefixes",
        lambda how, banks, length_C, *rest: honest(how, banks, length_C - 1, *rest),
    )
    for prefixes in ("matmul", "flash"):
        played, _ = play(_MODEL, [(p, GREEDY, [([], 5)]) for p in long_groups()], prefixes=prefixes)
        with pytest.raises(AssertionError):
            check_logprobs(_MODEL, played)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(SCRIPT, min_size=1, max_size=9),
    st.integers(1, 4),
    st.sampled_from([8, 4096]),
    st.booleans(),
    st.sampled_from(["matmul", "flash"]),
)
def test_any_schedule_gives_what_the_plain_engine_gives(scripts, slots, prefill_tokens, late, prefixes):
    base = random_ids(torch.Generator().manual_seed(3), 25)
    episodes = [
        (base[:common] + tail, Sampling(seed=seed, top_p=0.9 if seed % 2 else 1.0), turns, naps)
        for common, tail, seed, turns, naps in scripts
    ]
    options = {"slots": slots, "stop_ids": [1, 2], "prefill_tokens": prefill_tokens}
    static, _ = play(_MODEL, episodes, late=late, prefixes=prefixes, window=8, **options)
    expected, _ = play(_MODEL, episodes, kind=Engine, **options)
    assert [ids for ids, _ in static] == [ids for ids, _ in expected]
    for (_, ours), (_, theirs) in zip(static, expected, strict=True):
        assert [c.stopped for _, c in ours] == [c.stopped for _, c in theirs]
    check_logprobs(_MODEL, static)


def test_a_token_drawn_after_the_stop_is_dropped():
    scripts = [(p, Sampling(seed=i, temperature=1.5), [([], 40), ([4], 40)]) for i, p in enumerate(long_groups())]
    stops = list(range(0, 97, 8))
    late, engine = play(_MODEL, scripts, stop_ids=stops)
    prompt, _ = play(_MODEL, scripts, stop_ids=stops, late=False)
    assert [ids for ids, _ in late] == [ids for ids, _ in prompt]
    launched = engine.forwards["decode"]
    assert launched > 0 and engine.tokens["generated"] == sum(len(c.ids) for _, cs in late for _, c in cs)
    assert all(not set(c.ids[:-1]) & set(stops) for _, cs in late for _, c in cs)


class Recording:
    """In place of CUDA graphs: a captured step runs again only if its addresses and sizes are the same."""

    def __init__(self):
        self.captures, self.replays, self.steps = 0, 0, {}

    def __call__(self, shape, step):
        if shape in self.steps:
            self.replays += 1
        else:
            self.captures += 1
            self.steps[shape] = step
        self.steps[shape]()

    def forget(self):
        self.steps.clear()


def test_steps_are_replayed_at_fixed_addresses():
    scripts = [(p, Sampling(seed=i), [([], 30), ([7, 8], 30)]) for i, p in enumerate(long_groups())]
    recorded = Recording()

    class Replaying(StaticEngine):
        async def __aenter__(self):
            await super().__aenter__()
            self._runner = recorded
            self.before = self.addresses()
            return self

        async def __aexit__(self, *exc):
            assert self.addresses() == self.before
            await super().__aexit__(*exc)

        def addresses(self):
            return [t.data_ptr() for t in [*self._cache._buffers, *vars(self._buffers).values()]]

    replayed, _ = play(_MODEL, scripts, kind=Replaying, slots=11, reserve=True, window=64)
    expected, _ = play(_MODEL, scripts, kind=Engine, slots=11)
    assert [ids for ids, _ in replayed] == [ids for ids, _ in expected]
    assert recorded.replays > 5 * recorded.captures


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_static_draws_are_the_plain_ones(top_p):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40, 3000, generator=generator)
    kinds = [Sampling(temperature=(0.0, 1.0, 0.6)[i % 3], top_p=top_p, seed=i) for i in range(40)]
    expected, logprobs = draw(logits, kinds, [Dice(s.seed) for s in kinds])
    uniforms = torch.tensor([Dice(s.seed).ahead(1)[0] for s in kinds], dtype=torch.float64)
    temperature = torch.tensor([s.temperature for s in kinds], dtype=torch.float64)
    tokens, ours = draw_static(
        logits, temperature, torch.full((40,), top_p, dtype=torch.float64), uniforms, nucleus=top_p < 1
    )
    assert tokens.tolist() == expected.tolist()
    torch.testing.assert_close(ours, logprobs)


def test_looking_ahead_takes_no_number():
    dice, other = Dice(5), Dice(5)
    assert dice.ahead(600)[:3] == dice.ahead(3)
    ahead = dice.ahead(600)
    assert [dice.roll() for _ in range(600)] == ahead == [other.roll() for _ in range(600)]


def test_sizes_are_bucketed_and_the_engine_is_chosen_by_device():
    assert [_bucket(n) for n in (1, 3, 8, 9, 17, 25, 33, 49, 65)] == [1, 4, 8, 16, 24, 32, 48, 64, 96]
    assert type(rollout_engine(_MODEL, stop_ids=[], max_length=100)) is Engine
    with pytest.raises(UserError, match="need a GPU"):
        StaticEngine(_MODEL, stop_ids=[], max_length=100, graphs=True)
    with pytest.raises(UserError, match="sdpa"):
        StaticEngine(tiny_model(attn_implementation="eager"), stop_ids=[], max_length=100)


def test_nan_logits_are_an_error_and_not_a_token():
    model = tiny_model()
    model.get_output_embeddings().weight.data[5] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN"):
        play(model, [([1, 2], Sampling(), [([], 3)])])
    assert model.config._attn_implementation == "sdpa"
