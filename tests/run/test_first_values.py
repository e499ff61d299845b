"""Starts by `--init` on a real run: from kernels, inputs and gradients of its first batches."""

import json
from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax import train
from increlora_jax.core.first_values import principal_directions
from increlora_jax.evaluate import main as evaluate
from increlora_jax.export import main as export
from increlora_jax.nn.factors import factors_of
from increlora_jax.nn.first_values import kernel_of
from increlora_jax.run.build import plan_run, prepare_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.run.first_values import _add_up, _gradients, _moments, begin_by_init
from increlora_jax.runtime.signals import Preempted
from tests.tiny import without
from tests.training.test_loop import SignalAt

INITS = ("lora", "pissa", "eva", "gora")
DYNAMIC = ("increlora", "adalora", "elalora", "flexlora")


def begin(words, *more):
    run = prepare_run(plan_run(parse_run([*words, *more])))
    return run, begin_by_init(run)


def outputs(run, parts):
    model = run.trainer.skeleton.assemble(parts)
    return run.plan.data.kind.predict(model, run.batch_at(0))


@pytest.mark.parametrize(
    ("method", "init"),
    [
        *product(DYNAMIC, INITS),
        *product(("lora", "dora"), INITS[1:]),
    ],
)
def test_the_model_is_the_base_at_first(short_words, method, init):
    before, after = begin(short_words, "--method", method, "--init", init)
    assert any(
        not np.array_equal(own.A, before.parts.adapters[path].A)
        or not np.array_equal(own.B, before.parts.adapters[path].B)
        for path, own in after.parts.adapters.items()
    )
    same = jax.tree.map(
        lambda a, b: np.allclose(a, b, atol=2e-5), outputs(before, before.parts),
        outputs(after, after.parts),
    )  # fmt: skip
    is_a_step = init == "gora" and method in ("lora", "dora")
    assert all(jax.tree.leaves(same)) != is_a_step


def test_active_slots_begin_as_those_of_lora(short_words):
    before, run = begin(short_words, "--init", "lora")
    for path, own in run.parts.adapters.items():
        active, first = np.asarray(run.parts.slots[path].active), before.parts.adapters[path]
        assert active.sum() == 1
        np.testing.assert_array_equal(own.lam, active)
        assert not own.B[active].any()
        std = (3 * own.A.shape[0]) ** -0.5
        np.testing.assert_allclose(own.A[:, active], first.A[:, active] * std / 0.02, rtol=1e-5)
        for part, old in ((own.A.T, first.A.T), (own.B, first.B)):
            np.testing.assert_array_equal(part[~active], old[~active])


def test_lora_begins_as_always(short_words):
    before, after = begin(short_words, "--method", "lora", "--init", "lora")
    assert all(
        np.array_equal(*arrays)
        for path, own in after.parts.adapters.items()
        for arrays in zip(own, before.parts.adapters[path], strict=True)
    )


def test_pissa_trains_the_principal_part_of_every_kernel(short_words):
    _, run = begin(short_words, "--method", "lora", "--init", "pissa", "--target-rank", "2")
    for path, own in run.parts.adapters.items():
        slots = run.parts.slots[path]
        assert int(slots.rank) == 2
        assert slots.active.tolist() == [True] * 4
        scale = float(run.parts.rules.scaling(slots.rank, jnp.float32))
        U, values, V = principal_directions(kernel_of(run.parts, path), 2)
        learns = scale * own.A[:, :2] @ own.B[:2]
        np.testing.assert_allclose(learns, (U * values) @ V, atol=1e-5)
    assert max(np.abs(f.left @ f.right).max() for f in factors_of(run.parts).values()) < 1e-5


def test_the_second_half_of_pissa_never_learns(short_words, tmp_path):
    words = [*short_words, "--method", "lora", "--init", "pissa", "--weight-decay", "0.1"]
    _, begun = begin(words)
    train.main([*words, "--output-dir", str(tmp_path / "run")])
    run = prepare_run(plan_run(parse_run(words)))
    from increlora_jax.nn.adapter_files import load_adapter

    trained = load_adapter(tmp_path / "run" / "adapter", run.parts)
    for path, own in trained.adapters.items():
        first, half = begun.parts.adapters[path], own.lam.shape[0] // 2
        np.testing.assert_array_equal(own.A[:, half:], first.A[:, half:])
        np.testing.assert_array_equal(own.lam, first.lam)
        assert not np.array_equal(own.A[:, :half], first.A[:, :half])


