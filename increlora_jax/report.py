"""Write the report of runs: `python -m increlora_jax.report --run DIR --output FILE.html`."""

if __name__ != "__main__":
    # As an imported module it would hide `increlora_jax.report`, the public function.
    raise ImportError(
        "increlora_jax.report is a command. Call increlora_jax.run.report_page.write_report"
    )

from increlora_jax.commands import report as run_command

run_command()
