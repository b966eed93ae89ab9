"""How long a gateway that is away, or that refuses what it took before, is waited for."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import BudgetError, GatewayError, IncompleteError, PipelineError
from pipeline.records import Verdict

UNREACHED_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """``wait``: however new the gateway is to this journal; else one that was never reached is given up after a minute.

    ``max_outage_s``: a longer outage ends the run, unless it is a budget that has to fill up.
    """

    wait: bool = False
    max_outage_s: float | None = None

    def ends(self, said: Verdict, seconds: float, *, reached: bool) -> PipelineError | None:
        """Why an outage that has lasted so long, and that ``said`` is the last word of, ends the run; None: it does not."""
        if said.recheck_s:
            return refused(said) if seconds >= said.recheck_s else None
        if self.max_outage_s is not None and seconds >= self.max_outage_s:
            return IncompleteError(
                f"the gateway has been away for {seconds:.0f} s, longer than limits.max_outage allows ({said.code}): "
                f"{said.message}"
            )
        if not reached and not self.wait and seconds >= UNREACHED_S:
            return GatewayError(
                f"the gateway was not reached for {UNREACHED_S:.0f} s, and never before in this journal ({said.code}): "
                f"{said.message.rstrip('. ')}. Check the base URL and the network; --wait waits for it however long"
            )
        return None


def refused(verdict: Verdict) -> PipelineError:
    """A FATAL verdict as the error that ends the run."""
    if verdict.code == "budget_exceeded":
        return BudgetError(f"the gateway's budget is used up: {verdict.message}")
    return GatewayError(f"the gateway refuses this job ({verdict.code}): {verdict.message}")
