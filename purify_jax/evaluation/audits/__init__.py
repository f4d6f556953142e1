"""Audits of somebody's defense: what is measured before, what fits into a time, what is checked after."""
