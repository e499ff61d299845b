"""Models whose layers gather their own kernels, in a process of `COUNT` (tests.meshes) CPU devices.

`python -m tests.late_gathers FOLDER CASE…` writes to FOLDER/measured.json what each case measured.
A case is family/remat/loop/devices, as bert/full/scan/2; one device gathers nothing.
"""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np

from increlora_jax.training.sharding import Layout, make_mesh
from tests.repeated import QUICK, begin, mean_loss, rows_of

LAYERS = 3
DEPTH = {"gpt2": "n_layer"}
_GATHERED = re.compile(r"= \w+\[([\d,]*)\]\S* all-gather\(")


def measure(family, remat, loop, devices):
    """Differentiate over a mesh, and list the shapes that the program gathers."""
    count = int(devices)
    mesh = make_mesh(f"fsdp={count}" if count > 1 else None, jax.devices()[:count])
    made = []

    def layout_of(spec, late):
        made.append(Layout(mesh, spec.shardings, late))
        return made[0]

    depth = {DEPTH.get(family, "num_hidden_layers"): LAYERS}
    begun = begin(
        family, remat, is_scanned=loop == "scan", is_called_once=True, loss=mean_loss,
        layout_of=layout_of, **depth,
    )  # fmt: skip
    (layout,) = made
    state, base = layout.place(begun.state), layout.place(begun.parts.base)
    batch = {n: np.concatenate([a] * 4) for n, a in rows_of(0).items()}

    def loss(model, batch):
        return begun.trainer.loss(model, batch)[0]

    def differentiate(state, base, batch):
        whole = state._replace(params=layout.gather(state.params))
        value, gradients = begun.trainer.value_and_grad(loss)(whole, layout.gather(base), batch)
        return value, gradients.params, gradients.evidence

    jitted = jax.jit(differentiate, out_shardings=layout.everywhere)
    program = jitted.lower(state, base, layout.batch(batch)).compile(compiler_options=QUICK)
    value, gradients, evidence = program(state, base, layout.batch(batch))
    return {
        "loss": float(value),
        "gradients": [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves(gradients)],
        "scores": [float(leaf) for leaf in jax.tree.leaves(evidence)],
        "gathered": [
            [int(size) for size in found.split(",")]
            for found in _GATHERED.findall(program.as_text())
        ],
    }


if __name__ == "__main__":
    folder, *cases = sys.argv[1:]
    told = {case: measure(*case.split("/")) for case in cases}
    Path(folder, "measured.json").write_text(json.dumps(told))
