"""The mesh of devices, and the sharding of every array of a run over it."""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey, GetAttrKey, KeyEntry, KeyPath
from jaxtyping import Array, PyTree

from increlora_jax.errors import InputError
from increlora_jax.tasks.kind import Batch
from increlora_jax.training.state import Placement, TrainState

Axes = tuple[str | None, ...]
"""The axis of the mesh that shards each axis of an array; None, or no entry, if none does."""

Leaf = jax.Array | jax.ShapeDtypeStruct

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
"""The axes of the mesh that shard the rows of a batch; devices along `tensor` share rows."""


def make_mesh(text: str | None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange devices as `--mesh` says, as "data=4,fsdp=2"; an axis not named has size 1.

    All devices take part, unless some are given. Without a text it is one device, or, of several
    processes, all of them along `data`.

    Raises:
        InputError: not such a text, or of another number of devices than there are.
    """
    found = jax.devices() if devices is None else devices
    if text is None and jax.process_count() == 1:
        found = found[:1]
    sizes = {"data": len(found)} if text is None else _parse_mesh(text)
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    if prod(shape) != len(found):
        raise InputError(
            f"--mesh {text} is a mesh of {prod(shape)} devices, and there are {len(found)}. The "
            "product of its sizes must be the number of devices of all processes together"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=found)


def _parse_mesh(text: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (word.strip() for word in part.partition("="))
        if axis not in AXES or axis in sizes or not size.isdecimal() or int(size) < 1:
            raise InputError(
                f"--mesh {text}: {part.strip()!r} is not understood. Give each of "
                f"{', '.join(AXES)} at most once, with a size of at least 1, as data=4,fsdp=2"
            )
        sizes[axis] = int(size)
    return sizes


@dataclass(frozen=True, eq=False)
class Layout:
    """The shardings of all arrays of a run over `mesh`.

    The table `rules` shards a parameter by its path, and its moments alike. A shards its inputs as
    the kernel does, and B its outputs. The values of a quantised kernel are sharded as the kernel
    would be, and its scales as the outputs. A stack (`core.stacking`) is sharded as its first
    module. All other arrays (slots, λ, a method's state, settings, key, counts) are replicated, so
    that every device computes the same growth.
    """

    mesh: Mesh
    rules: Mapping[str, Axes]
    gathered_late: frozenset[str] = frozenset()  # parameters that the model's layers gather

    @property
    def everywhere(self) -> NamedSharding:
        """The whole of an array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def loading(self) -> AbstractContextManager[object]:
        """Make new arrays in the host's memory meanwhile: one device may not hold them all."""
        if self.mesh.size == 1:
            return nullcontext()
        try:
            host = jax.local_devices(backend="cpu")[0]
        except RuntimeError as error:
            raise InputError(
                f"--mesh needs JAX's CPU backend beside the accelerator's, to load the model on "
                f"({error}). Leave JAX_PLATFORMS unset, or add cpu to it, as JAX_PLATFORMS=cuda,cpu"
            ) from error
        return jax.default_device(host)

    def shardings(self, tree: PyTree, stack: int = 0) -> PyTree:
        """Return the shardings of a state, of its parameters or of the base; shapes are enough.

        The first `stack` axes, which are of runs that train together, are not sharded.

        Raises:
            InputError: a parameter that no rule names, or that an axis of the mesh cannot divide.
        """

        def sharding(path: KeyPath, leaf: Leaf) -> NamedSharding:
            own = self._sharding(path, jax.ShapeDtypeStruct(leaf.shape[stack:], leaf.dtype))
            return NamedSharding(self.mesh, PartitionSpec(*(None,) * stack, *own.spec))

        return jax.tree.map_with_path(sharding, tree)

    def place(self, tree: PyTree, stack: int = 0) -> PyTree:
        """Shard the arrays, which every process has whole."""
        return jax.tree.map(_put, tree, self.shardings(tree, stack))

    def gather(self, tree: PyTree) -> PyTree:
        """Undo the sharding over `fsdp` inside a program, right before parameters are used.

        Those of `gathered_late` stay as they are.

        XLA would do so by itself. But XLA for CPU of jaxlib 0.10 computes wrong products if an axis
        of a mesh of three shards both an activation's rows and a kernel's inputs.
        """

        def whole(path: KeyPath, leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
            is_late = any(_first_name(key) in self.gathered_late for key in path)
            return leaf if is_late else jax.lax.with_sharding_constraint(leaf, sharding)

        return jax.tree.map_with_path(whole, tree, self.in_use(tree))

    def in_use(self, tree: PyTree) -> PyTree:
        """Return the shardings in which parameters are used: whole along `fsdp`."""

        def whole(sharding: NamedSharding) -> NamedSharding:
            kept = (None if axis == "fsdp" else axis for axis in sharding.spec)
            return NamedSharding(self.mesh, PartitionSpec(*kept))

        return jax.tree.map(whole, self.shardings(tree))

    def make_readable(self, tree: PyTree) -> PyTree:
        """Bring whole arrays to every process; all of them must call this."""
        return jax.jit(lambda arrays: arrays, out_shardings=self.everywhere)(tree)

    def check_rows(self, flag: str, rows: int) -> None:
        """Check that batches can be sharded over the devices.

        Raises:
            InputError: the number of rows is not divisible.
        """
        if rows % self.blocks:
            raise InputError(
                f"{flag} {rows} cannot be divided over {self.blocks} devices (data × fsdp of "
                "--mesh). Give a multiple of it, or another mesh"
            )

    def own_rows(self, rows: int) -> np.ndarray:
        """Return the rows of a batch that the devices of this process take, ascending."""
        owned = self._of_rows(0).addressable_devices_indices_map((rows,))
        slices = {index[0].indices(rows) for index in owned.values() if index is not None}
        return np.unique(np.concatenate([np.arange(*bounds) for bounds in slices]))

    def batch(self, own: Batch, axis: int = 0) -> Batch:
        """Make the batch of all processes from the rows of each, which are along `axis`.

        On one device the batch stays on the host: a call of a program transfers it at less cost.
        """
        if self.mesh.size == 1:
            return own
        return jax.make_array_from_process_local_data(self._of_rows(axis), own)

    @property
    def blocks(self) -> int:
        """The number of groups of devices that the rows of a batch are sharded over."""
        return prod(self.mesh.shape[axis] for axis in ROWS)

    def _of_rows(self, axis: int) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, ROWS))

    def _sharding(self, path: KeyPath, leaf: Leaf) -> NamedSharding:
        for place, key in enumerate(path):
            if isinstance(key, DictKey) and isinstance(key.key, tuple):  # of a stack
                one = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
                first = (*path[:place], DictKey(key.key[0]), *path[place + 1 :])
                return NamedSharding(self.mesh, PartitionSpec(None, *self._shard(first, one).spec))
        return self._shard(path, leaf)

    def _shard(self, path: KeyPath, leaf: Leaf) -> NamedSharding:
        match path:
            case (*_, DictKey(key=str(module)), GetAttrKey(name="A" | "B" as name)):
                inputs, outputs = (*self._axes_of(f"{module}.kernel"), None, None)[:2]
                axes = (inputs, None) if name == "A" else (None, outputs)
                stack = (None,) * (len(leaf.shape) - 2)
                return self._divide(f"{module}.adapter.{name}", leaf.shape, (*stack, *axes))
            case (GetAttrKey(name="settings" | "statistics" | "method"), *_):
                return self.everywhere
            case (*_, DictKey(key=str(name))):
                return self._divide(name, leaf.shape, self._axes_of(name))
            case (*_, DictKey(key=str(name)), GetAttrKey(name="values")):
                return self._divide(name, leaf.shape, self._axes_of(name))
            case (*_, DictKey(key=str(name)), GetAttrKey(name="scale")):
                _, outputs = (*self._axes_of(name), None, None)[:2]
                return self._divide(f"{name}.scale", leaf.shape, (None, outputs))
            case _:
                return self.everywhere

    def _axes_of(self, parameter: str) -> Axes:
        found = [axes for rule, axes in self.rules.items() if re.fullmatch(rule, parameter)]
        if len(found) != 1:
            raise InputError(
                f"parameter {parameter}: {len(found)} rules of the model's table of shardings name "
                "it instead of one"
            )
        return found[0]

    def _divide(self, name: str, shape: tuple[int, ...], axes: Axes) -> NamedSharding:
        for size, axis in zip(shape, axes, strict=False):
            if axis is not None and size % self.mesh.shape[axis]:
                raise InputError(
                    f"--mesh {axis}={self.mesh.shape[axis]} does not divide {name} "
                    f"{list(shape)}. Give a size of {axis} that divides {size}"
                )
        return NamedSharding(self.mesh, PartitionSpec(*axes))


def _first_name(key: KeyEntry) -> str | None:
    """Return the parameter that a key names; of a stack the first."""
    name = key.key if isinstance(key, DictKey) else None
    return name[0] if isinstance(name, tuple) else name


def _put(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding))
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def shard(state: TrainState, like: PyTree) -> TrainState:
    """Place a state on the mesh that other arrays are on, so that a step compiles once.

    A is sharded as the inputs of its kernel, and B as the outputs, if `like` has the kernel as a
    matrix. So are their moments. Every other array is whole on every device.

    Args:
        state: the state, as `il.prepare` or `il.load_state` returns it.
        like: arrays on the mesh, such as the base; on a single device, the state moves there.

    Returns:
        The state; a step keeps its shardings.

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> params = {"w": jnp.ones((4, 4))}
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    >>> _, state, base = il.prepare(params, il.lora(params), total_steps=10)
    >>> il.shard(state, base).step.sharding.mesh.axis_names
    ('data',)
    """
    found = [leaf.sharding for leaf in jax.tree.leaves(like)]
    named = next((own for own in found if isinstance(own, NamedSharding)), None)
    if named is None:
        return jax.device_put(state, found[0])
    kernels = like if isinstance(like, Mapping) else {}
    flat, structure = jax.tree.flatten_with_path(state._replace(placement=Placement()))
    specs = [_spec_beside(kernels, path, leaf) for path, leaf in flat]
    placed: TrainState = jax.tree.unflatten(
        structure,
        [
            jax.device_put(leaf, NamedSharding(named.mesh, spec))
            for (_, leaf), spec in zip(flat, specs, strict=True)
        ],
    )
    return placed._replace(placement=Placement(tuple(named.mesh.shape.items()), tuple(specs)))


def _spec_beside(kernels: Mapping[str, PyTree], path: KeyPath, leaf: Array) -> PartitionSpec:
    """Return how an array of a state is sharded beside the kernels, with every axis named."""
    match path:
        case (*_, DictKey(key=str(name)), GetAttrKey(name="A" | "B" as side)):
            kernel = kernels.get(f"{name}.kernel", kernels.get(name))
            axes = _axes_on_mesh(kernel) if getattr(kernel, "ndim", 0) == leaf.ndim else ()
            shared = -2 if side == "A" else -1
            if axes and kernel.shape[shared] == leaf.shape[shared]:
                both = (axes[-2], None) if side == "A" else (None, axes[-1])
                return PartitionSpec(*axes[:-2], *both)
    return PartitionSpec(*[None] * leaf.ndim)


def _axes_on_mesh(array: PyTree) -> tuple[PyTree, ...]:
    """Return what shards each axis of an array; empty of one that is on no mesh."""
    if not isinstance(array, jax.Array) or not isinstance(array.sharding, NamedSharding):
        return ()
    return (*array.sharding.spec, *[None] * array.ndim)[: array.ndim]
