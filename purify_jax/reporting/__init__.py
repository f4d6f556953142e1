"""Reporting: figures, the page, and what every binary writes from its results."""

from purify_jax.reporting.report import Section, text_table, write_report
from purify_jax.versions import versions

__all__ = ["Section", "text_table", "versions", "write_report"]
