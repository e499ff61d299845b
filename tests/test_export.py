"""The export command: its proof, what it leaves, and adapters that are truncated."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file

from increlora_jax import export as exporting
from increlora_jax.evaluate import main as evaluate
from increlora_jax.interop.peft_files import CONFIG
from increlora_jax.nn.adapter_files import read_adapter_config
from increlora_jax.nn.factors import factors_of, shrink
from increlora_jax.run.loading import load_trained
from tests.hub_server import Hub, find_revision


@pytest.fixture(scope="module")
def run(run_once):
    return run_once()


def export(run, folder, *words):
    exporting.main(["--run", str(run), "--output-dir", str(folder), *words])
    return folder


@pytest.mark.parametrize(
    "words", ["native", "native --rank-budget 9", "native --energy 0.9", "peft", "merged"]
)
def test_what_is_exported_is_evaluated_again(run, words, toy_data, tmp_path, capsys):
    folder = export(run, tmp_path / "out", "--format", *words.split())
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert "the largest difference is" in said.err
    evaluate(["--run", str(folder), "--data-dir", str(toy_data)])
    accuracy = json.loads(capsys.readouterr().out)["accuracy"]
    results = json.loads((run / "results.json").read_text())
    if "--" in words:
        assert sum(told["ranks"].values()) < results["total_rank"]
        assert f"before: total rank {results['total_rank']}, accuracy" in said.err
        assert f"after: total rank {sum(told['ranks'].values())}, accuracy {accuracy}" in said.err
    else:
        assert accuracy == results["metrics"]["accuracy"]


def test_a_truncated_adapter_is_the_best_of_its_rank_and_has_narrow_buffers(run, tmp_path):
    small = load_trained(export(run, tmp_path / "out", "--format", "native", "--rank-budget", "5"))
    expected = shrink(factors_of(load_trained(run).model.parts), 5)
    found = factors_of(small.model.parts)
    for path, own in expected.items():
        np.testing.assert_allclose(
            found[path].left @ found[path].right, own.left @ own.right, atol=1e-6
        )
    widths = {adapter.lam.shape[-1] for adapter in small.model.parts.adapters.values()}
    assert widths == {max(own.rank for own in expected.values())}
    assert sum(read_adapter_config(tmp_path / "out")["ranks"].values()) == 5


@pytest.mark.slow
def test_a_truncated_adapter_is_exported_to_everything_else(run, tmp_path):
    small = export(run, tmp_path / "small", "--format", "native", "--rank-budget", "5")
    for form in ("peft", "merged", "native"):
        export(small, tmp_path / form, "--format", form)


def test_an_export_that_computes_otherwise_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exporting, "BOUNDS", dict.fromkeys(exporting.BOUNDS, -1.0))
    with pytest.raises(SystemExit) as ended:
        export(run, tmp_path / "out", "--format", "merged")
    assert ended.value.code == 2
    assert "the export computes otherwise than the run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_card_has_the_facts_and_metadata_of_the_hub(run, tmp_path):
    folder = export(run, tmp_path / "out", "--format", "peft")
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.metrics == ["accuracy"]
    results = json.loads((run / "results.json").read_text())
    assert f"accuracy: {results['metrics']['accuracy']:.4f}" in card.text
    assert f"Ranks: {results['total_rank']} in" in card.text
    assert "python -m increlora_jax.export --run" in card.text


def test_no_folder_is_overwritten(run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit):
        export(run, tmp_path, "--format", "peft")
    assert "not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "gguf"], "--format"),
        (["--format", "merged", "--layout", "compact"], "--layout is for --format peft"),
        (["--format", "peft", "--dtype", "float16"], "--dtype is for --format merged"),
        (["--format", "peft", "--rank-budget", "3"], "--rank-budget is for --format native"),
        (["--format", "native", "--rank-budget", "0"], "is not at least 1"),
        (["--format", "native", "--energy", "1.5"], "is not above 0 and at most 1"),
        (["--format", "native", "--energy", "0.5", "--rank-budget", "3"], "both say what to keep"),
    ],
)
def test_wrong_flags_are_one_line_and_a_status(run, words, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        export(run, tmp_path / "out", *words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_head_or_a_full_model_is_no_adapter_for_peft(run_once, tmp_path, capsys):
    folder = run_once("--method", "head")
    with pytest.raises(SystemExit):
        export(folder, tmp_path / "out", "--format", "peft")
    assert "no module has an update" in capsys.readouterr().err
    export(folder, tmp_path / "merged", "--format", "merged")
    assert not (tmp_path / "merged" / CONFIG).exists()


def test_a_run_in_bfloat16_is_proved_in_float32(run_once, tmp_path, capsys):
    folder = run_once("--dtype", "bfloat16")
    for form in ("peft", "merged"):
        export(folder, tmp_path / form, "--format", form)
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert max(told["differences"].values()) < 5e-5
        assert load_trained(tmp_path / form).plan.config.task.dtype == "bfloat16"


def test_another_base_of_the_same_shapes_is_refused(run, tiny_model, tmp_path, capsys):
    folder = export(run, tmp_path / "out", "--format", "peft")
    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({key: value / 2 for key, value in weights.items()}, other / "model.safetensors")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        evaluate(["--run", str(folder), "--model", str(other)])
    assert "created with other inputs: base model" in capsys.readouterr().err


def test_a_folder_by_its_shortest_name_is_written(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exporting.main(["--run", str(run), "--output-dir", ".", "--format", "native"])
    assert (tmp_path / "adapter_config.json").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        export(run, tmp_path / "file" / "out", "--format", "native")
    assert "is no folder" in capsys.readouterr().err


def test_a_model_without_adapters_is_not_truncated(run_once, tmp_path, capsys):
    for words in (["--rank-budget", "3"], ["--energy", "0.5"]):
        with pytest.raises(SystemExit) as ended:
            export(run_once("--method", "head"), tmp_path / "out", "--format", "native", *words)
        assert ended.value.code == 2
        assert "are for adapters of this project's runs" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["peft", "merged", "native"])
def test_nothing_is_needed_of_pytorch(run, form, tmp_path):
    hidden = "import sys; sys.modules['torch'] = sys.modules['peft'] = None"
    words = ["--run", str(run), "--format", form, "--output-dir", str(tmp_path / "out")]
    program = f"{hidden}; from increlora_jax.export import main; main({words})"
    ended = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ("not compared by PyTorch" in ended.stderr) == (form != "native")


PUSH = ["--format", "native", "--push-to-hub", "me/films"]


def push(run, folder, environment):
    """Export and upload in a process of its own, as the hub's address is read once."""
    command = [sys.executable, "-m", "increlora_jax.export", "--run", str(run), *PUSH]
    return subprocess.run(
        [*command, "--output-dir", str(folder)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_export_is_uploaded_as_it_is_on_disk(run, tmp_path):
    out = tmp_path / "out"
    with Hub() as hub:
        done = push(run, out, hub.environment(tmp_path) | {"HF_TOKEN": "hf_of_a_test"})
        assert done.returncode == 0, done.stderr
        assert f"pushed to {hub.url}/me/films" in done.stderr
        _, uploaded = find_revision(hub, "me/films")
    on_disk = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*.*")}
    assert uploaded == on_disk
    assert "base_model" in hub.cards[0]


@pytest.mark.parametrize("is_there", [True, False])
def test_an_upload_that_fails_keeps_the_export_and_names_the_remedy(run, is_there, tmp_path):
    with Hub() as hub:
        environment = hub.environment(tmp_path) | {"HF_TOKEN": "hf_of_a_test"}
        if is_there:
            hub.refused.add("/api/repos/create")
        else:
            hub.close()
        done = push(run, tmp_path / "out", environment)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --push-to-hub me/films: ")
    assert "hf auth login" in done.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
