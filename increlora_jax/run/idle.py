"""Settings that have no effect beside others, so that none is ignored without a word."""

from dataclasses import fields

from increlora_jax.config import AdapterConfig, GrowthConfig, RunConfig

_ADAPTER = {field.name for field in fields(AdapterConfig)} - {"method"}
_GROWTH = {field.name for field in fields(GrowthConfig)}
_BY_METHOD = {
    "increlora": set(),
    "lora": (_GROWTH - {"target_rank"}) | {"scaling"},
    "head": (_GROWTH | _ADAPTER) - {"modules_to_save"},
    "full": _GROWTH | _ADAPTER,
}
_OF_ROUNDS = {
    "target_total_rank", "top_h", "incre_rank_num", "init_warmup", "incre_interval",
    "advance_learn", "restart_warmup", "importance", "beta1", "beta2", "score_window",
}  # fmt: skip


def idle_settings(config: RunConfig) -> dict[str, str]:
    """Return the settings without an effect, each with the flag that makes it so."""
    method = config.adapter.method
    idle = dict.fromkeys(_BY_METHOD[method], f"--method {method}")
    if not config.growth.growth:
        idle = dict.fromkeys(_OF_ROUNDS, "--no-growth") | idle
    if config.training.max_steps is not None:
        idle["num_train_epochs"] = f"--max-steps {config.training.max_steps}"
    return idle
