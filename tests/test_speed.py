"""What the speed study counts, mixes and writes down; how fast anything is, is not tested."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.core.adapter import Adapter, Scaling, Slots, effective_update
from increlora_jax.core.importance import sensitivity
from increlora_jax.errors import InputError
from increlora_jax.runtime.compilation_cache import use_compilation_cache
from increlora_jax.training.loop import LAG
from increlora_jax.weights.bundled import TINY_ENCODER

STUDY = Path(__file__).parent.parent / "experiments" / "speed"


@pytest.fixture(scope="module", autouse=True)
def _study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUDY))
        yield


@pytest.fixture
def small(tiny_model):
    """Two layers of 16 features; no other matrix of a step has the shape of a kernel."""
    import work

    return work.Work(str(tiny_model), batch=3, length=8, rank=2)


def test_flops_of_minilm_are_those_of_the_formula():
    import work

    one = work.Work(batch=1, length=64, rank=8)
    kernels = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    adapters = 6 * 8 * (4 * (384 + 384) + 2 * (384 + 1536))
    attention = 3 * 6 * 2 * (2 * 64 * 384)  # scores and values, once forward and twice backward
    expected = 64 * (4 * kernels + 6 * adapters + attention)
    assert one.flops(is_scored=False) == expected
    assert one.flops(is_scored=True) == expected + 64 * 2 * kernels


@pytest.mark.parametrize(("rank", "rounds", "slots"), [(2, 8, 16), (8, 11, 32)])
def test_a_whole_run_can_be_scored_until_the_recipe_has_spent_its_budget(rank, rounds, slots):
    import schedule
    import work

    minilm = work.Work(rank=rank)
    plan = minilm.plan(minilm.growth(), minilm.steps)
    assert (len(plan.rounds), set(plan.max_ranks.values())) == (rounds, {slots})
    assert minilm.steps == 24 * 2105  # 67,349 examples in batches of 32
    always = minilm.growth(score_window=minilm.steps)
    scored = schedule.scored_steps(minilm, always, minilm.steps)
    last = 1000 * (rounds + 1)  # the first round is at step 2000
    assert scored == [step <= last + LAG for step in range(minilm.steps)]


def test_a_window_is_scored_before_every_round_and_while_its_outcome_is_unknown():
    import schedule
    import work

    minilm = work.Work(rank=8)
    scored = schedule.scored_steps(minilm, minilm.growth(score_window=64), minilm.steps)
    ends = np.flatnonzero(np.diff(np.array(scored, int)) == -1)
    assert list(ends - LAG) == list(range(2000, 13_000, 1000))
    assert sum(scored) == (64 + LAG) * 11


def test_a_run_in_few_steps_has_the_whole_runs_share_and_rounds():
    import schedule
    import work

    minilm = work.Work(rank=8)
    growth, steps = schedule.compress(minilm)
    few = schedule.scored_steps(minilm, growth, steps, lag=0)
    assert sum(few) == len(minilm.plan(growth, steps).rounds) == 11
    assert sum(few) / steps == pytest.approx(schedule.scored_share(minilm), rel=0.05)


def test_a_run_in_few_steps_spends_the_budget(small):
    import ours
    import schedule

    use_compilation_cache(None)
    run = ours.run_whole_schedule(small)
    run(2)  # practice
    _, steps = schedule.compress(small)
    early = run(3)
    assert int(early["total_rank"]) < early["rank_budget"]
    told = run(steps - 3)
    assert int(told["total_rank"]) == told["rank_budget"] == 2 * 12


def kinds(training, work, *, is_scored):
    import costs

    operations = costs.parse_program(training.program(is_scored=is_scored)).values()
    dense = {shape for pair in work.sizes.values() for shape in (pair, pair[::-1])}
    return {costs.kind_of(operation, dense) for operation in operations}


def test_operations_are_told_apart_by_their_source(small):
    import costs
    import ours

    use_compilation_cache(None)
    training = ours.increlora(small, max_rank="8")
    scored = kinds(training, small, is_scored=True)
    parts = "base products, adapter products, attention products, dropout, layer norm"
    expected = {costs.SCORE, "orthogonality", "optimizer, clip", "activation function"}
    for part in parts.split(", "):
        expected |= {kind for kind in scored if kind.startswith(part)} or {part}
    assert expected <= scored
    assert scored - kinds(training, small, is_scored=False) == {costs.SCORE}


def found_of(turns):
    """Results as the bench keeps them, of a machine whose products are 4 FLOP/s by the faster."""
    import contenders

    rows = {
        name: {"turns": seconds, "flops": 2.0, "last": {"memory": 2**20}, "cached": {}}
        for name, seconds in turns.items()
    }
    for name, flops in ((contenders.JAX_PEAK, 4.0), (contenders.TORCH_PEAK, 3.0)):
        rows[name] = {"turns": [1.0, 1.0], "last": {"flops": flops}}
    return {
        "rows": rows,
        "scored_share": {"default": 0.25, "every step": 1.0},
        "machine": {"device": "cpu"},
        "work": {"name": "minilm-l6", "batch": 32, "length": 64},
    }


def test_the_whole_runs_step_is_mixed_turn_by_turn():
    import contenders
    import figures

    turns = {
        contenders.SCORED: [2.0, 4.0, 9.0],
        contenders.UNSCORED: [1.0, 2.0, 1.0],
        contenders.LORA: [1.0, 2.0, 3.0],
    }
    rows = figures.rows_of(found_of(turns))
    assert rows[figures.WHOLE].turns == [1.25, 2.5, 3.0]
    assert rows[figures.EVERY].turns == turns[contenders.SCORED]
    # The turns' own ratios are 1.25, 1.25 and 1; the ratio of the medians would be another.
    assert figures.ratio(rows[figures.WHOLE], rows[contenders.LORA]) == 1.25


def test_goals_are_met_or_missed():
    import contenders
    import figures

    turns = {
        contenders.SCORED: [1.5, 1.5],
        contenders.UNSCORED: [1.0, 1.0],
        contenders.LORA: [1.0, 1.0],
        contenders.PEFT_LORA: [2.0, 2.0],
    }
    found = figures.goals(found_of(turns))
    assert [(round(value, 3), goal.is_met(value)) for goal, value in found] == [
        (1.125, False),  # of a whole run over LoRA's 1
        (1.5, False),  # a scored step
        (1.778, True),  # 2 ÷ 1.125
        (1.0, True),  # memory
    ]


def test_the_faster_products_are_the_measured_peak():
    import contenders
    import figures

    found = found_of({contenders.LORA: [1.0, 1.0]})
    assert max(figures.peaks(found).values()) == 4.0


def test_a_table_is_written_between_its_marks_only():
    import tables

    text = "a\n<!-- results: one -->\nold\n<!-- end -->\nb\n<!-- results: two -->\n<!-- end -->\n"
    once = tables.write_into(text, "one", "new \\1\n")
    assert once == text.replace("old", "new \\1")
    assert tables.write_into(once, "one", "new \\1\n") == once
    with pytest.raises(InputError, match="results: three"):
        tables.write_into(text, "three", "new\n")


def test_the_readme_shows_the_kept_results():
    import tables

    text = (STUDY / "README.md").read_text(encoding="utf-8")
    for path in (STUDY / "results").glob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert tables.write_into(text, path.stem, tables.render(found)) == text


@pytest.mark.parametrize(
    ("kind", "dtype", "teraflops"),
    [
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H200", "float32", None),
        ("cpu", "float32", None),
    ],
)
def test_the_datasheets_peak_is_that_of_the_device_and_dtype(kind, dtype, teraflops):
    import peaks

    assert peaks.datasheet_peak(kind, dtype) == (teraflops and teraflops * 1e12)


def test_the_rebuilt_published_layer_computes_and_scores_what_ours_does():
    torch = pytest.importorskip("torch")
    import published

    layer = published.DenseUpdate(torch.nn.Linear(6, 5), [1, 2, 1])
    x = torch.randn(7, 6)
    y = layer(x)
    y.square().sum().backward()
    averages = {"sensitivity": {}, "uncertainty": {}}
    published.score({"layer": layer}, averages)

    def whole(parts, axis):
        return np.concatenate([part.detach().numpy() for part in parts], axis)

    adapter = Adapter(whole(layer.A, 0).T, whole(layer.lam, 0), whole(layer.B, 1).T)
    active = np.array([True, True, True, False])
    born = np.zeros(4, np.int32)
    slots = Slots(active, ~active, np.array(True), born, born)
    update = effective_update(*jax.tree.map(jnp.asarray, (adapter, slots)), Scaling(16.0))
    expected = layer.base(x).detach().numpy() + x.numpy() @ np.asarray(update.delta)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    gradient = x.numpy().T @ (2 * y.detach().numpy())
    score = 0.15 * float(sensitivity(jnp.asarray(gradient), update))
    assert float(averages["sensitivity"]["layer"]) == pytest.approx(score, rel=1e-4)


def test_the_rebuilt_published_code_has_a_group_for_each_round():
    pytest.importorskip("torch")
    import published
    import work

    assert published.births(work.Work(rank=8)) == [1, 4, 3, 4]
    assert published.births(work.Work(rank=2)) == [1, 1, 1]


@pytest.mark.slow
def test_the_bench_runs_from_end_to_end():
    words = ["--batch", "2", "--length", "8", "--repeats", "2", "--only", "lora"]
    command = [sys.executable, str(STUDY / "bench.py"), "--model", str(TINY_ENCODER), *words]
    only = ["published increlora (its cost)", "increlora, unscored step", "increlora, scored step"]
    done = subprocess.run([*command, *only], check=True, stdout=subprocess.PIPE, text=True)
    assert "does not run" not in done.stdout
    for name in ("increlora, whole run", "lora", only[0]):
        assert f"\n| {name} |" in done.stdout


@pytest.mark.parametrize("name", ["run_jax_products", "run_torch_products"])
def test_the_flops_of_products_are_of_one_step_as_the_seconds_are(name, monkeypatch):
    if "torch" in name:
        pytest.importorskip("torch")
    import peaks

    monkeypatch.setattr(peaks, "SIZES", dict.fromkeys(peaks.SIZES, 64))
    run = getattr(peaks, name)(SimpleNamespace(dtype="float32"))
    once, thrice = (run(count)["flops"] for count in (1, 3))
    assert once == thrice >= 2 * 64**3


def test_the_script_for_a_gpu_says_what_the_bench_understands_and_the_readme_has_room_for():
    import bench
    import figures

    script = (STUDY / "on_gpu.sh").read_text(encoding="utf-8").replace("\\\n", "")
    commands = [shlex.split(line)[1:] for line in script.splitlines() if line.startswith("bench -")]
    readme = (STUDY / "README.md").read_text(encoding="utf-8")
    asked = set()
    for words in commands:
        options = bench.parse(["--dtype", "bfloat16", *words])
        assert f"<!-- results: {options.name} -->" in readme
        asked.add((options.model, options.batch, options.length))
    assert asked == set(figures.GPU_GOALS)


@pytest.mark.parametrize(
    ("work", "seconds", "flops", "value", "is_met"),
    [
        (("deberta-v3-base", 32, 128), 0.004, 2.0, 4.0, True),
        (("deberta-v3-base", 32, 384), 0.25, 100e12, 400.0, True),
        (("llama-3.2-1b", 8, 1024), 0.1024, 2.0, 80.0, True),
        (("llama-7b", 8, 1024), 0.6, 2.0, 13.653, False),
    ],
)
def test_goals_of_a_gpu_are_those_of_its_work(work, seconds, flops, value, is_met):
    import contenders
    import figures

    found = found_of({contenders.UNSCORED: [seconds, seconds]})
    found["machine"]["device"] = "NVIDIA H200"
    found["work"] = dict(zip(("name", "batch", "length"), work, strict=True))
    found["rows"][contenders.UNSCORED]["flops"] = flops
    ((goal, measured),) = figures.goals(found)
    assert (round(measured, 3), goal.is_met(measured)) == (value, is_met)


@pytest.mark.parametrize(("remat", "is_again"), [("none", False), ("full", True)])
def test_our_steps_compute_layers_again_where_the_work_says_so(small, remat, is_again):
    import ours

    use_compilation_cache(None)
    program = ours.lora(replace(small, remat=remat)).program(is_scored=False)
    assert ("rematted_computation" in program) == is_again
