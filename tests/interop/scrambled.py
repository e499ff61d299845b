"""Runs of every family without training: their adapters are drawn, masks in every state."""

import jax
import jax.numpy as jnp
import numpy as np

from increlora_jax.core.adapter import Adapter
from increlora_jax.nn.adapter_files import save_adapter
from increlora_jax.nn.report import ranks_of
from increlora_jax.run.build import load_parts, plan_run
from increlora_jax.run.command_line import parse_run, write_run
from increlora_jax.run.folder import CONFIG
from increlora_jax.run.saved_run import describe_adapter

STATES = ((1, 0, False), (3, 1, True), (0, 2, True), (2, 0, False), (0, 0, False))
"""Active slots, slots in reserve, and whether these take part, of each module by turns."""


def make_run(folder, words):
    """Write a run as training would, but for its numbers; return its folder."""
    config = parse_run([*words, "--output-dir", str(folder)])
    plan = plan_run(config)
    _, (parts, *_), _ = load_parts(plan)
    parts = scramble(parts)
    folder.mkdir()
    write_run(plan.config, folder / CONFIG)
    told = describe_adapter(plan, plan.members[0], plan.total_steps, ranks_of(parts.slots))
    save_adapter(folder / "adapter", parts, told)
    return folder


def scramble(parts, seed=0):
    """Draw every learned array, and put masks into every state."""
    draw = np.random.default_rng(seed)

    def normal(x, size=0.3):
        return jnp.asarray(draw.normal(0, size, x.shape), x.dtype)

    adapters, slots = {}, {}
    for index, path in enumerate(parts.adapters):
        active, reserve, is_advancing = STATES[index % len(STATES)]
        places = np.arange(parts.slots[path].active.shape[-1])
        adapters[path] = Adapter(*map(normal, parts.adapters[path]))
        slots[path] = parts.slots[path]._replace(
            active=jnp.asarray(places < active),
            reserve=jnp.asarray((places >= active) & (places < active + reserve)),
            is_advancing=jnp.asarray(is_advancing),
        )
    head = jax.tree.map(normal, parts.head)
    return parts._replace(adapters=adapters, slots=slots, head=head)
