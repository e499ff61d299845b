"""Chips whose compilers work without a device: their peaks, topologies and environment."""

from dataclasses import dataclass
from typing import Any

from jax.experimental import topologies

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
}
"""Environment of a process that compiles. It computes on the CPU, and TPU's library looks for no
machine. The type of accelerator only stops a warning: every topology compiles alike."""

REMEDY = (
    "pip install --no-deps --target DIR 'libtpu==0.0.42.*', then set PYTHONPATH=DIR for this "
    "command alone"
)


@dataclass(frozen=True)
class Chip:
    """Published peaks of one chip.

    Attributes:
        platform: JAX's word for the compiler.
        flops: Dense bfloat16 FLOP/s.
        bandwidth: Bytes/s to the chip's own memory.
        memory: Bytes of the chip's own memory.
    """

    platform: str
    flops: float
    bandwidth: float
    memory: float


CHIPS = {
    "v5e": Chip("tpu", 197e12, 819e9, 16 * 2**30),
    "v6e": Chip("tpu", 918e12, 1640e9, 32 * 2**30),
}


def find_chip(topology: str) -> Chip:
    """Return the chip of a topology.

    Raises:
        SystemExit: If the chip is not one of `CHIPS`.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise SystemExit(f"--topology {topology}: unknown chip; there are {', '.join(CHIPS)}")
    return CHIPS[name]


def list_devices(topology: str) -> list[Any]:
    """Return the devices of a topology such as v5e:4x4, which need not exist.

    Raises:
        SystemExit: If the compiler is not installed.
    """
    chip = find_chip(topology)
    options: dict[str, Any] = {}
    if topology.endswith(":1x1"):  # by default a host has four chips
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        found = topologies.get_topology_desc(topology, platform=chip.platform, **options)
    except (ImportError, RuntimeError) as error:
        raise SystemExit(f"no compiler for {topology} ({error}). {REMEDY}") from error
    return list(found.devices)
