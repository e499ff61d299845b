"""A dry run tells what the run then does, and leaves nothing behind."""

import shutil
from pathlib import Path

import pytest

from increlora_jax import train
from increlora_jax.nn.report import report
from increlora_jax.run.build import plan_run, prepare_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.run.dry_run import describe_dry_run
from increlora_jax.run.folder import clear
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
    assert f"trained parameters {(head + adapters) / 2**20:.1f} MiB" in told


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
        "a new run starts",
        "total rank 12 → 24 in 3 rounds",
        "nothing was written",
    ):
        assert said in out


def refuse(capsys, words, status=2):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        train.main(words)
    assert end.value.code == status
    return capsys.readouterr().err


def test_it_tells_of_a_run_that_is_there_and_refuses_what_the_run_would(
    finished, short_words, tiny_model, tmp_path, capsys
):
    bare = shutil.copytree(tiny_model, tmp_path / "bare")
    (bare / "model.safetensors").write_bytes(b"")
    run = [*short_words, "--output-dir", str(finished)]
    words, of_another = [*run, "--dry-run"], ["--model", str(bare)]
    train.main(words)
    assert "which is finished" in capsys.readouterr().out
    assert "top_h" in refuse(capsys, [*words, "--top-h", "3"])
    said = refuse(capsys, [*words, *of_another])
    assert "was created with other inputs: base model (" in said
    assert said == refuse(capsys, [*run, *of_another])
    (finished / "results.json").unlink()
    there = sorted(finished.rglob("*"))
    train.main(words)
    assert "which resumes from the checkpoint of step " in capsys.readouterr().out
    assert said == refuse(capsys, [*words, *of_another])
    assert sorted(finished.rglob("*")) == there
    shutil.rmtree(finished / "checkpoints")
    train.main(words)
    assert "no checkpoint yet: it starts over" in capsys.readouterr().out


def test_damaged_results_are_refused_as_the_run_refuses_them(short_run, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    clear(tmp_path / "run", parse_run(short_run))
    (tmp_path / "run" / "results.json").write_text("{}")
    assert "results.json: 'identity' is missing" in refuse(capsys, [*short_run, "--dry-run"])


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where nobody can write")
def test_a_folder_that_cannot_be_written_is_refused_as_the_run_refuses_it(short_words, capsys):
    words = [*short_words, "--output-dir", "/proc/runs/first"]
    said = refuse(capsys, [*words, "--dry-run"], status=4)
    assert said.splitlines()[-1].startswith(
        "error: --output-dir /proc/runs/first cannot be written: /proc: "
    )
    assert refuse(capsys, words, status=4).splitlines()[-1] == said.splitlines()[-1]
