"""A run's state on disk: written by Orbax in the background, sealed by a checksum of every file."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Container, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from increlora_jax.errors import InputError, WriteError
from increlora_jax.files.bounded import open_plain
from increlora_jax.files.json_object import read_json_object
from increlora_jax.files.kinds import check_keys
from increlora_jax.files.replace import aside_of, replace_file
from increlora_jax.runtime.out_of_memory import is_out_of_memory
from increlora_jax.training.progress import Progress
from increlora_jax.training.state import TrainState

MANIFEST = "manifest.json"
DAMAGED = "damaged"
FORMAT = 2
_STEP = re.compile(r"0|[1-9][0-9]*")
_UNFINISHED = re.compile(rf"({_STEP.pattern})\.orbax-checkpoint-tmp.*")
"""Names of folders that hold a checkpoint, and one that is being written."""

_OF_A_SAVE = (
    "state",
    "saved",
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
    aside_of(Path(MANIFEST)).name,
)
"""The only names in a folder whose save or removal was cut short."""

_SAVED = Path("saved", "metadata")
"""Where Orbax puts the JSON of the item `saved`."""
_MANIFEST_KINDS = {"files": dict[str, str], "seal": str}
_SAVED_KINDS: dict[str, Any] = {"format": int, "identity": dict[str, str], "progress": list[dict]}


class Keep(NamedTuple):
    """The checkpoints that stay: the last few, multiples of a period, and always the best."""

    last: int
    period: int | None = None

    def choose(self, steps: list[int], best: Container[int | None]) -> set[int]:
        """Choose among ascending `steps`."""
        multiples = {s for s in steps if self.period and s % self.period == 0}
        return {*steps[-self.last :], *multiples, *(s for s in steps if s in best)}


class Saved(NamedTuple):
    """The part of a checkpoint beside the state: the progress of every run, and the identity."""

    progress: tuple[Progress, ...]
    identity: dict[str, str]


class Checkpoints:
    """The checkpoints of one run, a folder each under `folder`, named by its step.

    A checkpoint counts once its manifest is there: the SHA-256 of every file, and of the manifest
    itself. Among several processes all must make the same calls, on a folder that all see.
    A context manager, which waits until the last checkpoint is written.
    """

    def __init__(self, folder: Path, keep: Keep, identity: dict[str, str]):
        self._folder = folder.absolute()
        self._keep = keep
        self._identity = identity
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except WriteError:
            if error is None:  # an earlier error is worse
                raise

    def save(self, state: TrainState, *progress: Progress) -> None:
        """Copy the state off the device, and write it in the background; a progress for each run.

        The settings of a state are not written: a resumed run has them from its configuration.

        Raises:
            WriteError: this or the last checkpoint could not be written; the one before is intact.
        """
        self.wait()
        step, told = progress[0].step, [each.to_json() for each in progress]
        saved = {"format": FORMAT, "identity": self._identity, "progress": told}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(name_leaves(state._replace(settings={}))),
            saved=ocp.args.JsonSave(saved),
        )
        with self._naming(step):
            self._folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0 and os.path.lexists(self._path(step)):
                self._set_aside(step)
            self._writer.save(self._path(step), args=items, force=True)
        best = {each.best_step for each in progress}
        self._pending = self._sealer.submit(self._seal, step, best)

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            WriteError: the checkpoint could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def check(self) -> None:
        """Wait for nothing; if the last checkpoint is known to have failed, say so at once.

        Raises:
            WriteError: the checkpoint could not be written.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def newest(self) -> tuple[int | None, list[str]]:
        """Find the newest sound checkpoint, and the problems of newer ones.

        Damaged checkpoints move to a folder of their own, and unfinished ones are removed. Other
        files in the folder stay, and are named.

        Raises:
            WriteError: the folder cannot be read or tidied.
        """
        step, notes = -1, list[str]()
        if jax.process_index() == 0:
            try:
                step, notes = self._newest()
            except OSError as error:
                raise WriteError(f"{self._folder} cannot be used: {error}. Repair it") from error
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        return (None if step < 0 else step), notes

    def read(self, step: int) -> Saved:
        """Read the progress and the identity in a checkpoint, as `read_saved` does."""
        return read_saved(self._path(step))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Read a state onto the devices of `like`, from however many processes wrote it.

        Raises:
            InputError: the saved state has other arrays than `like`.
        """
        saved = like._replace(settings=self._saved_settings(step, like))
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in name_leaves(saved).items()
        }
        items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
        try:
            leaves = self._writer.restore(self._path(step), args=items)["state"]
        except (ValueError, KeyError) as error:
            raise InputError(
                f"{self._path(step)} does not fit this run: {error}. Choose another --output-dir"
            ) from error
        # In buffers of its own: a step may be given them to overwrite.
        values = [jnp.copy(leaves[name]) for name in wanted]
        restored = jax.tree.unflatten(jax.tree.structure(with_raw_key(saved)), values)
        key, settings = (
            jax.random.wrap_key_data(restored.key),
            jax.tree.map(jnp.copy, like.settings),
        )
        return restored._replace(key=key, settings=settings)

    def _saved_settings(self, step: int, like: TrainState) -> dict[str, jax.Array]:
        """Return zeros like the settings in a checkpoint: older versions wrote those of sweeps."""
        with ocp.StandardCheckpointer() as reader:
            arrays = reader.metadata(self._path(step) / "state").item_metadata.tree
        return {
            name.partition(".settings.")[2]: jnp.zeros(
                array.shape, array.dtype, device=like.step.sharding
            )
            for name, array in arrays.items()
            if re.match(r"\d+\.settings\.", name)
        }

    def _path(self, step: int) -> Path:
        return self._folder / str(step)

    def _steps(self) -> list[int]:
        return sorted(int(p.name) for p in _list(self._folder) if _is_folder(p, _STEP))

    def _seal(self, step: int, best: set[int | None]) -> None:
        with self._naming(step):
            self._writer.wait_until_finished()
            if jax.process_index() == 0:
                _write_manifest(self._path(step))
                steps = [s for s in self._steps() if _is_sealed(self._path(s))]
                for old in set(steps) - self._keep.choose(steps, best):
                    _remove(self._path(old))

    def _newest(self) -> tuple[int, list[str]]:
        notes = []
        for path in _list(self._folder):
            if _is_folder(path, _UNFINISHED):
                shutil.rmtree(path)
            elif path.name != DAMAGED and not _is_folder(path, _STEP):
                notes.append(f"{path} is no checkpoint: it is passed over")
        for step in reversed(self._steps()):
            problem = find_problem(self._path(step))
            if problem is None:
                return step, notes
            moved = self._set_aside(step)
            notes.append(f"checkpoint {self._path(step)} is not used: {problem}{moved}")
        return -1, notes

    def _set_aside(self, step: int) -> str:
        """Move a folder with a checkpoint's name out of the way; remove only the rest of a save.

        Returns:
            The end of a note: the new place of the folder.
        """
        path, aside = self._path(step), self._folder / DAMAGED / str(step)
        try:
            if not _is_sealed(path) and _is_of_a_save(path):
                _remove(path)
                return ""
            aside.parent.mkdir(exist_ok=True)
            while os.path.lexists(aside):
                aside = aside.with_name(f"{aside.name}.old")
            path.rename(aside)
        except OSError as error:
            return f"; it stays where it is ({error.strerror})"
        return f"; it is now {aside}"

    @contextmanager
    def _naming(self, step: int) -> Iterator[None]:
        """Turn any error of the libraries below into a `WriteError` that names the checkpoint."""
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).rpartition('": ')[2]  # TensorStore wraps the system's own words
            raise WriteError(
                f"the checkpoint {self._path(step)} could not be written: {reason}. Earlier "
                "checkpoints are intact. Make room or repair the folder, and start the same "
                "command again"
            ) from error


def find_last(folder: Path) -> Path | None:
    """Find the newest checkpoint that was written completely; do not read its content."""
    sealed = [path for path in _list(folder) if _is_folder(path, _STEP) and _is_sealed(path)]
    return max(sealed, key=lambda path: int(path.name), default=None)


def find_sound(folder: Path) -> Path | None:
    """Find the checkpoint that a run resumes from; change nothing."""
    steps = (path for path in _list(folder) if _is_folder(path, _STEP))
    newest_first = sorted(steps, key=lambda path: int(path.name), reverse=True)
    return next((path for path in newest_first if find_problem(path) is None), None)


def read_saved(checkpoint: Path) -> Saved:
    """Read the progress and the identity in a checkpoint.

    Raises:
        InputError: another version wrote the checkpoint, or it is none.
    """
    file = checkpoint / _SAVED
    saved = read_json_object(file, allow_nan=True)
    if saved.get("format") != FORMAT:
        raise InputError(
            f"{file} has format {saved.get('format')}, this version of "
            f"increlora_jax reads {FORMAT}. Resume with the version that wrote it"
        )
    check_keys(file, saved, _SAVED_KINDS)
    each = list(map(Progress.upgrade, saved["progress"]))
    for one in each:
        check_keys(f"{file}: progress", one, get_type_hints(Progress))
    return Saved(tuple(map(Progress.from_json, each)), saved["identity"])


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a folder, and the folder where nothing else is in it.

    Raises:
        OSError: something cannot be removed.
    """
    for path in _list(folder):
        if path.name == DAMAGED or _is_folder(path, _STEP) or _is_folder(path, _UNFINISHED):
            shutil.rmtree(path)
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


