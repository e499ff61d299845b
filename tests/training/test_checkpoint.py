"""Checkpoints: what they hold, what is noticed of them, what stays."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.errors import InputError, WriteError
from increlora_jax.methods.increlora import increlora
from increlora_jax.training.checkpoint import (
    MANIFEST,
    Checkpoints,
    Keep,
    clear_checkpoints,
    find_last,
    find_problem,
)
from increlora_jax.training.progress import Progress
from increlora_jax.training.state import TrainState
from tests.tiny import MLP, assert_same, batch_of, start, trains_head

STEPS = 12
IDENTITY = {"base model": "abc", "data": "def"}


@pytest.fixture(scope="module")
def begun():
    """A run that grows at steps 2, 4 and 6."""
    model = MLP(np.float32, 3)
    method = increlora(
        model,
        steps=STEPS,
        targets=r"layers\.\d",
        adapter=AdapterConfig(),
        growth=GrowthConfig(target_rank=2, top_h=1, init_warmup=1, incre_interval=2),
        is_trained=trains_head,
    )
    return start(method, steps=STEPS, model=model)


def advance(begun, state, steps):
    for _ in range(steps):
        batch = batch_of(seed=int(state.step))
        state, _ = begun.step(state, begun.parts.base, batch, is_scored=True)
    return state


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path, Keep(2), IDENTITY)


@pytest.fixture(scope="module")
def saved(begun, tmp_path_factory):
    """A folder with the checkpoints of steps 3 and 5, and the states they hold."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints, states, state = Checkpoints(folder, Keep(2), IDENTITY), {}, begun.state
    for step in (3, 5):
        state = advance(begun, state, step - int(state.step))
        states[step] = state
        checkpoints.save(state, Progress(step=step))
    checkpoints.wait()
    return folder, states


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of that folder that may be damaged."""
    folder = tmp_path / "copy"
    shutil.copytree(saved[0], folder)
    return folder


def files_of(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def test_a_state_comes_back_bit_for_bit(begun, saved):
    folder, states = saved
    checkpoints = Checkpoints(folder, Keep(2), IDENTITY)
    assert checkpoints.newest() == (5, [])
    for step, state in states.items():
        restored = checkpoints.restore(step, begun.state)
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        assert_same(restored, state)


def test_what_is_restored_goes_on_the_same_way(begun, saved):
    folder, states = saved
    restored = Checkpoints(folder, Keep(2), IDENTITY).restore(3, begun.state)
    assert_same(advance(begun, restored, 4), advance(begun, states[3], 4))


def test_progress_and_identity_come_back(begun, checkpoints):
    progress = Progress(
        step=3,
        evaluated=2,
        metrics={"accuracy": 0.25},
        best_metrics={"accuracy": 0.5},
        best_step=1,
        rounds={2: {"layers.0": 1}},
        skipped=[1],
        finished=[2],
        tokens=7,
        seconds=1.5,
        training_seconds=0.5,
        log_bytes=99,
    )
    checkpoints.save(begun.state, progress)
    checkpoints.wait()
    assert checkpoints.read(3) == ((progress,), IDENTITY)


def test_runs_that_train_together_have_a_progress_each(begun, checkpoints):
    progress = Progress(step=3, tokens=7), Progress(step=3, tokens=8, best_step=2)
    checkpoints.save(begun.state, *progress)
    checkpoints.wait()
    assert checkpoints.read(3).progress == progress


def test_the_last_the_best_and_the_multiples_stay(begun, tmp_path):
    checkpoints = Checkpoints(tmp_path, Keep(2, period=4), IDENTITY)
    for step in range(1, 11):
        checkpoints.save(begun.state, Progress(step=step, best_step=min(step, 3)))
    checkpoints.wait()
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [3, 4, 8, 9, 10]
    assert checkpoints.newest() == (10, [])


def test_the_best_of_every_run_stays(begun, tmp_path):
    checkpoints = Checkpoints(tmp_path, Keep(1), IDENTITY)
    for step in range(1, 7):
        best = [Progress(step=step, best_step=min(step, at)) for at in (2, 4)]
        checkpoints.save(begun.state, *best, Progress(step=step))
    checkpoints.wait()
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 4, 6]


def test_every_file_truncated_or_gone_is_noticed(copy):
    for path in files_of(copy / "5"):
        content = path.read_bytes()
        for cut in {0, len(content) // 2, len(content) - 1} if content else set():
            path.write_bytes(content[:cut])
            assert find_problem(copy / "5"), path
        path.unlink()
        assert find_problem(copy / "5"), path
        path.write_bytes(content)
        assert find_problem(copy / "5") is None


def test_every_flipped_bit_is_noticed(copy):
    random = np.random.default_rng(0)
    paths = [path for path in files_of(copy / "5") if path.stat().st_size]
    for flip in range(1000):
        path = paths[flip % len(paths)]
        content = bytearray(path.read_bytes())
        at = random.integers(len(content) * 8)
        content[at // 8] ^= 1 << at % 8
        path.write_bytes(content)
        assert find_problem(copy / "5"), (path, at)
        content[at // 8] ^= 1 << at % 8
        path.write_bytes(content)
    assert find_problem(copy / "5") is None


def test_a_file_that_was_not_written_with_it_is_noticed(copy):
    (copy / "5" / "state" / "more").write_text("x")
    assert find_problem(copy / "5") == "state/more has come to it"


def test_the_one_before_a_damaged_checkpoint_is_used(begun, saved, copy):
    victim = files_of(copy / "5" / "state")[0]
    victim.write_bytes(victim.read_bytes()[:-1])
    checkpoints = Checkpoints(copy, Keep(2), IDENTITY)
    step, (note,) = checkpoints.newest()
    assert step == 3
    assert f"{copy / '5'} is not used: {victim.relative_to(copy / '5')}" in note
    assert_same(checkpoints.restore(step, begun.state), saved[1][3])
    assert (copy / "damaged" / "5").is_dir()  # for whoever wants to look at it
    assert checkpoints.newest() == (3, [])


def test_what_was_not_finished_is_cleared_away(copy):
    (copy / "5" / MANIFEST).unlink()
    (copy / "7.orbax-checkpoint-tmp").mkdir()
    step, (note,) = Checkpoints(copy, Keep(2), IDENTITY).newest()
    assert step == 3
    assert "was not finished" in note
    assert sorted(path.name for path in copy.iterdir()) == ["3"]


def make_strangers(folder):
    """What users, file managers and other systems leave beside checkpoints."""
    (folder / "000030").touch()
    (folder / "notes.orbax-checkpoint-tmp").touch()
    for name in ("30.bak", "000031", "٣٠"):  # decimal digits, but not ours
        (folder / name).mkdir()
        (folder / name / "mine.txt").write_text("x")
    (folder / "40").symlink_to(folder / "30.bak")
    (folder / "41").write_text("x")
    return sorted(path.name for path in folder.iterdir() if path.name not in ("3", "5"))


def test_strangers_are_named_passed_over_and_never_removed(begun, copy):
    strangers = make_strangers(copy)
    checkpoints = Checkpoints(copy, Keep(1), IDENTITY)
    step, notes = checkpoints.newest()
    assert step == 5
    assert notes == [f"{copy / name} is no checkpoint: it is passed over" for name in strangers]
    for at in (6, 7):
        checkpoints.save(begun.state, Progress(step=at))
    checkpoints.wait()
    assert {path.name for path in copy.iterdir()} == {*strangers, "7"}
    assert (copy / "30.bak" / "mine.txt").read_text() == "x"


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_is_in_the_way_of_a_checkpoint_is_moved_and_not_removed(begun, copy, kind):
    (copy / "mine").mkdir()
    (copy / "mine" / "notes.txt").write_text("x")
    match kind:
        case "file":
            (copy / "6").write_text("x")
        case "link":
            (copy / "6").symlink_to(copy / "mine")
        case _:
            shutil.copytree(copy / "mine", copy / "6")
    checkpoints = Checkpoints(copy, Keep(3), IDENTITY)
    for _ in range(2):  # a second one finds its place taken
        checkpoints.save(begun.state, Progress(step=6))
        checkpoints.wait()
    assert find_problem(copy / "6") is None
    moved = copy / "damaged" / "6"
    assert (moved if kind == "file" else moved / "notes.txt").read_text() == "x"
    assert (copy / "mine" / "notes.txt").exists()


def test_a_folder_of_that_name_that_is_no_checkpoint_is_kept(copy):
    (copy / "6").mkdir()
    (copy / "6" / "notes.txt").write_text("x")
    (copy / "damaged" / "6").mkdir(parents=True)
    step, (note,) = Checkpoints(copy, Keep(2), IDENTITY).newest()
    assert step == 5
    assert note.endswith(f"; it is now {copy / 'damaged' / '6.old'}")
    assert (copy / "damaged" / "6.old" / "notes.txt").read_text() == "x"


def test_what_cannot_be_moved_stays_and_the_one_before_is_used(copy):
    (copy / "damaged").write_text("a file where a folder has to be")
    (copy / "5" / "state" / "more").write_text("x")
    step, (note,) = Checkpoints(copy, Keep(2), IDENTITY).newest()
    assert step == 3
    assert note.endswith("state/more has come to it; it stays where it is (File exists)")


def test_the_last_one_is_found_without_a_look_into_it(copy, tmp_path):
    make_strangers(copy)
    (copy / "99").mkdir()
    assert find_last(copy) == copy / "5"
    assert find_last(tmp_path / "none") is None


def test_clearing_takes_checkpoints_only(copy, tmp_path):
    strangers = make_strangers(copy)
    (copy / "7.orbax-checkpoint-tmp").mkdir()
    (copy / "damaged").mkdir()
    clear_checkpoints(copy)
    assert sorted(path.name for path in copy.iterdir()) == strangers
    clear_checkpoints(tmp_path / "none")


def test_no_checkpoint_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "none", Keep(2), IDENTITY).newest() == (None, [])


def test_a_state_of_other_arrays_is_refused(begun, saved):
    other = begun.state._replace(method=begun.state.method.sensitivity)
    with pytest.raises(InputError, match=r"5 does not fit this run"):
        Checkpoints(saved[0], Keep(2), IDENTITY).restore(5, other)


class OldSweep(TrainState):
    """A state whose settings were written, as older versions wrote those of a sweep."""

    def _replace(self, **changes):
        changes.pop("settings", None)
        return super()._replace(**changes)


def test_a_sweep_of_an_older_version_resumes_with_the_settings_of_its_configuration(
    begun, checkpoints
):
    state = advance(begun, begun.state, 3)._replace(statistics={"mean": jnp.ones(2)})
    before = {"beta1": jnp.float32(0.5), "lora_alpha": jnp.float32(4)}
    checkpoints.save(OldSweep(*state._replace(settings=before)), Progress(step=3))
    checkpoints.wait()
    like = begun.state._replace(statistics={"mean": jnp.zeros(2)})
    assert_same(checkpoints.restore(3, like), state)


def test_a_format_of_later_days_is_refused(begun, checkpoints, monkeypatch):
    monkeypatch.setattr("increlora_jax.training.checkpoint.FORMAT", 99)
    checkpoints.save(begun.state, Progress(step=1))
    checkpoints.wait()
    monkeypatch.undo()
    with pytest.raises(InputError, match="format 99, this version of increlora_jax reads 2"):
        checkpoints.read(1)


def test_a_folder_that_cannot_be_made_is_named(begun, tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder has to be")
    checkpoints = Checkpoints(tmp_path / "checkpoints", Keep(1), IDENTITY)
    with pytest.raises(WriteError, match=rf"{tmp_path}/checkpoints/1 could not be written"):
        checkpoints.save(begun.state, Progress(step=1))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import jax.numpy as jnp, jax
from increlora_jax.core.optimizer import Trainable
from increlora_jax.errors import WriteError
from increlora_jax.training.checkpoint import Checkpoints, Keep
from increlora_jax.training.progress import Progress
from increlora_jax.training.state import TrainState

def state(size):
    numbers = jax.random.normal(jax.random.key(0), (size,))
    zero = jnp.zeros((), jnp.int32)
    params = Trainable({}, {"head": numbers})
    return TrainState(zero, zero, jax.random.key(0), params, {}, (), (), {})

checkpoints = Checkpoints(Path(sys.argv[1]), Keep(1), {})
checkpoints.save(state(1000), Progress(step=1))
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
checkpoints.save(state(1_000_000), Progress(step=2))
try:
    if len(sys.argv) > 2:
        while True:
            checkpoints.check()
    checkpoints.save(state(1000), Progress(step=3))
except WriteError as error:
    print(error)
    sys.exit(4)
"""


@pytest.mark.parametrize("words", [[], ["check"]])
def test_a_full_disk_is_told_at_the_next_save_or_check(tmp_path, words):
    """A file may not grow beyond 100 kB here, which for who writes it is a disk without room."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr[-2000:]
    assert f"{tmp_path / '2'} could not be written" in done.stdout
    assert find_problem(tmp_path / "1") is None
    assert Checkpoints(tmp_path, Keep(1), {}).newest() == (1, [])


def test_the_manifest_names_every_file(saved):
    manifest = json.loads((saved[0] / "5" / MANIFEST).read_text())
    names = {os.path.relpath(path, saved[0] / "5") for path in files_of(saved[0] / "5")}
    assert manifest["files"].keys() == names - {MANIFEST}
