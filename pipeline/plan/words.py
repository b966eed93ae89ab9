"""A plan for people: a few aligned lines, and below them the bodies that were asked for."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from pipeline.jsonio import dumps
from pipeline.plan import Plan
from pipeline.plan.forecast import Span
from pipeline.progress import duration, money

_SIGNS = {"ok": "ok", "warn": "note", "stop": "STOP"}


def described(plan: Plan) -> str:
    """The plan in a few lines; estimates say what they are."""
    basis = f"from {plan.measured_on:,} answers" if plan.measured_on else "a guess; `pipeline try` makes it an estimate"
    lines = [f"{_SIGNS[finding.level]:<8}{finding.text}" for finding in plan.findings]
    rows = f"{plan.pending:,} to send: {plan.new:,} new, {plan.changed:,} changed, {plan.redo:,} to do again"
    facts = [
        ("Rows", f"{plan.rows:,}: {plan.succeeded:,} done, {plan.failed:,} failed; {rows}"),
        ("", f"{plan.copies:,} of those ask just what another one asks" if plan.copies else ""),
    ]
    if plan.pending:
        facts += [
            ("Tokens", f"{_count(plan.prompt_tokens)} in, {_count(plan.completion_tokens)} out ({basis})"),
            ("Cost", _cost(plan)),
            ("Budget", "" if plan.budget_left is None else f"{money({'USD': plan.budget_left})} are left to this key"),
            ("Time", _time(plan)),
            ("Disk", f"about {_size(plan.disk_needed)}, {_size(plan.disk_free)} are free"),
        ]
    lines += [f"{name:<8}{text}" for name, text in facts if text]
    for body in plan.bodies:
        lines += [
            f"--- {body.custom_id} -> {body.endpoint}",
            dumps(body.body).decode(),
        ]
    return "\n".join(lines)


def _range(low: str, high: str | None) -> str:
    if high is None:
        return f"{low} or more (set max_tokens for a bound)"
    return low if low == high else f"{low} to {high}"


def _count(span: Span) -> str:
    return _range(f"{span.low:,.0f}", None if span.high is None else f"{span.high:,.0f}")


def _cost(plan: Plan) -> str:
    parts = [
        _range(money({unit: span.low}), None if span.high is None else money({unit: span.high}))
        for unit, span in plan.cost.items()
    ]
    if plan.cost_unknown:
        parts.append(f"unknown for {plan.cost_unknown:,} rows")
    return " + ".join(parts)


def _time(plan: Plan) -> str:
    span = plan.seconds
    if span is None:
        return "unknown until some rows have been answered: pipeline try"
    text = _range(duration(span.low), duration(span.high or span.low))
    end = datetime.fromtimestamp(time.time()).astimezone() + timedelta(seconds=span.high or span.low)
    return f"{text} with {plan.slots} requests at once, until {end:%Y-%m-%d %H:%M} if begun now (an estimate)"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