def find_problem(checkpoint: Path) -> str | None:
    """Return the problem of a checkpoint by its manifest; None if it is sound."""
    try:
        files, found = _read_manifest(checkpoint), _hash_files(checkpoint)
    except OSError as error:
        return f"a file of it cannot be read ({error})"
    except ValueError as error:
        return str(error)
    gone, came = files.keys() - found.keys(), found.keys() - files.keys()
    altered = [name for name in files.keys() & found.keys() if files[name] != found[name]]
    problems = {"is gone": gone, "has come to it": came, "is not as it was written": altered}
    return next((f"{min(n)} {problem}" for problem, n in problems.items() if n), None)


def _read_manifest(checkpoint: Path) -> dict[str, str]:
    file = checkpoint / MANIFEST
    if not file.exists():
        raise ValueError(f"it was not finished, or its {MANIFEST} is gone")
    manifest = read_json_object(file)
    check_keys(file, manifest, _MANIFEST_KINDS)
    if manifest["seal"] != _seal_of(manifest["files"]):
        raise ValueError(f"{MANIFEST} is not as it was written")
    files: dict[str, str] = manifest["files"]
    return files


def _write_manifest(checkpoint: Path) -> None:
    files = _hash_files(checkpoint)
    text = json.dumps({"files": files, "seal": _seal_of(files)})
    with replace_file(checkpoint / MANIFEST) as aside:
        aside.write_text(text, encoding="utf-8")


