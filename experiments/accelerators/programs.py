"""Programs of the project, lowered from shapes: no weight is drawn and no device is needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from chips import find_chip, list_devices
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from transformers import AutoConfig, PretrainedConfig

import increlora_jax as il
from increlora_jax.models.registry import abstract_model, find_spec
from increlora_jax.models.repeated_layer import layer_parameters
from increlora_jax.models.spec import ModelSpec
from increlora_jax.run.build import ADDED, adapt, stack_layers
from increlora_jax.tasks.classification import make_kind
from increlora_jax.tasks.kind import Kind
from increlora_jax.tasks.labelled_texts import TextTask
from increlora_jax.training.evaluation import predictor
from increlora_jax.training.loop import jit_step
from increlora_jax.training.prepare import build_trainer
from increlora_jax.training.sharding import ROWS, Layout, make_mesh
from increlora_jax.training.stacked_state import Stacker
from increlora_jax.training.step import Trainer
from increlora_jax.training.together import join
from increlora_jax.weights.folder import name_variables

TASK = TextTask("sst2", ("sentence",), ("negative", "positive"), ("accuracy",))
STEPS = 1000
SLOTS = 32
DROPOUT = 0.1

_ENCODER = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 1024,
}
_RELATIVE = {
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "share_att_key": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
_STACKS = {
    "d_model": 128,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "vocab_size": 1024,
}
_T5 = {"d_model": 128, "d_kv": 64, "d_ff": 512, "num_layers": 2, "num_heads": 2, "vocab_size": 1024}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm-l6": (
        "bert",
        {
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
    ),
    "deberta-v3-base": (
        "deberta-v2",
        {
            "vocab_size": 128100,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            **_RELATIVE,
        },
    ),
    "llama-7b": ("llama", {}),
    "bert": ("bert", _ENCODER),
    "roberta": ("roberta", _ENCODER),
    "deberta-v2": ("deberta-v2", _ENCODER | _RELATIVE),
    "gpt2": ("gpt2", {"n_embd": 128, "n_layer": 2, "n_head": 2, "vocab_size": 1024}),
    "llama": ("llama", _ENCODER),
    "mistral": ("mistral", _ENCODER | {"num_key_value_heads": 1}),
    "qwen2": ("qwen2", _ENCODER | {"num_key_value_heads": 1}),
    "qwen3": ("qwen3", _ENCODER | {"num_key_value_heads": 1, "head_dim": 64}),
    "t5": ("t5", _T5 | {"feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}),
    "bart": ("bart", _STACKS | {"decoder_start_token_id": 2}),
}
"""The architecture and its numbers by name. Those of the last ten are small: one of each family."""

KINDS = ("unscored", "scored", "evaluation")


@dataclass(frozen=True)
class Program:
    """A program of one run, or of several that train together.

    Attributes:
        model: A name of `MODELS`.
        kind: One of `KINDS`; the first two are training steps.
        batch: Examples of a batch, on all chips together.
        length: Tokens of an example.
        layers: Layers; 0: as many as the model has.
        seeds: Runs that train together.
        scan: Whether layers are a loop.
        remat: Recomputed parts.
        quantize: Format of the base.
        attention: Implementation of attention.
        dtype: Dtype of base and computation.
        mesh: Mesh of the topology's chips, as the training command takes it; empty: one chip.
    """

    model: str
    kind: str = "unscored"
    batch: int = 32
    length: int = 128
    layers: int = 0
    seeds: int = 1
    scan: bool = False
    remat: str = "none"
    quantize: str = "none"
    attention: str = "xla"
    dtype: str = "bfloat16"
    mesh: str = ""

    @property
    def config(self) -> PretrainedConfig:
        """Configuration of the model."""
        family, numbers = MODELS[self.model]
        config = AutoConfig.for_model(family, **numbers)
        config.pad_token_id = 0
        if self.layers:
            config.num_hidden_layers = self.layers  # of most; the others know it by this name, too
        return config

    @property
    def chips(self) -> int:
        """Chips that the program runs on."""
        return prod(int(part.partition("=")[2]) for part in self.mesh.split(",") if part)

    @property
    def key(self) -> dict[str, Any]:
        """Settings that differ from the defaults."""
        usual = asdict(Program(""))
        return {name: value for name, value in asdict(self).items() if value != usual[name]}


class Built(NamedTuple):
    """A run's trainer and kind of task, and the shapes of its arrays with their shardings."""

    trainer: Trainer
    kind: Kind
    layout: Layout
    state: Any
    base: Any
    batch: Any


