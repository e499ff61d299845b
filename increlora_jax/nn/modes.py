"""The training mode of an NNX model, which a step switches on."""

import warnings

from flax import nnx

from increlora_jax.nn.paths import name_path

MODES = ("deterministic", "use_running_average")
"""The attributes of modules that `train` and `eval` switch."""

_SHOWN = 8


def switch_to_training(model: nnx.Module) -> None:
    """Call `model.train()`; a warning names the modules that were in evaluation mode."""
    frozen = [
        f"{name_path(path) or 'the model'}.{mode}"
        for path, module in nnx.iter_modules(model)
        for mode in MODES
        if vars(module).get(mode) is True
    ]
    model.train()
    if frozen:
        shown = ", ".join(frozen[:_SHOWN]) + (", …" if len(frozen) > _SHOWN else "")
        many = f"{len(frozen)} attribute{'s' if len(frozen) > 1 else ''}"
        warnings.warn(
            f"a training step computes in training mode, as after model.train(), which switches "
            f"{many} from True to False: {shown}. To keep a module frozen, give the mode in its "
            "call, as in self.norm(x, use_running_average=True); to keep none, call model.train() "
            "before the model is prepared",
            stacklevel=2,
        )