def test_moments_are_those_of_the_inputs_without_padding(short_words):
    run = prepare_run(plan_run(parse_run([*short_words, "--method", "lora", "--no-packing"])))
    batch = run.batch_at(0)
    found = _moments(run.trainer.skeleton, run.plan.data.kind, run.parts, batch)
    model = run.trainer.skeleton.assemble(run.parts)
    embedded = model.bert.embeddings  # whose output is the input of the first layer
    seen = []
    original = type(embedded).__call__

    class Spy(type(embedded)):
        def __call__(self, *args, **options):
            seen.append(original(self, *args, **options))
            return seen[-1]

    from increlora_jax.nn.effective import set_kind

    set_kind(embedded, Spy)
    run.plan.data.kind.loss(model, batch)
    rows = np.asarray(seen[0])[np.asarray(batch["attention_mask"]) > 0]
    for name in ("query", "key", "value"):
        moment = found[f"bert.encoder.layer.0.attention.self.{name}"]
        np.testing.assert_allclose(moment, rows.T @ rows, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_kernels(short_words):
    run = prepare_run(plan_run(parse_run([*short_words, "--method", "lora", "--no-packing"])))
    kind, batch, parts = run.plan.data.kind, run.batch_at(0), run.parts
    found = _gradients(run.trainer.skeleton, kind, parts, batch)
    kernels = {f"{path}.kernel": parts.frozen()[f"{path}.kernel"] for path in parts.adapters}

    def loss(kernels):
        base = {**parts.frozen(), **kernels}
        total, weight = kind.loss(run.trainer.skeleton.assemble(parts._replace(base=base)), batch)
        return total / weight

    for path, expected in jax.grad(loss)(kernels).items():
        got = found[path.removesuffix(".kernel")]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)


def test_sums_are_over_the_batches_of_each_seed(short_words):
    words = [*without(short_words, "--seed"), "--method", "lora", "--init-batches", "2"]
    both = prepare_run(plan_run(parse_run([*words, "--seeds", "7,8"])))
    for index, seed in enumerate((7, 8)):
        alone = prepare_run(plan_run(parse_run([*words, "--seed", str(seed)])))
        kind, skeleton = alone.plan.data.kind, alone.trainer.skeleton
        measure = lambda p, b, k=kind, s=skeleton: _moments(s, k, p, b)  # noqa: E731
        one = _add_up(alone, alone.parts, 0, measure)
        among = _add_up(both, both.starts[index], index, measure)
        for path, value in one.items():
            np.testing.assert_allclose(among[path], value, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("init", ["eva", "gora"])
def test_fixed_ranks_are_given_where_they_matter(short_words, init):
    _, run = begin(short_words, "--method", "lora", "--init", init, "--target-rank", "2")
    ranks = [int(own.rank) for own in run.parts.slots.values()]
    assert len(set(ranks)) > 1
    assert init == "gora" or sum(ranks) == 24
    assert max(ranks) <= (4 if init == "eva" else 8)


@pytest.mark.parametrize(
    "init", ["pissa", *(pytest.param(init, marks=pytest.mark.slow) for init in ("eva", "gora"))]
)
def test_a_run_resumes_scores_again_and_is_exported(init, short_words, tmp_path, capsys):
    words = [*short_words, "--method", "lora", "--init", init]
    train.main([*words, "--output-dir", str(tmp_path / "run")])
    stopped = [*words, "--output-dir", str(tmp_path / "cut"), "--save-steps", "1"]
    stop = SignalAt(5)
    with stop.listening(), pytest.raises(Preempted):
        train.train(parse_run(stopped), stop)
    train.main(stopped)
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    capsys.readouterr()
    evaluate(["--run", str(tmp_path / "run")])
    told = json.loads(capsys.readouterr().out)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert told["accuracy"] == pytest.approx(results["metrics"]["accuracy"], abs=1e-6)
    for form in ("peft", "merged"):
        export(["--run", str(tmp_path / "run"), "--format", form,
                "--output-dir", str(tmp_path / form)])  # fmt: skip
        differences = json.loads(capsys.readouterr().out)["differences"]
        assert max(differences.values()) < 5e-5


def test_pissa_is_that_of_peft(short_words, tiny_model):
    pytest.importorskip("torch", reason="pip install torch peft")
    peft = pytest.importorskip("peft", reason="pip install torch peft")
    from transformers import AutoModelForSequenceClassification

    _, run = begin(short_words, "--method", "lora", "--init", "pissa", "--lora-alpha", "6")
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    config = peft.LoraConfig(r=2, lora_alpha=6, init_lora_weights="pissa",
                             target_modules=["query", "intermediate.dense"])  # fmt: skip
    wrapped = peft.get_peft_model(model, config)
    compared = 0
    for name, module in wrapped.named_modules():
        path = name.removeprefix("base_model.model.")
        if path in run.parts.adapters and hasattr(module, "lora_A"):
            theirs = module.get_delta_weight("default").detach().numpy().T
            own = run.parts.adapters[path]
            scale = float(run.parts.rules.scaling(run.parts.slots[path].rank, jnp.float32))
            np.testing.assert_allclose(scale * own.A[:, :2] @ own.B[:2], theirs, atol=1e-5)
            compared += 1
    assert compared == 4


def test_two_starts_are_refused(run_once, short_run, capsys):
    words = ["--method", "lora", "--init", "pissa", "--init-adapter", str(run_once())]
    with pytest.raises(SystemExit):
        train.main([*short_run, *words, "--target-rank", "8"])
    assert "--init pissa and --init-adapter both say" in capsys.readouterr().err


def test_a_start_does_not_change_another_setting(short_words):
    before, after = begin(short_words, "--method", "increlora", "--init", "eva")
    assert after.plan is before.plan
    assert replace(after, starts=before.starts).parts is before.parts
    for path, slots in after.parts.slots.items():
        np.testing.assert_array_equal(slots.active, before.parts.slots[path].active)
