"""Evaluation: attack, score with fresh keys, one record per image; certification, detection, corruptions."""

from purify_jax.devices.batches import map_images
from purify_jax.evaluation import (
    certification,
    corruption,
    detection,
    suite_runs,  # noqa: F401  for the binaries, and not part of what is public
    worst_of,
)
from purify_jax.evaluation.adversarial import AdversarialFiles, AdversarialImages
from purify_jax.evaluation.attacked import evaluate
from purify_jax.evaluation.audits.auditing import Audit, audit
from purify_jax.evaluation.certification import certified_accuracy, certify
from purify_jax.evaluation.corruption import evaluate_corrupted
from purify_jax.evaluation.identity import identity
from purify_jax.evaluation.predictions import Draws
from purify_jax.evaluation.probes import red_flags, sweeps, transfer
from purify_jax.evaluation.probes.examination import examine
from purify_jax.evaluation.probes.findings import Examination, Finding
from purify_jax.evaluation.protocol import Summary, cost, strongest, summary
from purify_jax.evaluation.records import (
    SCORINGS,
    RecordFile,
    accuracy,
    read_records,
    table,
    union_accuracy,
)
from purify_jax.evaluation.statistics import Difference, Interval, paired_difference, wilson

__all__ = [
    "SCORINGS",
    "AdversarialFiles",
    "AdversarialImages",
    "Audit",
    "Difference",
    "Draws",
    "Examination",
    "Finding",
    "Interval",
    "RecordFile",
    "Summary",
    "accuracy",
    "audit",
    "certification",
    "certified_accuracy",
    "certify",
    "corruption",
    "cost",
    "detection",
    "evaluate",
    "evaluate_corrupted",
    "examine",
    "identity",
    "map_images",
    "paired_difference",
    "read_records",
    "red_flags",
    "strongest",
    "summary",
    "sweeps",
    "table",
    "transfer",
    "union_accuracy",
    "wilson",
    "worst_of",
]
