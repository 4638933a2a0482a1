"""Rollouts by a server that speaks vLLM's requests: the same episodes as the engine's, never from stale weights."""

import asyncio
import math
import socket
import threading
import time

import pytest

pytest.importorskip("httpx2", reason="the client of the extra rcgrpo[vllm]")
import torch
from peft import LoraConfig, get_peft_model

from fake_vllm import FakeVllm, choice_with, logprobs_with, serving, shortened
from rcgrpo.codec.tokenizer import train_tokenizer
from rcgrpo.episodes.types import Sampling
from rcgrpo.errors import UserError
from rcgrpo.policy.engine import Engine
from rcgrpo.policy.load import Policy
from rcgrpo.policy.vllm import VllmEngine, turn_seed
from rcgrpo.policy.vllm_server import ServerFailure, VllmServer
from tiny_models import full_forward_logprobs, random_ids, tiny_model

GREEDY = Sampling(temperature=0)
STOPS = [3, 11, 50, 96]
TOLERANCE = 1e-5
"""The fake server samples by ``generate``, which rounds logits to float32; peft keeps adapters in float32."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["tiny"], 400)


@pytest.fixture
def policy(tokenizer):
    return Policy("tiny", tiny_model(), tokenizer)


@pytest.fixture
def fake():
    """A server that starts with other weights than the policy's."""
    other = tiny_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    return FakeVllm(other, max_model_len=200)


@pytest.fixture
def url(fake):
    with serving(fake) as address:
        yield address


@pytest.fixture
def server(url, tmp_path):
    return VllmServer(url=url, model="policy", folder=tmp_path / "weights", sync="weights", timeout=20)


@pytest.fixture
def loaded(server, fake, policy):
    """As after a hand-over, without the files."""
    fake.model, fake.version, server.version = policy.model, "handed over", "handed over"
    return server


def scripts(sampling=lambda i: GREEDY):
    """Multi-turn episodes: (prompt, sampling, [(appended ids, new tokens), ...])."""
    generator = torch.Generator().manual_seed(2)
    turns = [[(0, 9), (5, 6), (17, 12)], [(0, 30)], [(2, 1), (1, 8)], [(0, 7), (3, 7), (3, 7), (3, 7)]]
    return [
        (random_ids(generator, 4 + 11 * i), sampling(i), [(random_ids(generator, n), limit) for n, limit in script])
        for i, script in enumerate(turns)
    ]


def play(engine, episodes):
    """Per episode: its ids, and (start, completion) of each generate."""

    async def episode(prompt, sampling, turns):
        async with engine.row(prompt, sampling) as row:
            completions = []
            for appended, limit in turns:
                row.append(appended)
                completions.append((len(row.ids), await row.generate(limit)))
            return row.ids, completions

    async def everything():
        async with engine:
            return await asyncio.gather(*(episode(*script) for script in episodes))

    return asyncio.run(everything())


def through(server, episodes, **options):
    return play(VllmEngine(server, **{"stop_ids": STOPS, "max_length": 200, **options}), episodes)


def one(server, **options):
    return through(server, [([1, 2], GREEDY, [([], 6)])], **options)


# -- the same episodes


def test_greedy_episodes_equal_the_engines(server, policy):
    asyncio.run(server.load(policy))
    ours = play(Engine(policy.model, stop_ids=STOPS, max_length=200), scripts())
    theirs = through(server, scripts())
    stops = 0
    for (ids, completions), (their_ids, their_completions) in zip(ours, theirs, strict=True):
        assert ids == their_ids
        for (start, a), (their_start, b) in zip(completions, their_completions, strict=True):
            assert (start, a.ids, a.stopped) == (their_start, b.ids, b.stopped)
            assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=0, atol=TOLERANCE)
            stops += a.stopped
    assert 0 < stops < 10, "the scripts should end both ways"


def test_sampled_logprobs_are_those_of_the_temperature_over_the_whole_vocabulary(loaded, policy):
    for ids, completions in through(loaded, scripts(lambda i: Sampling(temperature=0.7, seed=i)), stop_ids=[]):
        oracle = full_forward_logprobs(policy.model, ids, 0.7)
        for start, completion in completions:
            assert ids[start : start + len(completion.ids)] == completion.ids
            for offset, (token, logprob) in enumerate(zip(completion.ids, completion.logprobs, strict=True)):
                assert abs(oracle[start + offset - 1, token].item() - logprob) < TOLERANCE


