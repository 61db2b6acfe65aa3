"""Pages about runs: one HTML file each with everything in it, for any browser, without scripts and without network."""

from contextdiff_jax.evaluate.pages.compare_page import compare_on_command, write_compare
from contextdiff_jax.evaluate.pages.report_page import write_report_page

__all__ = ["compare_on_command", "write_compare", "write_report_page"]
