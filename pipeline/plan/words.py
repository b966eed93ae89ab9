"""A plan for people: a few aligned lines, and below them the bodies that were asked for."""

from __future__ import annotations

import math
from datetime import datetime

from pipeline.ground.jsonio import dumps
from pipeline.ground.wording import duration, money, number, plural
from pipeline.limits.hours import shown
from pipeline.plan import Finish, Plan
from pipeline.plan.forecast import LEAST_MEASURED, Span

END_OF_TIME = 253_000_000_000.0  # datetime knows no year after 9999
_SIGNS = {"ok": "ok", "warn": "note", "away": "AWAY", "ask": "ASKS", "stop": "STOP"}


def described(plan: Plan) -> str:
    """The plan in a few lines, what a person must look at last; estimates say what they are."""
    basis = (
        f"from {plural(plan.measured_on, 'answer')}"
        if plan.measured_on
        else f"a guess until {LEAST_MEASURED} rows are answered: pipeline try"
    )
    found = [(level, f"{sign:<8}{f.text}") for level, sign in _SIGNS.items() for f in plan.findings if f.level == level]
    lines = [text for level, text in found if level == "ok"]
    rows = f"{plan.pending:,} to send: {plan.new:,} new, {plan.changed:,} changed, {plan.redo:,} to do again"
    facts = [
        ("Rows", f"{plan.rows:,}: {plan.succeeded:,} done, {plan.failed:,} failed; {rows}"),
        ("", _copies(plan) if plan.copies else ""),
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
    return "\n".join([*lines, *(text for level, text in found if level != "ok")])


def _copies(plan: Plan) -> str:
    if plan.dedupe:
        return plural(
            plan.copies,
            "of them is not sent: it asks just what another one asks, and gets its answer",
            "of them are not sent: they ask just what another one asks, and get its answer",
        )
    what = "tokens" if plan.cost_unknown else "cost"
    return (
        f"{plural(plan.copies, 'of those asks', 'of those ask')} just what another one asks: request.dedupe = true would send these once and save about "
        f"{plan.copies_share:.0%} of the {what}"
    )


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
        parts.append(f"unknown for {plural(plan.cost_unknown, 'row')}")
    return " + ".join(parts)


def _time(plan: Plan) -> str:
    span, finish = plan.seconds, plan.finish
    if span is None or finish is None:
        return "unknown until some rows have been answered: pipeline try"
    low = _whole(span.low)
    lasts = f"{low} or more" if span.high is None else _range(low, _whole(span.high))
    text = f"{plural(plan.pending - plan.failing, 'row')} {_pace(plan, finish)}: {lasts}"
    end = f"until {_moment(finish.at.high)}" if finish.at.high else f"not before {_moment(finish.at.low)}"
    if finish.by is None:
        return f"{text}, {end} if begun now (an estimate)"
    verdict = {True: "will finish", False: "will not finish", None: "may not finish"}[finish.in_time]
    by_night = datetime.fromtimestamp(finish.by).astimezone().hour < 12
    takes = f": {finish.openings} {'nights' if by_night else 'days'}, {end}" if finish.openings > 1 else ""
    return f"{text}; {verdict} by {shown(finish.by, finish.begun_at, None)}{takes} (an estimate)"


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(min(at, END_OF_TIME)).astimezone():%Y-%m-%d %H:%M}"


def _pace(plan: Plan, finish: Finish) -> str:
    if finish.bound == "slots":
        return f"with {plural(plan.slots, 'request')} at once"
    return f"at {number(finish.per_minute or 0.0)}{' tokens' if finish.bound == 'tokens' else ''}/min"


def _whole(seconds: float) -> str:
    """Whole minutes where it takes hours, and rather one more."""
    return duration(60 * math.ceil(seconds / 60) if seconds >= 3600 else seconds)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
