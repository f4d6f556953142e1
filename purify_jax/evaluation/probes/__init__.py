"""Probes of an evaluation: sweeps over its settings, red flags, images that were made for other defenses."""
