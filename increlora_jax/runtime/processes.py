"""Several processes that train one run: joining them, and acting in the first for all."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from increlora_jax.errors import InputError, WriteError
from increlora_jax.runtime.console import is_first
from increlora_jax.runtime.out_of_memory import is_out_of_memory
from increlora_jax.runtime.signals import Preempted

BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Variables that give a process its part where JAX finds no scheduler; all three or none."""


@contextmanager
def joined(is_distributed: bool) -> Iterator[None]:
    """Join several processes while this lasts; no device may have been used before.

    A process that ends or is asked to stop waits here for the others. A process that fails exits at
    once; the others lose the connection and end too.

    Raises:
        InputError: If JAX cannot find the other processes, or finds no device.
    """
    if not is_distributed:
        check_devices()
        yield
        return
    # This service passes a SIGTERM from any process to all; see `Stop.check_call`.
    jax.config.update("jax_enable_preemption_service", True)
    try:
        jax.distributed.initialize(**_part_by_hand())
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"--distributed: {error} JAX finds the processes by itself under SLURM, Open MPI, "
            "Kubernetes (with jax[k8s]) and on Cloud TPU; elsewhere set "
            f"{', '.join(BY_HAND)} in the environment of each"
        ) from error
    check_devices()
    try:
        yield
    except Preempted:
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def check_devices() -> None:
    """Check that JAX can compute on the devices it is set to use.

    Raises:
        InputError: If the device or its plug-in is missing, or the driver is too old.
    """
    try:
        jax.block_until_ready(jnp.zeros(()) + 1)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        chosen = jax.config.jax_platforms  # type: ignore[attr-defined]
        reason = " ".join(str(error).split()) or "JAX has no plug-in for it"
        raise InputError(
            f"JAX_PLATFORMS={chosen or ''}: JAX cannot compute there ({reason}). Install the JAX "
            "and the driver for the device (README, Use), or set JAX_PLATFORMS=cpu"
        ) from error


def _part_by_hand() -> dict[str, Any]:
    """Return the environment's settings that JAX does not read by itself."""
    missing = [name for name in BY_HAND if name not in os.environ]
    if len(missing) == len(BY_HAND):
        return {}
    if missing:
        raise ValueError(f"{missing[0]} is not set, though another of the three is.")
    _, count, index = (os.environ[name] for name in BY_HAND)
    return {"num_processes": int(count), "process_id": int(index)}


def by_first(decide: Callable[[], Any]) -> Any:
    """Call a function in the first process and return its JSON value in all processes.

    Raises:
        InputError, WriteError: In every process, if the first process raised it.
    """
    if not jax.distributed.is_initialized():
        return decide()
    told: dict[str, Any] = {}
    if is_first():
        try:
            told = {"value": decide()}
        except (InputError, WriteError) as error:
            told = {"error": str(error), "kind": type(error).__name__}
    told = json.loads(_broadcast(json.dumps(told).encode()))
    if "error" in told:
        raise {"InputError": InputError, "WriteError": WriteError}[told["kind"]](told["error"])
    return told["value"]


def _broadcast(text: bytes) -> bytes:
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    content = np.zeros(length, np.uint8)
    if is_first():
        content[:] = np.frombuffer(text, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(content), np.uint8))