def test_a_sampled_episode_depends_on_its_seed_alone(loaded):
    episodes = scripts(lambda i: Sampling(seed=i + 5))
    together = through(loaded, episodes)
    assert through(loaded, episodes[:1:-1]) == together[:1:-1]
    assert through(loaded, scripts(lambda i: Sampling(seed=i + 6))[2:]) != together[2:]


def test_a_request_says_all_that_decides_what_is_sampled(loaded, fake):
    prompt, tool = [5, 6, 7], [8, 9]
    ((ids, completions),) = through(
        loaded, [(prompt, Sampling(temperature=0.8, seed=41), [([], 4), (tool, 500)])], stop_ids=[96, 95]
    )
    first, second = fake.completions()
    assert first == {
        "model": "policy",
        "prompt": prompt,
        "n": 1,
        "max_tokens": 4,
        "temperature": 0.8,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": turn_seed(41, 0),
        "stop_token_ids": [95, 96],
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "return_weight_versions": True,
        "add_special_tokens": False,
        "skip_special_tokens": False,
        "stream": False,
    }
    room = 200 - 3 - len(completions[0][1].ids) - 2
    changed = {"prompt": ids[: completions[1][0]], "max_tokens": room, "seed": turn_seed(41, 1)}
    assert second == first | changed
    assert second["prompt"] == prompt + completions[0][1].ids + tool


def test_turn_seeds_differ_and_fit_the_servers_integers():
    seeds = {turn_seed(seed, turn) for seed in (0, 1, 2**62, 10) for turn in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert turn_seed(1, 11) != turn_seed(11, 1)


def test_at_most_slots_episodes_are_under_way(loaded, fake):
    fake.seconds = 0.1  # long enough that requests overlap on a busy machine too
    episodes = [([1, 2], GREEDY, [([], 2)])] * 8
    through(loaded, episodes, slots=3)
    assert fake.most_at_once <= 3
    through(loaded, episodes)
    assert fake.most_at_once > 3  # the server does not serialise by itself


def test_rows_keep_the_engines_rules(loaded):
    async def misuse():
        async with VllmEngine(loaded, stop_ids=[], max_length=20) as engine:
            async with engine.row([1] * 10, GREEDY) as row:
                assert row.room == 10
                with pytest.raises(UserError, match="11 tokens appended to a row with room for 10"):
                    row.append([1] * 11)
                waiting = asyncio.create_task(row.generate(5))
                await asyncio.sleep(0)
                for act in (lambda: row.append([1]), lambda: asyncio.ensure_future(row.generate(1))):
                    with pytest.raises(RuntimeError, match="that is generating"):
                        await (act() or asyncio.sleep(0))
                assert len((await waiting).ids) == 5
                assert len((await row.generate(99)).ids) == 5
                assert await row.generate(1) == ([], [], False)
            with pytest.raises(RuntimeError, match="closed"):
                await row.generate(1)
            for prompt in ([], [1] * 20):
                with pytest.raises(UserError, match="needs 1 to 19"):
                    async with engine.row(prompt, GREEDY):
                        pass
            with pytest.raises(UserError, match=r"top_p = 0\.9"):
                async with engine.row([1], Sampling(top_p=0.9)):
                    pass
        with pytest.raises(RuntimeError, match="inside 'async with engine'"):
            async with engine.row([1], GREEDY):
                pass

    asyncio.run(misuse())


# -- weights


def test_weights_are_handed_over_before_anything_is_sampled(server, fake, policy, tmp_path):
    with pytest.raises(RuntimeError, match="hand the policy's weights over first"):
        VllmEngine(server, stop_ids=[])
    update = ["/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"]
    asyncio.run(server.load(policy))
    before = one(server)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(0.7)
    assert one(server) == before  # nothing was handed over yet
    asyncio.run(server.load(policy))
    after = one(server)
    assert logprob_gap(policy.model, after) < TOLERANCE
    assert logprob_gap(policy.model, before) > 1e-2
    assert fake.paths() == [*update, "/v1/completions", *update, "/v1/completions"]
    assert not fake.adapters
    assert list((tmp_path / "weights").iterdir()) == []  # checkpoints are removed once they were read


def lora(policy: Policy, seed: int) -> Policy:
    """The policy with an adapter that changes what it says."""
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    model = get_peft_model(policy.model, config)
    shake(model)
    return Policy(policy.name, model, policy.tokenizer)


def shake(model) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)


def logprob_gap(model, played) -> float:
    """Largest difference of a completion's log-probs from a full forward of ``model``."""
    gaps = []
    for ids, completions in played:
        oracle = full_forward_logprobs(model, ids)
        for start, completion in completions:
            for offset, (token, logprob) in enumerate(zip(completion.ids, completion.logprobs, strict=True)):
                gaps.append(abs(oracle[start + offset - 1, token].item() - logprob))
    return max(gaps)


