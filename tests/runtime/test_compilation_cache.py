"""The cache of compiled programs: where it is, who may touch it, and that it is used."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from increlora_jax.errors import InputError
from increlora_jax.runtime.compilation_cache import OFF, use_compilation_cache

PROGRAM = """
import sys
import jax
from increlora_jax.runtime.compilation_cache import use_compilation_cache
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x - 1)(1.0)  # compiled before anything is said about a cache
print(use_compilation_cache(None if len(sys.argv) < 2 else sys.argv[1]))
jax.jit(lambda x: x + 1)(1.0)
"""


def run(*words, **environment):
    """The folder that a process of its own uses, and its exit status."""
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env=kept | {name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def restored():
    """Put the test process's own cache back."""
    before = jax.config.jax_compilation_cache_dir
    yield
    use_compilation_cache(before or OFF)


def test_it_is_on_by_default_in_a_private_folder_of_the_user(tmp_path):
    folder = tmp_path / "increlora_jax" / "jax"
    assert run(XDG_CACHE_HOME=tmp_path) == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir())


@pytest.mark.parametrize(
    ("before", "environment", "after"),
    [("", {}, "0.0"), ("", {"SECS": "1.0"}, "1.0"), ("jax.config.update(name, 2.5)", {}, "2.5")],
)
def test_small_programs_are_kept_unless_the_user_says_otherwise(
    before, environment, after, tmp_path
):
    prefix = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_"
    program = f"""
import jax
from increlora_jax.runtime.compilation_cache import use_compilation_cache
name = "{prefix.lower()}secs"
{before}
use_compilation_cache({str(tmp_path)!r})
print(getattr(jax.config, name))
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    told = {prefix + name: value for name, value in environment.items()}
    done = subprocess.run(
        [sys.executable, "-c", program], env=kept | told, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == after


def test_a_folder_that_jax_was_told_of_stands(tmp_path):
    told = tmp_path / "told"
    assert run(XDG_CACHE_HOME=tmp_path, JAX_COMPILATION_CACHE_DIR=told) == str(told)
    assert not (tmp_path / "increlora_jax").exists()


def test_it_can_be_moved_and_switched_off(tmp_path):
    chosen = tmp_path / "mine"
    assert run(str(chosen), XDG_CACHE_HOME=tmp_path / "caches") == str(chosen)
    assert list(chosen.iterdir())
    assert run(OFF, XDG_CACHE_HOME=tmp_path / "caches") == "None"
    assert not (tmp_path / "caches").exists()


def test_a_folder_open_to_others_is_closed_before_use(tmp_path, restored):
    tmp_path.chmod(0o777)
    assert use_compilation_cache(str(tmp_path)) == tmp_path
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_somebody_else_is_refused(tmp_path, restored, monkeypatch):
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    with pytest.raises(InputError, match=r"not private to you.*--compilation-cache-dir"):
        use_compilation_cache(str(tmp_path))


def go_without(capsys, reason):
    """The default folder, which nobody asked for, cannot be used."""
    use_compilation_cache(OFF)
    assert use_compilation_cache(None) is None
    assert jax.config.jax_compilation_cache_dir is None
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("note: compiled programs are not kept: ")
    assert reason in said


def test_a_user_without_a_home_goes_without(restored, monkeypatch, capsys):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # whom no list of users knows
    go_without(capsys, "home directory")


def test_a_default_folder_that_cannot_be_made_is_done_without(
    tmp_path, restored, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    go_without(capsys, f"{tmp_path}/file/increlora_jax/jax cannot be used")


def test_a_default_folder_of_somebody_else_is_done_without(tmp_path, restored, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    go_without(capsys, "is not private to you")


def test_a_damaged_entry_is_compiled_anew(tmp_path):
    run(str(tmp_path / "mine"))
    for entry in (tmp_path / "mine").glob("*-cache"):
        entry.write_bytes(entry.read_bytes()[:-9])
    assert run(str(tmp_path / "mine")) == str(tmp_path / "mine")


def test_a_file_in_its_place_is_named(tmp_path, restored):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"{tmp_path}/file.*--compilation-cache-dir off"):
        use_compilation_cache(str(tmp_path / "file"))
    assert Path(tmp_path / "file").is_file()