def _hash_files(checkpoint: Path) -> dict[str, str]:
    manifest = checkpoint / MANIFEST
    hashes = {}
    for path in sorted(checkpoint.rglob("*")):
        name = str(path.relative_to(checkpoint))
        if path.is_symlink():  # what it leads to could change unnoticed
            raise ValueError(f"{name} is a link")
        if path not in (manifest, aside_of(manifest)) and not path.is_dir():
            with open_plain(path) as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _seal_of(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _list(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_folder(path: Path, name: re.Pattern[str]) -> bool:
    """Return whether a path is a folder itself, no link to one, with such a name."""
    return bool(name.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def _is_sealed(checkpoint: Path) -> bool:
    return os.path.lexists(checkpoint / MANIFEST)


def _is_of_a_save(path: Path) -> bool:
    """Return whether a save or a removal that was cut short can have left such a folder."""
    is_folder = path.is_dir() and not path.is_symlink()
    return is_folder and all(inner.name in _OF_A_SAVE for inner in path.iterdir())


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint, its manifest first: half a checkpoint then counts as none."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def with_raw_key(state: TrainState) -> TrainState:
    """Return a state whose random key is an array of numbers."""
    return state._replace(key=jax.random.key_data(state.key))


def name_leaves(state: TrainState) -> dict[str, jax.Array]:
    """Return every array of a state by its place and path: flat, without containers for Orbax."""
    return {
        f"{place}.{jax.tree_util.keystr(path, simple=True, separator='.').replace('/', '.')}": leaf
        for place, (path, leaf) in enumerate(jax.tree.leaves_with_path(with_raw_key(state)))
    }
