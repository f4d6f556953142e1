"""Reporting: figures, the page, and what every binary writes from its results."""

from purify_jax.models.versions import versions
from purify_jax.reporting.report import Section, text_table, write_report

__all__ = ["Section", "text_table", "versions", "write_report"]
