"""Settings of a run: names, defaults and bounds, checked before anything is loaded."""

from increlora_jax.config.groups import (
    AdapterConfig,
    BottleneckConfig,
    GrowthConfig,
    Importance,
    PatternConfig,
    PruningConfig,
    TaskConfig,
    TrainingConfig,
)
from increlora_jax.config.run import (
    DEFAULTS,
    FREE,
    GROUPS,
    KINDS,
    LARGEST,
    VARIABLE,
    RunConfig,
)

__all__ = [
    "DEFAULTS",
    "FREE",
    "GROUPS",
    "KINDS",
    "LARGEST",
    "VARIABLE",
    "AdapterConfig",
    "BottleneckConfig",
    "GrowthConfig",
    "Importance",
    "PatternConfig",
    "PruningConfig",
    "RunConfig",
    "TaskConfig",
    "TrainingConfig",
]
