"""Experiment binaries: flags in, library calls, files out."""
