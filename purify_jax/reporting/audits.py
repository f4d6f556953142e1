"""The part of a report that is about an audit: what was run, by which gradient, and whether it converged."""

from purify_jax.evaluation.audits.auditing import Audit
from purify_jax.reporting.report import Section
from purify_jax.types import Json

TEXT = "What was run, what could not be, and whether a longer attack would find more."


def section(audit: Audit) -> Section:
    """What the audit found and did, line by line: sentences do not fit into a table's cells."""
    lines = [
        (what, f"{found} → {action}" if action else found) for what, found, action in rows(audit)
    ]
    return Section("The audit", TEXT, terms=lines)


def rows(audit: Audit) -> list[tuple[str, str, str]]:
    """(what, what was found, what to do or nothing), the findings about the defense first."""
    plan, (gradient, reason) = audit.plan, audit.gradient
    return [
        *((each.name, each.measured, each.action) for each in audit.examination.findings),
        ("plan", str(plan), ""),
        ("images attacked", f"{audit.average.images}; {plan.images} were planned", ""),
        ("time", f"{audit.seconds / 60:.1f} minutes", ""),
        ("gradient of the attacks", f"{gradient}: {reason}", ""),
        (
            "twice the steps",
            _change(audit),
            "" if audit.converged else "raise --steps or --minutes",
        ),
        *((f"left out: {name}", why, "") for name, why in audit.suite.left_out.items()),
    ]


def _change(audit: Audit) -> str:
    if audit.change is None:
        return "not tried"
    moved = f"change the average on {audit.change.images} images by {audit.change}"
    return f"{moved}: {'converged' if audit.converged else 'not converged'}"


def verdict(audit: Audit) -> list[str]:
    """What stands above the suite's own verdict: why the figure is no more than an upper bound."""
    if not audit.only_bounds:
        return []
    value = f"{100 * audit.average.value:.1f}%"
    head = "Robust" if audit.converged else "Not converged: robust"
    return [f"{head} accuracy is at most {value}: {'; '.join(audit.only_bounds)}."]


def content(audit: Audit) -> Json:
    """For ``results.json``."""
    return {
        "findings": [finding._asdict() for finding in audit.examination.findings],
        "plan": audit.plan._asdict(),
        "gradient": list(audit.gradient),
        "twice_the_steps": audit.change,
        "converged": audit.converged,
        "only_bounds": list(audit.only_bounds),
        "seconds": round(audit.seconds, 1),
    }
