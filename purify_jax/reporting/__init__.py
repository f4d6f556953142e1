"""Reporting: figures, the page, and what every binary writes from its results."""

from purify_jax.models.versions import versions

# For the binaries: pj.reporting.plots and the others are not part of what is public.
from purify_jax.reporting import gallery, pages, plots, robustness, verdicts  # noqa: F401
from purify_jax.reporting.report import Section, text_table, write_report

__all__ = ["Section", "text_table", "versions", "write_report"]
