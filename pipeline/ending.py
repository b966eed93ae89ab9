"""The last words of a run, for people: what happened, what is left, the exact next command, how to look at what is there."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.billing.reckoning import described
from pipeline.errors import IncompleteError, PipelineError, UsageError
from pipeline.ground.wording import duration, in_one_line, money, outage, plural
from pipeline.journal import Counts, Totals
from pipeline.records import Summary

EXAMPLES = 3
UNDONE = "stopped before all rows were done"  # as a try is, once it has tried what it was to try
SAME = 120  # characters of a message that stand for the whole: some lines cut it off


def last_words(summary: Summary, *, again: str) -> str:
    """The end of a run in a few lines; ``again`` is the command that resumes it."""
    lines = [_headline(summary), *_counts(summary), *described(summary), *_failures(summary), *_oddities(summary)]
    if summary.exit_code in (0, 3):
        if summary.results:
            lines.append(f"Results: {summary.results}")
        if summary.unsent:
            rows = "They" if summary.unsent == summary.failed else f"{summary.unsent:,} of them"
            lines.append(f"{rows} never became requests: mend the template or the data, then: {again}")
        if summary.failed - summary.unsent > summary.accepted:
            lines.append(f"Try the failed rows again: {again} --retry-failed")
        if summary.failed > summary.accepted:
            lines.append(f"Or accept them as they are: {again} --accept-failed")
    else:
        if summary.trouble and not _is_said(summary.trouble, lines):
            lines.append(f"Last trouble: {summary.trouble}")
        is_there = summary.completed + summary.failed > 0
        kept = f" What is done is kept in {summary.run_folder}" if is_there else ""
        lines.append(f"Left: {plural(summary.pending, 'row')}.{kept}")
        lines.append(f"{'Go' if summary.exit_code in (75, 130) else 'Mend that, then go'} on with: {again}")
        if is_there:
            lines.append(f"Look at what is there: pipeline export {summary.run_folder} --partial -o partial.jsonl")
    return "\n".join(lines)


def _headline(summary: Summary) -> str:
    if summary.exit_code == 0 and summary.sent == 0:
        return f"Nothing to send: {plural(summary.total, 'row is', 'rows are all')} done."
    if summary.exit_code == 0:
        return f"Finished in {duration(summary.elapsed_s)}: {plural(summary.sent, 'row')} sent."
    if summary.exit_code == 3:
        sent = f"{plural(summary.sent, 'row')} sent" if summary.sent else "nothing was sent"
        return f"Finished in {duration(summary.elapsed_s)}, {sent}; {plural(summary.failed, 'row')} failed."
    return f"Stopped after {duration(summary.elapsed_s)}: {summary.reason}"


def _is_said(trouble: str, lines: Sequence[str]) -> bool:
    """Whether ``lines`` tell the message of a trouble (``code: message``): nobody wants to read it twice."""
    return in_one_line(trouble.partition(": ")[2] or trouble)[:SAME] in in_one_line(" ".join(lines))


def _counts(summary: Summary) -> list[str]:
    tokens = summary.prompt_tokens + summary.completion_tokens
    rows = f"Rows: {summary.completed:,} succeeded, {summary.failed:,} failed{_accepted(summary)}, {summary.pending:,} left, of {summary.total:,}{_reused(summary)}."
    return [
        rows,
        f"Tokens: {tokens:,} ({summary.prompt_tokens:,} in, {summary.completion_tokens:,} out). "
        f"Cost: {money(summary.cost, summary.cost_unknown)}{_price_hint(summary)}.",
    ]


def _price_hint(summary: Summary) -> str:
    return (
        "" if summary.cost or not summary.cost_unknown else " (no price is known: a [prices] table in the job tells it)"
    )


def _accepted(summary: Summary) -> str:
    return f" ({summary.accepted:,} of them accepted)" if summary.accepted else ""


def _reused(summary: Summary) -> str:
    return f"; {summary.reused:,} reused" if summary.reused else ""


def _failures(summary: Summary) -> list[str]:
    lines = []
    for code, count, examples, message in summary.failures:
        ids = ", ".join(examples) + (", ..." if count > len(examples) else "")
        said = in_one_line(message.splitlines()[0], 200) if message else ""
        why = "" if not said or _is_said(f"{code}: {said}", [_headline(summary)]) else f": {said}"
        lines.append(f"  {count:,} x {code}{why} ({ids})")
    return ["Failed:", *lines] if lines else []


def _oddities(summary: Summary) -> list[str]:
    """What succeeded but deserves a look."""
    lines = [
        outage(at, end, cause, is_said=_is_said(cause, [_headline(summary)])) for at, end, cause in summary.outages
    ]
    if summary.cut_off:
        lines.append(
            f"{plural(summary.cut_off, 'answer was', 'answers were')} cut off by max_tokens (a higher one is another request for every row: it needs "
            "--accept-changes)"
        )
    if summary.empty:
        these = "this row" if summary.empty == 1 else "these rows"
        too = ", and the failed ones, which have none" if summary.failed else ""
        lines.append(
            f"{plural(summary.empty, 'answer is', 'answers are')} empty: --redo content= sends {these} again{too}"
        )
    if summary.refusals:
        lines.append(plural(summary.refusals, "answer is a refusal", "answers are refusals"))
    if summary.lost_attempts:
        ask = "" if summary.ledger is None else f": pipeline verify {summary.run_folder} --billing asks it"
        lines.append(
            f"{plural(summary.lost_attempts, 'try was', 'tries were')} lost on the way; the gateway may have billed them{ask}"
        )
    if summary.in_flight and summary.exit_code not in (0, 3):
        names = ", ".join(summary.in_flight[:EXAMPLES]) + (", ..." if len(summary.in_flight) > EXAMPLES else "")
        lines.append(
            f"{plural(len(summary.in_flight), 'request was', 'requests were')} in flight and may be billed without an answer: {names}"
        )
    return lines


def how_it_ended(counts: Counts, totals: Totals, why: PipelineError | None, *, sent: int) -> tuple[int, str]:
    """Exit code and reason of a run that got as far as sending."""
    if isinstance(why, UsageError) and sent:  # exit 2 promises that nothing was
        return IncompleteError.exit_code, str(why)
    if why is not None:
        return why.exit_code, str(why)
    if counts.pending:
        return 75, UNDONE
    if counts.failed > totals.accepted:
        return 3, "finished; some rows failed"
    return 0, "finished"
