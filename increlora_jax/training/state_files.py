"""A training state on disk, for training loops of the user's own."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from increlora_jax.errors import InputError
from increlora_jax.training.checkpoint import name_leaves, with_raw_key
from increlora_jax.training.state import TrainState

Folder = str | os.PathLike[str]
"""A path, in which `~` is the user's home."""


def save_state(folder: Folder, state: TrainState) -> None:
    """Write a state with Orbax: parameters, masks, births, averages, moments and random key.

    The folder is replaced as a whole, once everything is written.

    Args:
        folder: a path, as text or `Path`.
        state: of any trainer, also a stack of states under `jax.vmap`.

    >>> import increlora_jax as il, tempfile
    >>> params = {"w": jnp.ones((4, 4))}
    >>> trainer, state, base = il.prepare(params, il.lora(params), total_steps=10)
    >>> folder = tempfile.mkdtemp() + "/state"
    >>> il.save_state(folder, state)
    >>> int(il.load_state(folder, state).total_rank)
    2
    """
    with ocp.StandardCheckpointer() as writer:
        writer.save(_path(folder), name_leaves(state), force=True)


def load_state(folder: Folder, like: TrainState) -> TrainState:
    """Read a state that `save_state` has written; training resumes bit for bit.

    Args:
        folder: a path, as text or `Path`.
        like: a state of the same model, method and optimizer, as `il.prepare` returns it. Arrays
            are read into its shardings.

    Returns:
        The state of the file.

    Raises:
        InputError: no state there, or one of other arrays; named.

    >>> import increlora_jax as il
    >>> params = {"w": jnp.ones((4, 4))}
    >>> trainer, state, base = il.prepare(params, il.lora(params), total_steps=10)
    >>> il.load_state("none", state)
    Traceback (most recent call last):
    increlora_jax.errors.InputError: none: no state is saved there. Give the folder of save_state
    """
    path, leaves = _path(folder), name_leaves(like)
    if not path.is_dir():
        raise InputError(f"{folder}: no state is saved there. Give the folder of save_state")
    with ocp.StandardCheckpointer() as reader:
        held = reader.metadata(path).item_metadata.tree
        _check(folder, held, leaves)
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in leaves.items()
        }
        read = reader.restore(path, wanted)
    raw = with_raw_key(like)
    values = [jnp.copy(read[name]) for name in leaves]  # which a step may be donated
    restored = jax.tree.unflatten(jax.tree.structure(raw), values)
    return restored._replace(key=jax.random.wrap_key_data(restored.key))


def _check(folder: Folder, held: dict[str, jax.Array], leaves: dict[str, jax.Array]) -> None:
    """Check that a file has the arrays of a state, in their shapes and dtypes."""
    there, here = ({name.partition(".")[2]: a for name, a in own.items()} for own in (held, leaves))
    for name in sorted(there.keys() ^ here.keys()):
        problem = "is missing" if name in here else "is in no such state"
        raise InputError(
            f"{folder}: {name} {problem}. Prepare the same model, method and optimizer"
        )
    for name, leaf in here.items():
        own = there[name]
        if (own.shape, own.dtype) != (leaf.shape, leaf.dtype):
            raise InputError(
                f"{folder}: {name} is {own.dtype} {list(own.shape)}, the state wants {leaf.dtype} "
                f"{list(leaf.shape)}. Prepare the same model and method"
            )


def _path(folder: Folder) -> Path:
    return Path(folder).expanduser().absolute()
