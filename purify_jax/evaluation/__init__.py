"""Evaluation: attack, score with fresh keys, one record per image; and every other figure."""

from purify_jax.devices.batches import map_images
from purify_jax.evaluation import (
    certification,
    corrupted,
    detection,
    red_flags,
    suite_runs,  # noqa: F401  for the binaries, and not part of what is public
    sweeps,
    worst_of,
)
from purify_jax.evaluation.attacked import evaluate
from purify_jax.evaluation.certification import certified_accuracy, certify
from purify_jax.evaluation.corrupted import evaluate_corrupted
from purify_jax.evaluation.predictions import fresh_draws
from purify_jax.evaluation.protocol import cost, figures, strongest
from purify_jax.evaluation.records import (
    SCORINGS,
    RecordFile,
    accuracy,
    read_records,
    table,
    worst_case,
)
from purify_jax.evaluation.statistics import Difference, Interval, paired_difference, wilson

__all__ = [
    "SCORINGS",
    "Difference",
    "Interval",
    "RecordFile",
    "accuracy",
    "certification",
    "certified_accuracy",
    "certify",
    "corrupted",
    "cost",
    "detection",
    "evaluate",
    "evaluate_corrupted",
    "figures",
    "fresh_draws",
    "map_images",
    "paired_difference",
    "read_records",
    "red_flags",
    "strongest",
    "sweeps",
    "table",
    "wilson",
    "worst_case",
    "worst_of",
]
