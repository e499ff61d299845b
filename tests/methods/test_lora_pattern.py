"""LoRA with a rank for each module, from words or from the file of a run."""

import json

import pytest
from flax import nnx
from safetensors.numpy import load_file

import increlora_jax as il
from increlora_jax import train
from increlora_jax.config import PatternConfig
from increlora_jax.errors import InputError
from increlora_jax.evaluate import main as evaluate
from increlora_jax.methods.lora_pattern import lora_pattern
from increlora_jax.nn.attach import adapters_of
from tests.tiny import MLP, MODULES

RANKS = dict(zip(MODULES, (3, 0, 1, 2), strict=True))
WORDS = [f"{name}={rank}" for name, rank in RANKS.items()]


def build(words=WORDS, **given):
    given = {"targets": MODULES, "config": PatternConfig(words)} | given
    return lora_pattern(MLP(), **given)


def test_every_buffer_is_as_wide_as_its_rank_and_rank_0_has_none():
    adapters = adapters_of(build().attach(MLP(), nnx.Rngs(0)))
    widths = {name: adapter.lam.shape[-1] for name, adapter in adapters.items()}
    assert widths == {name: rank for name, rank in RANKS.items() if rank}
    assert all(adapter.slots.active.all() for adapter in adapters.values())
    assert build().description == "3 modules of ranks 1 to 3, 6 in all"


def test_the_scale_is_alpha_over_the_modules_own_rank():
    adapter = il.AdapterConfig(lora_alpha=6.0)
    _, parts = il.split(build(adapter=adapter).attach(MLP(), nnx.Rngs(0)), lambda path: False)
    scales = {
        name: float(parts.rules.scaling(s.rank, "float32")) for name, s in parts.slots.items()
    }
    assert scales == pytest.approx({name: 6 / r for name, r in RANKS.items() if r}, rel=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (WORDS[1:], "has no rank for layers.0. Add it"),
        ([*WORDS, "layers.9=1"], r"layers\.9 is no target of this model; did you mean"),
        ([*WORDS[1:], "layers.0=999"], "layers.0=999 exceeds the module's kernel"),
        ([f"{name}=0" for name in MODULES], "gives every module rank 0"),
        (["layers.0"], "layers.0: write NAME=RANK"),
        (["layers.0=-1"], "layers.0=-1: write NAME=RANK"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(words, message):
    with pytest.raises(InputError, match=message):
        build(words)


def test_the_ranks_that_a_run_has_found_are_replayed_without_its_file(
    run_once, short_words, tmp_path, capsys
):
    found = tmp_path / "found.json"
    ranks = json.loads((run_once() / "results.json").read_text())["ranks"]
    found.write_text((run_once() / "results.json").read_text())
    words = [*short_words, "--method", "lora-pattern", "--rank-pattern", str(found)]
    train.main([*words, "--output-dir", str(tmp_path / "run")])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["ranks"] == ranks
    assert results["trainable_parameters"]["active"] == results["trainable_parameters"]["buffer"]
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert tensors[f"{min(ranks)}.adapter.A"].shape[-1] == ranks[min(ranks)]
    train.main([*words, "--output-dir", str(tmp_path / "run")])
    assert "this run is finished" in capsys.readouterr().out
    found.unlink()
    evaluate(["--run", str(tmp_path / "run")])
    told = json.loads(capsys.readouterr().out)
    assert told["accuracy"] == pytest.approx(results["metrics"]["accuracy"], abs=1e-6)


def test_a_file_without_ranks_is_named(short_run, tmp_path, capsys):
    (tmp_path / "other.json").write_text('{"metrics": {}}')
    words = ["--method", "lora-pattern", "--rank-pattern", str(tmp_path / "other.json")]
    with pytest.raises(SystemExit):
        train.main([*short_run, *words])
    assert "other.json: no ranks are here" in capsys.readouterr().err
