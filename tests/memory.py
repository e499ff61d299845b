"""How memory is measured where there is no accelerator."""

SAVING = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_disable_hlo_passes": "cse_barrier_expander",
}
"""Lets XLA's CPU keep apart, and in order, what a program computes twice to save memory.

By default it removes a program's barriers before it orders the program; accelerators do it after.
"""
