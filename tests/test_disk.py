"""A disk that fails under a run: status 4, the path in the message, the previous one intact."""

import errno
import os
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
from safetensors.numpy import load_file

from increlora_jax import evaluate, train
from increlora_jax.files.replace import find_folder
from increlora_jax.nn.adapter_files import read_adapter_config
from increlora_jax.run.folder import read_results
from increlora_jax.training.checkpoint import find_problem


@pytest.fixture(scope="module")
def words(tiny_model, toy_data):
    flags = {
        "task": "sst2", "model": tiny_model, "data-dir": toy_data, "method": "head",
        "max-steps": 3, "save-steps": 1, "eval-steps": 3, "max-seq-length": 16, "warmup-steps": 0,
    }  # fmt: skip
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train.main([*words, "--output-dir", str(folder)])
    return folder


@pytest.fixture
def begun(finished, tmp_path):
    """A run that is to go on from its second step, with the adapter of its third."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "3")
    return tmp_path / "run"


def fail_on(name, code):
    """Let `os.rename` and `os.replace` fail for what is to be called `name`."""

    def wrap(function):
        def renamed(source, target, **kwargs):
            if os.path.basename(target) == name:
                raise OSError(code, os.strerror(code), str(source), None, str(target))
            return function(source, target, **kwargs)

        return renamed

    patch = pytest.MonkeyPatch()
    for function in ("rename", "replace"):
        patch.setattr(os, function, wrap(getattr(os, function)))
    return patch


@pytest.mark.parametrize("code", [errno.EACCES, errno.EXDEV])
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("adapter", "adapter"),
        ("adapter-best", "adapter-best"),
        ("results.json", "results.json"),
        ("manifest.json", "checkpoints/3"),
    ],
)
def test_a_rename_that_fails(begun, finished, words, capsys, name, path, code):
    patch = fail_on(name, code)
    try:
        with pytest.raises(SystemExit) as end:
            train.main([*words, "--output-dir", str(begun)])
    finally:
        patch.undo()
    assert end.value.code == 4
    said = capsys.readouterr().err
    assert f"{begun / path}" in said
    assert os.strerror(code) in said
    assert "Traceback" not in said
    assert not (begun / "results.json").exists()
    assert find_problem(begun / "checkpoints" / "2") is None
    for adapter in ("adapter", "adapter-best"):  # the old one or the new one, each whole
        assert read_adapter_config(begun / adapter)["total_steps"] == 3
        assert load_file(find_folder(begun / adapter) / "adapter_model.safetensors").keys()
    train.main([*words, "--output-dir", str(begun)])
    assert read_results(begun)["metrics"] == read_results(finished)["metrics"]
    assert evaluate.evaluate(begun) == read_results(finished)["metrics"]


def test_a_folder_where_nothing_can_be_made(words, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SystemExit) as end:
        train.main([*words, "--output-dir", str(tmp_path / "file" / "run")])
    assert end.value.code == 4
    assert f"--output-dir {tmp_path / 'file' / 'run'} cannot be written" in capsys.readouterr().err


def mount(disk, *options):
    words = ["mount", "-t", "tmpfs", *options, "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(words, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")


@pytest.mark.parametrize("is_full", [True, False])
def test_a_disk_without_room_or_read_only(begun, words, tmp_path, is_full):
    """The run is moved onto a disk that holds it and no more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(disk, "-o", "size=4m")
    try:
        shutil.copytree(begun, disk / "run")
        if is_full:
            fill(disk / "ballast")
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        command = [sys.executable, "-m", "increlora_jax.train", *words]
        command += ["--output-dir", str(disk / "run")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 4, done.stderr[-2000:]
        [said] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert str(disk / "run") in said
        assert "Traceback" not in done.stderr
        assert find_problem(disk / "run" / "checkpoints" / "2") is None
        assert read_adapter_config(disk / "run" / "adapter")["step"] == 3
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_during_a_run(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(disk, "-o", "size=2m")
    try:
        command = [sys.executable, "-m", "increlora_jax.train", "--task", "demo"]
        command += ["--max-steps", "300", "--save-steps", "20", "--output-dir", str(disk / "run")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 4, done.stderr[-2000:]
        assert done.stderr.splitlines()[-1].startswith(f"error: the checkpoint {disk}") or (
            f"error: {disk / 'run' / 'metrics.jsonl'} cannot be written" in done.stderr
        )
        assert "Traceback" not in done.stderr
        assert "step 150" not in done.stderr  # said when it fails, not at the end
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill(path):
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
