"""Arrays on a mesh of devices whose axes are explicit."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

Result = TypeVar("Result")


def on_any_mesh(function: Callable[..., Result], *args: PyTree, like: PyTree) -> Result:
    """Call a function of arrays, and leave the shardings inside of it to the compiler.

    On a mesh with explicit axes, JAX asks for the sharding of every product over a sharded axis.
    Here only the results have given shardings. On other meshes, the function is called as it is.

    Args:
        function: of arrays.
        *args: its arguments; it may use no other arrays.
        like: arrays with the shardings of the results. An array stands for a subtree of them.

    Returns:
        The results.
    """
    mesh = find_explicit_mesh((args, like))
    if mesh is None:
        return function(*args)
    wanted = jax.tree.map(lambda leaf: _sharding_on(mesh, leaf), like)
    run = jax.sharding.auto_axes(function, axes=mesh.explicit_axes, out_sharding=wanted)
    found: Result = run(*args)
    return found


def find_explicit_mesh(arrays: PyTree) -> AbstractMesh | None:
    """Return the mesh with explicit axes that arrays are on; None if there is none."""
    meshes = (jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arrays))
    return next((mesh for mesh in meshes if mesh.explicit_axes), None)


def _sharding_on(mesh: AbstractMesh, leaf: Array) -> NamedSharding:
    """Return the sharding of an array; one that is on no mesh will be whole on every device."""
    own: NamedSharding = jax.typeof(leaf).sharding
    return NamedSharding(mesh, PartitionSpec()) if own.mesh.empty else own
