"""The report command: parse, build, write, say where."""

from collections.abc import Sequence

from increlora_jax.run.history import read_groups
from increlora_jax.run.report_flags import parse_report
from increlora_jax.run.report_page import build_page, check_places, save_charts, save_page
from increlora_jax.runtime.ending import fail_clearly
from increlora_jax.runtime.streams import tell, write_result


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; the last line on standard output is the report's file."""
    with fail_clearly():
        chosen = parse_report(argv)
        check_places(chosen.output, chosen.png)
        page = build_page(read_groups(chosen.run))
        save_page(page, chosen.output)
        if chosen.png is not None:
            count = save_charts(page, chosen.png)
            tell(f"{count} charts in {chosen.png}")
        write_result(str(chosen.output))
