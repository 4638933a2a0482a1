"""The GPU benchmark at toy size on a CPU: every piece runs, counts are right, failures are kept."""

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from rcgrpo.bench import gpu
from rcgrpo.bench.gpu import PARTS, Bench, bench_gpu
from rcgrpo.bench.gpu_shapes import BFCL, CONFIGS, TINY, Counts, build
from rcgrpo.bench.gpu_work import play
from rcgrpo.cli import app
from rcgrpo.errors import UserError
from rcgrpo.policy.lean_adamw import LeanAdamW


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "result.json"
    found = bench_gpu("tiny", list(PARTS), path, 300, steps=4)
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))
    return found


def test_every_piece_gives_a_figure(result):
    pieces = {k: v for k, v in result.items() if isinstance(v, dict) and "piece_s" in v}
    assert len(pieces) >= 18
    bad = {k: v for k, v in pieces.items() if v.keys() & {"failed", "skipped", "out_of_memory"}}
    assert not bad
    assert "trace" not in json.dumps(result)


def test_correctness_holds_at_toy_size(result):
    assert result["greedy_equals_generate"]["equal"]
    assert result["steps_without_nan"]["finite"] and result["steps_without_nan"]["steps"] == 4
    for kind in ("flash", "matmul"):
        found = result[f"mismatch_{kind}"]
        assert found["within_bar"] and found["mismatch_kl"] < 1e-10
        assert found["sampler_to_float32"]["mean_abs_difference"] < 1e-5


def test_a_file_names_what_ran_and_that_a_cpu_is_no_gpu(result):
    assert "say nothing of a GPU" in result["device"]["note"]
    assert result["decode_flash"]["attention"] == "flash" and result["decode_flash"]["graphs"] is False
    assert result["peer_trl"]["ran"] is False and result["peer_trl"]["why"]


def test_pieces_that_fail_or_come_late_are_written_down(tmp_path):
    bench = Bench("tiny", tmp_path / "r.json", 100)

    def no_memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB")

    bench.piece("large", no_memory)
    bench.piece("broken", lambda: 1 / 0)
    bench.piece("late", dict, least=1000)
    found = json.loads((tmp_path / "r.json").read_text())
    assert "7 GiB" in found["large"]["out_of_memory"] and "fullest" in found["large"]["estimate_gb"]
    assert "ZeroDivisionError" in found["broken"]["failed"]
    assert "needs 1000" in found["late"]["skipped"]


@pytest.mark.parametrize(("name", "billions"), [("qwen2.5-7b", 7.6156), ("llama-3.1-8b", 8.0303)])
def test_parameter_counts_are_the_published_ones(name, billions):
    assert abs(Counts.of(name).total / 1e9 - billions) < 1e-4


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_parameter_counts_are_those_of_the_model(name):
    model = build(name, torch.float32, torch.device("cpu"))
    assert Counts.of(name).total == sum(p.numel() for p in model.parameters())


def test_flops_and_bytes_by_hand():
    c, load = Counts.of("qwen2.5-7b"), BFCL
    assert (load.rows, load.generated, load.completion) == (64, 600, 800)
    assert c.kv_bytes == 2 * 28 * 4 * 128 * 2
    tokens = 8 * 6000 + 64 * 800
    pairs = 8 * 6000**2 / 2 + 64 * (800 * 6000 + 800**2 / 2)
    matrices = 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    products = matrices * tokens + 152064 * 3584 * 64 * 600
    assert c.update_flops(load, full=True) == pytest.approx(6 * products + 3 * 4 * 28 * 3584 * pairs)
    assert (
        c.update_flops(load, full=False)
        < c.update_flops(load, full=True)
        < c.update_flops(load, full=True, shared=False)
    )
    memory = c.memory(load, "full")
    assert memory["masters_float32"] + memory["moments_float32"] == pytest.approx(12 * c.total / 1e9, abs=0.02)
    assert memory["fullest"] >= 14 * c.total / 1e9


def test_rollouts_have_the_asked_shape_and_ragged_ones_the_same_total():
    model = build("tiny", torch.float32, torch.device("cpu"))
    for ragged in (False, True):
        rows = play(model, TINY, ragged=ragged).rows
        assert {sum(r.mask) for r in rows} == {TINY.generated} == {len(r.logprobs) for r in rows}
        assert all(len(r.ids) == len(r.mask) for r in rows)
    prompts = TINY.prompt_ids(128)
    assert sum(a != b for a, b in zip(prompts[0], prompts[1], strict=True)) == 1


def test_the_lean_optimiser_is_adamw():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(5, 4) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    lean = LeanAdamW(ours.parameters(), lr=1e-2)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(5):
        x = torch.randn(3, 5)
        for model in (ours, theirs):
            model(x).square().sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        assert lean.step() == pytest.approx(float(norm), rel=1e-5)
        adamw.step()
        adamw.zero_grad()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_small_steps_of_a_bfloat16_model_add_up_in_its_masters():
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    lean = LeanAdamW([weight], lr=1e-4)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        lean.step()
    assert torch.allclose(lean.masters[0], torch.full((4,), 0.99), atol=1e-3) and (weight < 1).all()


def test_the_command_runs_one_part_and_refuses_what_cannot_run(tmp_path):
    arguments = ["bench", "gpu", "--model", "tiny", "--part", "decode", "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "decode_flash" in json.loads(done.stdout.splitlines()[-1])
    assert (tmp_path / "tiny-decode.json").is_file()
    with pytest.raises(UserError, match="choose from"):
        bench_gpu("tiny", ["speed"], tmp_path / "x", 1)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="needs a GPU"):
            bench_gpu("qwen2.5-7b", list(PARTS), tmp_path / "x", 1)
    assert set(CONFIGS) >= {"qwen2.5-7b", "llama-3.1-8b"} and gpu.STEPS == 200


def test_it_needs_no_package_that_a_gpu_machine_may_lack():
    absent = "typer rich trl datasets scipy statsmodels matplotlib jinja2 jsonschema platformdirs pytest"
    program = (
        f"import sys\nfor name in {absent.split()!r}: sys.modules[name] = None\nimport rcgrpo.bench.gpu; print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr[-2000:]