def trace(program: Program, topology: str) -> jax.stages.Traced:
    """Trace a program for the chips of a topology, as the training command does on them."""
    with as_if_on(find_chip(topology).platform):
        built = build(program, topology)
        arrays = (built.state, built.base, built.batch)
        if program.kind == "evaluation":
            predict = predictor(built.trainer, built.layout, built.kind)
            jitted = jax.jit(predict, out_shardings=built.layout.everywhere)
            return jitted.trace(arrays[:2], built.batch)
        step = jit_step(built.trainer, built.layout, built.state, built.kind.count_tokens)
        return step.trace(*arrays, is_scored=program.kind == "scored")


@contextmanager
def as_if_on(platform: str) -> Iterator[None]:
    """Let code that asks for the backend find another one meanwhile."""
    name = {"cuda": "gpu"}.get(platform, platform)
    with mock.patch.object(jax, "default_backend", return_value=name):
        yield


def build(program: Program, topology: str) -> Built:
    """Build a run as the training command does, from shapes only."""
    config, training = program.config, _training(program)
    spec, kind = (
        find_spec(config),
        make_kind(TextTask("sst2", ("text",), ("0", "1"), ("accuracy",))),
    )
    model = _abstract(program, config)
    devices = list_devices(topology)
    mesh = make_mesh(program.mesh or None, devices if program.mesh else devices[:1])
    late = layer_parameters(model) if mesh.shape["fsdp"] > 1 else {}
    layout = Layout(mesh, {**spec.shardings, **ADDED}, frozenset(late))
    held: dict[str, Trainer] = {}

    def begin(values: dict[str, Any]) -> tuple[Any, Any]:
        own = _abstract(program, config)
        for path, variable in name_variables(own, nnx.Variable).items():
            variable.set_value(values[path])
        method = _method(own, spec, kind)
        skeleton, parts = adapt(own, method, layout, training, seed=0)
        held["trainer"] = build_trainer(skeleton, method, kind.loss, training, total_steps=STEPS)
        states = [held["trainer"].init(parts, seed) for seed in range(program.seeds)]
        return join(states), stack_layers(parts.base) if program.scan else parts.base

    values = {p: v.get_value() for p, v in name_variables(model, nnx.Variable).items()}
    state, base = jax.eval_shape(begin, values)
    axes = int(program.seeds > 1)
    shapes = Stacker(layout, state).shapes
    state = _place(shapes, layout.shardings(shapes, axes))
    base = _place(base, layout.shardings(base))
    return Built(held["trainer"], kind, layout, state, base, _batch(program, layout))


def _training(program: Program) -> il.TrainingConfig:
    remat: Any = program.remat
    attention: Any = program.attention
    return il.TrainingConfig(
        remat=remat,
        scan_layers=program.scan,
        attn_implementation=attention,
        mesh=program.mesh or None,
    )


def _abstract(program: Program, config: PretrainedConfig) -> nnx.Module:
    quantize: Any = program.quantize
    dtype = jnp.dtype(program.dtype)
    return abstract_model(config, num_labels=2, quantize=quantize, dtype=dtype, param_dtype=dtype)


def _method(model: nnx.Module, spec: ModelSpec, kind: Kind) -> il.Method:
    return il.increlora(
        model,
        steps=STEPS,
        targets=spec.target_modules,
        adapter=il.AdapterConfig(lora_dropout=DROPOUT),
        growth=il.GrowthConfig(target_rank=8, max_rank=str(SLOTS)),
        is_trained=il.parameter_selector(model, spec.modules_to_save[kind.head]),
    )


def _batch(program: Program, layout: Layout) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a batch; in training, each member has its own."""
    is_stacked = program.seeds > 1 and program.kind != "evaluation"
    members = (program.seeds,) if is_stacked else ()
    rows = NamedSharding(layout.mesh, PartitionSpec(*(None,) * len(members), ROWS))

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*members, program.batch, *shape), dtype, sharding=rows)

    ids = array(jnp.int32, program.length)
    return {
        **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids),
        "labels": array(jnp.int32),
        "weight": array(jnp.float32),
    }


def _place(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )
