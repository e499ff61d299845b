"""Entry points of the commands; flags such as `--help` are answered before JAX is imported."""

import os
import sys

from increlora_jax.runtime.start import begin  # first and alone: it handles signals

_NO_TASK = """\
error: nothing to train on: give a task, as
  python -m increlora_jax.train --task demo                   20 seconds, nothing to download
  python -m increlora_jax.train --task text --data-dir DIR    your own train and dev files
  python -m increlora_jax.train --task sst2                   a GLUE task and model from the hub
--help lists all flags."""


def train() -> None:
    """Run the training command; `--help`, `--print-config` and wrong flags return at once."""
    begin()
    from increlora_jax.run.command_line import parse_command
    from increlora_jax.runtime.ending import fail_clearly
    from increlora_jax.runtime.streams import tell

    if not sys.argv[1:]:
        tell(_NO_TASK)
        raise SystemExit(2)
    with fail_clearly():
        parse_command()
    from increlora_jax.train import main

    main()


def evaluate() -> None:
    """Run the evaluation command; `--help` and wrong flags return at once."""
    begin()
    from increlora_jax.run.evaluate_flags import evaluate_parser
    from increlora_jax.runtime.ending import fail_clearly

    with fail_clearly():
        evaluate_parser().parse_flags()
    from increlora_jax.evaluate import main

    main()


def predict() -> None:
    """Run the prediction command; `--help` and wrong flags return at once."""
    begin()
    from increlora_jax.run.predict_flags import parse_prediction
    from increlora_jax.runtime.ending import fail_clearly

    with fail_clearly():
        parse_prediction()
    from increlora_jax.predict import main

    main()


def export() -> None:
    """Run the export command; `--help` and wrong flags return at once."""
    begin()
    from increlora_jax.run.export_flags import parse_export
    from increlora_jax.runtime.ending import fail_clearly

    with fail_clearly():
        parse_export()
    from increlora_jax.export import main

    main()


def report() -> None:
    """Run the report command; `--help` and wrong flags return at once."""
    begin()
    from increlora_jax.run.report_flags import parse_report
    from increlora_jax.runtime.ending import fail_clearly

    with fail_clearly():
        parse_report()
    # A report computes next to nothing, and takes no device from a run that trains.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from increlora_jax.run.report_command import main

    main()
