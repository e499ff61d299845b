"""All public names and their origins; `increlora_jax` loads this module at the first use."""

from increlora_jax.config import (
    AdapterConfig,
    BottleneckConfig,
    GrowthConfig,
    PatternConfig,
    PruningConfig,
    RunConfig,
    TaskConfig,
    TrainingConfig,
)
from increlora_jax.core.adapter import Adapter, Scaling, Slots
from increlora_jax.core.importance import Evidence, ImportanceFunction
from increlora_jax.core.slotwise import slotwise
from increlora_jax.errors import InputError
from increlora_jax.interop.growth import growth, ranks_of, settle
from increlora_jax.interop.pairs import Pairs
from increlora_jax.interop.scores import scored_value_and_grad
from increlora_jax.methods.adalora import adalora
from increlora_jax.methods.base import Method, Observation, Updated
from increlora_jax.methods.bitfit import bitfit
from increlora_jax.methods.bottleneck import houlsby, pfeiffer
from increlora_jax.methods.dora import dora
from increlora_jax.methods.elalora import elalora
from increlora_jax.methods.flexlora import flexlora
from increlora_jax.methods.full import full
from increlora_jax.methods.head import head
from increlora_jax.methods.increlora import increlora
from increlora_jax.methods.lora import lora
from increlora_jax.methods.lora_pattern import lora_pattern
from increlora_jax.nn.adapter_files import load_adapter, save_adapter
from increlora_jax.nn.any_model import attach, parameter_selector, split
from increlora_jax.nn.attach import detach, merge, unmerge
from increlora_jax.nn.kernels import KernelAxes
from increlora_jax.nn.linen import LinenModel
from increlora_jax.nn.low_rank import AdapterParam, SlotState
from increlora_jax.nn.report import report
from increlora_jax.nn.skeleton import Parts, Skeleton
from increlora_jax.run.adapters import ManyPredictor, load
from increlora_jax.run.predictor import Predictor
from increlora_jax.runtime.memory import (
    dispatch_synchronously,
    keep_freed_memory,
    return_freed_memory,
)
from increlora_jax.training.prepare import build_trainer, prepare
from increlora_jax.training.sharding import shard
from increlora_jax.training.state import TrainState
from increlora_jax.training.state_files import load_state, save_state
from increlora_jax.training.step import Gradients, Trainer
from increlora_jax.weights.bundled import TINY_ENCODER

__all__ = [
    "TINY_ENCODER",
    "Adapter",
    "AdapterConfig",
    "AdapterParam",
    "BottleneckConfig",
    "Evidence",
    "Gradients",
    "GrowthConfig",
    "ImportanceFunction",
    "InputError",
    "KernelAxes",
    "LinenModel",
    "ManyPredictor",
    "Method",
    "Observation",
    "Pairs",
    "Parts",
    "PatternConfig",
    "Predictor",
    "PruningConfig",
    "RunConfig",
    "Scaling",
    "Skeleton",
    "SlotState",
    "Slots",
    "TaskConfig",
    "TrainState",
    "Trainer",
    "TrainingConfig",
    "Updated",
    "adalora",
    "attach",
    "bitfit",
    "build_trainer",
    "detach",
    "dispatch_synchronously",
    "dora",
    "elalora",
    "flexlora",
    "full",
    "growth",
    "head",
    "houlsby",
    "increlora",
    "keep_freed_memory",
    "load",
    "load_adapter",
    "load_state",
    "lora",
    "lora_pattern",
    "merge",
    "parameter_selector",
    "pfeiffer",
    "prepare",
    "ranks_of",
    "report",
    "return_freed_memory",
    "save_adapter",
    "save_state",
    "scored_value_and_grad",
    "settle",
    "shard",
    "slotwise",
    "split",
    "unmerge",
]
