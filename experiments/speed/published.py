"""Reconstructed costs of the published IncreLoRA's steps, without its code.

This file follows the description of the published code. Every adapted layer multiplies by a dense
ΔW. A hook rebuilds ΔW from A, λ and B of all components so far and of the reserve. Every step takes
the dense gradient ∂L/∂ΔW and scores |ΔW ∘ ∂L/∂ΔW|, module by module, into dictionaries of averages.
Each component is a parameter of its own. The components of one round are a group of AdamW. Here
components do not grow: all components of the end of a run exist from the start.
"""

from collections import defaultdict
from itertools import count
from typing import Any

import torch
from pytorch import Run, Training, load_base
from torch import nn
from torch.nn import functional
from work import Work

BETA = 0.85
ALPHA = 16.0
STANDARD_DEVIATION = 0.02


class DenseUpdate(nn.Module):
    """A frozen layer beside x·ΔWᵀ, with ΔW = s · B diag(λ) A as a matrix [outputs, inputs]."""

    def __init__(self, base: nn.Linear, births: list[int]):
        super().__init__()
        self.base = base
        inputs, outputs = base.in_features, base.out_features
        draw = {"device": base.weight.device, "dtype": torch.float32}
        scale = STANDARD_DEVIATION
        self.A = nn.ParameterList(scale * torch.randn(n, inputs, **draw) for n in births)
        self.lam = nn.ParameterList(torch.full((n,), 1e-5, **draw) for n in births)
        self.B = nn.ParameterList(scale * torch.randn(outputs, n, **draw) for n in births)
        self.rank = sum(births[:-1])  # the last is the reserve
        self.register_forward_pre_hook(DenseUpdate.rebuild)

    def rebuild(self, arguments: Any) -> None:
        """Multiply the components out; the product's gradient is kept for the score."""
        self.stacked_A, self.stacked_B = torch.cat(list(self.A)), torch.cat(list(self.B), dim=1)
        coefficients = torch.cat(list(self.lam)) * (ALPHA / self.rank)
        self.delta = (self.stacked_B * coefficients) @ self.stacked_A
        self.delta.retain_grad()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the frozen and by the dense matrix."""
        return self.base(x) + functional.linear(x, self.delta.to(x.dtype))

    def orthogonality(self) -> torch.Tensor:
        """‖AAᵀ − I‖_F + ‖BᵀB − I‖_F."""
        eye = torch.eye(len(self.stacked_A), device=self.delta.device)
        grams = (self.stacked_A @ self.stacked_A.T, self.stacked_B.T @ self.stacked_B)
        return sum((torch.linalg.norm(gram - eye) for gram in grams), torch.zeros(()))


def run_published(work: Work) -> Run:
    """Return a function that runs steps with the costs of the published code.

    Raises:
        ValueError: If layers are recomputed: the hook would then make another ΔW.
    """
    if work.remat != "none":
        raise ValueError(
            "recomputed layers (--remat) lose the tensors that it scores: leave --remat out"
        )
    model = load_base(work, "sdpa")
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if name.rpartition(".")[-1] in work.spec.modules_to_save["sequence_classification"]:
            module.requires_grad_(True)
    layers = {name: _replace(model, name, births(work)) for name in work.sizes}
    averages: dict[str, dict[str, Any]] = {"sensitivity": {}, "uncertainty": {}}
    coefficient = work.growth().reg_orth_coef / (2 * len(layers))

    def add_loss() -> torch.Tensor:
        return coefficient * sum(layer.orthogonality() for layer in layers.values())

    optimizer = torch.optim.AdamW(_groups(model, layers, work), lr=work.recipe["learning_rate"])
    return Training(
        work,
        model,
        optimizer,
        add_loss=add_loss,
        after_backward=lambda step: score(layers, averages),
    ).run


def births(work: Work) -> list[int]:
    """Return a mean module's components: of the start, of each round, and of the reserve."""
    growth = work.growth()
    each = growth.incre_rank_num
    whole, rest = divmod(work.rank - growth.initial_rank, each)
    return [growth.initial_rank, *[each] * whole, *([rest] if rest else []), each]


@torch.no_grad()
def score(layers: dict[str, DenseUpdate], averages: dict[str, dict[str, Any]]) -> None:
    """Update each module's average importance and its uncertainty."""
    means, doubts = averages["sensitivity"], averages["uncertainty"]
    for name, layer in layers.items():
        delta = layer.delta
        found = (delta * delta.grad).abs().sum() / delta.numel() ** 0.5
        means[name] = BETA * means.get(name, 0.0) + (1 - BETA) * found
        off = (found - means[name]).abs()
        doubts[name] = BETA * doubts.get(name, 0.0) + (1 - BETA) * off


def _replace(model: nn.Module, name: str, sizes: list[int]) -> DenseUpdate:
    parent, _, last = name.rpartition(".")
    layer = DenseUpdate(model.get_submodule(name), sizes)
    setattr(model.get_submodule(parent), last, layer)
    return layer


def _groups(
    model: nn.Module, layers: dict[str, DenseUpdate], work: Work
) -> list[dict[str, list[nn.Parameter]]]:
    """Return a group of the parameters of the start, and one for each round's components."""
    rounds = len(work.plan(work.growth(), work.steps).rounds)
    groups: dict[int, list[nn.Parameter]] = defaultdict(list)
    late: set[nn.Parameter] = set()
    turn = count()
    for layer in layers.values():
        for components in zip(layer.A, layer.lam, layer.B, strict=True):
            late |= set(components)
            groups[1 + next(turn) % rounds] += components
    groups[0] = [p for p in model.parameters() if p.requires_grad and p not in late]
    decay = work.recipe["weight_decay"]
    return [{"params": group, "weight_decay": decay} for _, group in sorted(groups.items())]
