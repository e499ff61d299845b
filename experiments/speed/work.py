"""Work of every contender: one model's shape, one batch, the same adapted modules."""

from dataclasses import dataclass, fields
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, PretrainedConfig

from increlora_jax.config import GrowthConfig
from increlora_jax.core.plan import GrowthPlan, plan_growth
from increlora_jax.models.fused_attention import AttentionImplementation
from increlora_jax.models.registry import abstract_model, find_spec
from increlora_jax.models.repeated_layer import Remat
from increlora_jax.models.spec import ModelSpec
from increlora_jax.nn.any_model import plan_targets
from increlora_jax.run.recipes import recipe

SHAPES: dict[str, dict[str, Any]] = {
    "minilm-l6": {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "roberta-base": {
        "model_type": "roberta",
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
    "deberta-v3-base": {
        "model_type": "deberta-v2",
        "vocab_size": 128100,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "relative_attention": True,
        "position_buckets": 256,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
    "llama-7b": {"model_type": "llama", "pad_token_id": 0},
}
"""Shapes with random weights, which do not affect a step's time; a folder's weights are read."""

SST2_EXAMPLES, SST2_BATCH = 67_349, 32
"""Sizes of the run whose schedule is the default (`--task sst2`)."""


@dataclass(frozen=True)
class Work:
    """A model's shape, a batch of real tokens only, and the SST-2 recipe's growth.

    `attn_implementation` is for this package; PyTorch's contenders have it in their names.
    """

    name: str = "minilm-l6"
    batch: int = 32
    length: int = 64
    dtype: str = "float32"
    rank: int = 8
    top_h: int | None = None
    lora_dropout: float = 0.0
    remat: Remat = "none"
    attn_implementation: AttentionImplementation = "xla"

    @property
    def folder(self) -> Path | None:
        """Folder of the weights, if they are read."""
        return None if self.name in SHAPES else Path(self.name)

    @property
    def config(self) -> PretrainedConfig:
        """Shape from SHAPES or from a Hugging Face folder."""
        if self.folder:
            return AutoConfig.from_pretrained(self.folder)
        return AutoConfig.for_model(**SHAPES[self.name])

    @property
    def spec(self) -> ModelSpec:
        """Specification of the architecture in increlora_jax."""
        return find_spec(self.config)

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.length

    @cached_property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of every adapted module, by its path here and in PyTorch."""
        model = abstract_model(self.config, num_labels=2)
        return plan_targets(model, self.spec.target_modules).sizes

    @property
    def recipe(self) -> dict[str, float]:
        """Settings of `--task sst2` at this rank."""
        return recipe("sst2", self.rank)

    @property
    def steps(self) -> int:
        """Steps of a whole run by the recipe."""
        return int(self.recipe["num_train_epochs"]) * ceil(SST2_EXAMPLES / SST2_BATCH)

    def growth(self, **changes: object) -> GrowthConfig:
        """Return the recipe's growth with the given changes."""
        names = {field.name for field in fields(GrowthConfig)}
        chosen = {name: value for name, value in self.recipe.items() if name in names}
        chosen |= {"target_rank": self.rank} | ({"top_h": self.top_h} if self.top_h else {})
        return GrowthConfig(**{**chosen, **changes})  # type: ignore[arg-type]

    def plan(self, growth: GrowthConfig, steps: int) -> GrowthPlan:
        """Return the plan of the ranks."""
        shared = "initial_rank target_rank target_total_rank top_h init_warmup incre_interval"
        settings = {name: getattr(growth, name) for name in f"{shared} incre_rank_num".split()}
        return plan_growth(self.sizes, steps=steps, max_rank=growth.max_rank_rule, **settings)

    def numbers(self) -> dict[str, np.ndarray]:
        """Return the batch."""
        draw = np.random.default_rng(0)
        shape = (self.batch, self.length)
        return {
            "input_ids": draw.integers(5, self.config.vocab_size, shape, dtype=np.int32),
            "attention_mask": np.ones(shape, np.int32),
            "token_type_ids": np.zeros(shape, np.int32),
            "labels": draw.integers(0, 2, self.batch, dtype=np.int32),
            "weight": np.ones(self.batch, np.float32),
        }

    def flops(self, *, is_scored: bool) -> float:
        """Return a step's FLOPs: 4·P·T + attention + 6·P_adapter·T, and 2·P_targets·T if scored.

        P counts the kernels that a token passes, which are the adapted ones. Attention is
        4·L·hidden a token and layer forward, half of that if causal, and twice that backward.
        """
        config, tokens = self.config, self.tokens
        kernels = sum(inputs * outputs for inputs, outputs in self.sizes.values())
        adapters = sum(self.rank * (inputs + outputs) for inputs, outputs in self.sizes.values())
        hidden = config.num_attention_heads * getattr(
            config, "head_dim", config.hidden_size // config.num_attention_heads
        )
        attention = 12 * self.length * hidden * config.num_hidden_layers
        attention /= 2 if config.model_type == "llama" else 1
        per_token = 4 * kernels + attention + 6 * adapters + (2 * kernels if is_scored else 0)
        return float(per_token * tokens)
