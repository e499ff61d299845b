"""Say which commands there are: `python -m increlora_jax`."""

import sys

from increlora_jax import __version__
from increlora_jax.runtime.start import begin
from increlora_jax.runtime.streams import write_result

_COMMANDS = f"""\
increlora_jax {__version__}: low-rank fine-tuning whose rank grows during training
  python -m increlora_jax.train --task demo        train; also increlora-train
  python -m increlora_jax.evaluate --run DIR       evaluate a run; also increlora-evaluate
  python -m increlora_jax.predict --run DIR        answer texts; also increlora-predict
  python -m increlora_jax.export --run DIR         write it for others; also increlora-export
  python -m increlora_jax.report --run DIR         write its report; also increlora-report
--help lists the flags of each."""

begin()
write_result(_COMMANDS)
raise SystemExit(0 if sys.argv[1:] in ([], ["--help"], ["-h"], ["--version"]) else 2)