def test_an_adapter_is_loaded_under_a_new_name_and_the_old_one_evicted(server, fake, policy, tmp_path):
    server.sync = "adapter"
    adapted = lora(policy, 1)
    adapted.model.eval()
    names = []
    for _ in range(3):
        shake(adapted.model)
        asyncio.run(server.load(adapted))
        assert logprob_gap(adapted.model, one(server)) < TOLERANCE
        names.append(server.version)
        assert list(fake.adapters) == [server.version]
        assert [path.name for path in (tmp_path / "weights").iterdir()] == [server.version]
    assert len(set(names)) == 3
    assert [body["model"] for body in fake.completions()] == names
    base = ["/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"]
    load, unload, label = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/update_weight_version"
    first, later = [load, label, "/v1/completions"], [load, unload, label, "/v1/completions"]
    assert fake.paths() == base + first + later + later
    # the base that the server holds is without the adapter
    assert not any("lora" in name for name, _ in fake.model.named_parameters())
    assert identical(fake.model, policy_base(adapted))


def policy_base(adapted: Policy):
    return adapted.model.unload()


def identical(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_an_adapter_is_merged_where_whole_weights_are_handed_over(server, fake, policy):
    adapted = lora(policy, 2)
    adapted.model.eval()
    asyncio.run(server.load(adapted))
    assert logprob_gap(adapted.model, one(server)) < TOLERANCE
    assert not fake.adapters
    adapted.model.disable_adapter_layers()  # the negative control: the adapter does change what is said
    assert logprob_gap(adapted.model, one(server)) > 1e-2
    adapted.model.enable_adapter_layers()
    assert any("lora_" in name for name, _ in adapted.model.named_parameters()), "the policy itself stays adapted"


def test_other_processes_follow_the_one_that_hands_over(loaded, url, tmp_path):
    follower = VllmServer(url=url, model="policy", folder=tmp_path, sync="weights", timeout=20)
    asyncio.run(follower.follow())
    assert follower.version == loaded.version
    assert one(follower) == one(loaded)


def test_what_another_run_put_on_the_server_is_not_sampled_from(loaded, url, policy, tmp_path):
    other = VllmServer(url=url, model="policy", folder=tmp_path, sync="weights", timeout=20)
    asyncio.run(other.load(policy))
    with pytest.raises(ServerFailure, match="another run uses it"):
        one(loaded)
    assert one(other)


@pytest.mark.parametrize("path", ["/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"])
def test_a_hand_over_that_fails_leaves_nothing_to_sample_from(loaded, fake, policy, tmp_path, path):
    fake.fail[path] = 500
    with pytest.raises(ServerFailure, match=f"answered {path} with 500"):
        asyncio.run(loaded.load(policy))
    assert loaded.version is None
    assert fake.paused
    with pytest.raises(RuntimeError, match="first"):
        one(loaded)
    assert list((tmp_path / "weights").iterdir()) == []
    fake.fail.clear()
    asyncio.run(loaded.load(policy))  # and the next one repairs it
    assert one(loaded)


def test_a_prefix_cache_that_stays_is_an_error(loaded, fake, policy, monkeypatch):
    monkeypatch.setattr(fake, "_reset", lambda query, body: {"success": False})
    with pytest.raises(ServerFailure, match="could not drop its prefix cache"):
        asyncio.run(loaded.load(policy))


# -- servers that are absent, wrong or broken


def test_no_server(tmp_path, policy):
    server = VllmServer(url="http://127.0.0.1:9", model="m", folder=tmp_path, sync="weights", timeout=1)
    with pytest.raises(UserError, match=r"no vLLM server at rollout\.vllm\.url = 'http://127\.0\.0\.1:9'"):
        asyncio.run(server.load(policy))


def test_a_server_that_is_just_starting_is_waited_for(fake, policy, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = VllmServer(url=f"http://127.0.0.1:{port}", model="policy", folder=tmp_path, sync="weights", timeout=20)
    done = threading.Event()

    def start_late():
        time.sleep(0.2)
        with serving(fake, port):
            done.wait(20)

    thread = threading.Thread(target=start_late)
    thread.start()
    try:
        asyncio.run(server.load(policy))
    finally:
        done.set()
        thread.join()
    assert fake.version == server.version


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("name", "other", "the server at http.* serves other"),
        ("max_model_len", 199, "start it with --max-model-len 200"),
        ("logprobs_mode", "raw_logprobs", "--logprobs-mode processed_logprobs"),
        ("prefix_caching", False, "--enable-prefix-caching"),
        ("dev_mode", False, "VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_a_server_started_wrongly_is_refused_with_the_flag_that_cures_it(loaded, fake, setting, value, message):
    setattr(fake, setting, value)
    with pytest.raises(UserError, match=message):
        one(loaded)
    assert not fake.completions()


def test_adapters_need_the_servers_leave(server, fake, policy):
    server.sync, fake.runtime_lora = "adapter", False
    with pytest.raises(UserError, match="--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        asyncio.run(server.load(lora(policy, 3)))
    assert server.version is None
    assert list(server.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (400, UserError, "400: .*as the test wants"),
        (401, UserError, "set VLLM_API_KEY"),
        (404, UserError, "dropped the model"),
        (503, ServerFailure, "paused or busy"),
        (500, ServerFailure, "see the server's log"),
    ],
)
def test_refusals_say_what_the_server_said(loaded, fake, status, kind, message):
    fake.fail["/v1/completions"] = status
    with pytest.raises(kind, match=message):
        one(loaded)
    assert len(fake.completions()) == 1, "a request that was sent is not repeated"


def test_a_broken_connection_and_a_cut_answer_are_failures_and_not_repeated(loaded, fake):
    for spoil in (lambda answer: None, lambda answer: b'{"model": "policy", "choices"'):
        fake.log.clear()
        fake.spoil = spoil
        with pytest.raises(ServerFailure, match="broke off its answer"):
            one(loaded)
        assert len(fake.completions()) == 1


def test_an_answer_that_takes_too_long(loaded, fake):
    loaded.timeout, fake.seconds = 0.2, 0.5
    with pytest.raises(UserError, match=r"within 0\.2 s: raise rollout\.vllm\.timeout"):
        one(loaded)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a | {"model": "other"}, "'other' answered instead of 'policy'"),
        (lambda a: a | {"choices": a["choices"] * 2}, "not as vLLM 0.33.0 does: choices"),
        (lambda a: {"id": "x"}, "not as vLLM 0.33.0 does: model"),
        (choice_with(weight_versions=None), "weight_versions"),
        (choice_with(weight_versions=[]), r"sampled from the weights \[\]"),
        (choice_with(weight_versions=[{"version": "default", "start": 0, "end": 6}]), "sampled from the weights"),
        (choice_with(prompt_token_ids=[0, 1, 2]), "changed the prompt"),
        (choice_with(finish_reason="abort"), "gave up a completion .*abort"),
        (choice_with(token_ids=lambda c: c["token_ids"][:-1]), "sampled from the weights|log-probabilities"),
        (choice_with(token_ids=None), "token_ids"),
        (choice_with(logprobs=None), "logprobs"),
        (logprobs_with(lambda x: x[:-1]), "5 log-probabilities for 6 tokens"),
        (logprobs_with(lambda x: [*x, -1.0]), "7 log-probabilities for 6 tokens"),
        (logprobs_with(lambda x: [None, *x[1:]]), "token_logprobs"),
        (logprobs_with(lambda x: [-9999.0, *x[1:]]), "diverged"),
        (logprobs_with(lambda x: [math.nan, *x[1:]]), "diverged"),
        (logprobs_with(lambda x: [0.5, *x[1:]]), "diverged"),
        (
            choice_with(logprobs=lambda c: c["logprobs"] | {"tokens": ["token_id:0", *c["logprobs"]["tokens"][1:]]}),
            "or of other tokens",
        ),
    ],
)
def test_an_answer_that_does_not_fit_the_request_is_not_used(loaded, fake, spoil, message):
    fake.spoil = spoil
    with pytest.raises(ServerFailure, match=message):
        one(loaded, stop_ids=[])
    fake.spoil = None
    assert one(loaded, stop_ids=[])


@pytest.mark.parametrize("count", [0, 3, 7])
def test_an_answer_ends_with_a_stop_id_or_at_the_limit(loaded, fake, count):
    fake.spoil = shortened(count)
    with pytest.raises(ServerFailure, match=f"ended after {count} of at most 6 tokens"):
        one(loaded, stop_ids=[])


def test_a_stop_id_in_the_middle_is_refused(loaded, fake):
    ((ids, _),) = one(loaded, stop_ids=[])
    stop = ids[4]
    fake.spoil = None
    engine = VllmEngine(loaded, stop_ids=[stop], max_length=200)
    engine._body = lambda *a: VllmEngine._body(engine, *a) | {"stop_token_ids": []}  # a server that ignores them
    with pytest.raises(ServerFailure, match="with stop ids at"):
        play(engine, [([1, 2], GREEDY, [([], 6)])])
