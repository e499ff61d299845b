"""A dry run tells what the run then does, and leaves nothing behind."""

import shutil

import pytest

from increlora_jax import train
from increlora_jax.compose import plan_run, prepare_run
from increlora_jax.dry_run import describe_dry_run
from increlora_jax.nn.report import report
from increlora_jax.parsing import parse_run
from increlora_jax.run_folder import clear
from tests.tiny import without


@pytest.mark.parametrize("method", ["increlora", "head"])
def test_it_counts_what_the_run_has(short_run, method):
    config = parse_run([*short_run, "--method", method])
    told = describe_dry_run(config)
    run = prepare_run(plan_run(config))
    assert report(run.parts).describe() in told
    assert run.plan.method.description in told
    head = 4 * sum(value.size for value in run.parts.head.values())
    adapters = 4 * sum(a.A.size + a.B.size + a.lam.size for a in run.parts.adapters.values())
    assert f"what is trained {(head + adapters) / 2**20:.1f} MiB" in told


def test_it_tells_what_follows_the_length_of_the_run(short_run):
    config = parse_run(without(short_run, "--warmup-steps"))
    assert "note: chosen for a run of 14 steps: --warmup-steps " in describe_dry_run(config)


def test_it_writes_nothing_and_needs_no_weights(
    short_run, tiny_model, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    (bare / "model.safetensors").write_bytes(b"")
    there = sorted(tmp_path.rglob("*"))
    words = [*without(short_run, "--seed"), "--model", str(bare), "--seeds", "1,2"]
    train.main([*words, "--dry-run"])
    out = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == there
    for said in (
        "160 rows",
        "41 rows",
        "steps: 14, of 16",
        "evaluation every 6",
        "2 runs train together: seed-1, seed-2",
        "without activations",
        "a new run begins there",
        "total rank 12 → 24 in 3 rounds",
        "nothing was written",
    ):
        assert said in out


def test_it_tells_of_a_run_that_is_there(short_run, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    clear(tmp_path / "run", parse_run(short_run))
    words = [*short_run, "--dry-run"]
    train.main(words)
    assert "which resumes" in capsys.readouterr().out
    (tmp_path / "run" / "results.json").write_text("{}")
    train.main(words)
    assert "which is finished" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        train.main([*words, "--top-h", "3"])
    assert end.value.code == 2
    assert "top_h" in capsys.readouterr().err
