"""Chips whose compilers work without a device: their peaks, topologies and environment."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.experimental import topologies

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Environment of a process that compiles. It computes on the CPU, and TPU's library looks for no
machine. The type of accelerator only stops a warning: every topology compiles alike. Several
processes may compile at a time, since none of them has a TPU."""

REMEDIES = {
    "tpu": "pip install --no-deps --target DIR 'libtpu==0.0.42.*', then set PYTHONPATH=DIR for "
    "this command alone",
    "cuda": "pip install --no-deps --target DIR jax-cuda13-plugin==0.10.2 jax-cuda13-pjrt==0.10.2, "
    "then set PYTHONPATH=DIR for this command alone",
}


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
    "h100": Chip("cuda", 989e12, 3350e9, 80 * 2**30),
}
"""Peaks by the first word of a topology: Google's of TPU v5e and v6e, NVIDIA's of H100 SXM."""


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
    """Return the devices of a topology such as v5e:4x4 or h100:8, which need not exist.

    Raises:
        SystemExit: If the compiler is not installed.
    """
    platform = find_chip(topology).platform
    name, _, sizes = topology.partition(":")
    options: dict[str, Any] = {}
    if platform == "cuda":
        topology = f"1x1x{sizes}"  # one host
        target = (Path(__file__).parent / f"{name}.txtpb").read_text(encoding="utf-8")
        options = {"topology": topology, "target_config": target}
    elif sizes == "1x1":  # by default a host has four chips
        options = {"chips_per_host_bounds": [1, 1, 1]}
    try:
        found = topologies.get_topology_desc(topology, platform=platform, **options)
    except (ImportError, RuntimeError) as error:
        remedy = REMEDIES[platform]
        raise SystemExit(f"no compiler for {name} ({error}). {remedy}") from error
    return list(found.devices)
