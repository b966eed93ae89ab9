"""A fault script while it is played: which rule, if any, strikes a request."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType

from pipeline.simulator.call import Call
from pipeline.simulator.chance import uniform
from pipeline.simulator.faults import Faults, Rule
from pipeline.simulator.measured import UPSTREAM

_CHAT = ("chat",)
_ANSWERS = ("chat", "embeddings")
_BODIES = ("chat", "embeddings", "models")
# Faults that change an answer, or replace it, strike only where there is such an answer: elsewhere they would be used up unseen.
_NEEDS = MappingProxyType(
    {
        **dict.fromkeys(UPSTREAM, _ANSWERS),
        "empty_content": _CHAT,
        "refusal": _CHAT,
        "empty_choices": _ANSWERS,
        "no_usage": _ANSWERS,
        "drift": _ANSWERS,
        "truncated_json": _BODIES,
        "slow_body": _BODIES,
    }
)
_STREAMS = ("stream_error", "cut_stream")


class Playback:
    """Keeps count of what each rule has done so far."""

    def __init__(self, faults: Faults, seed: int) -> None:
        self._parts = [_Part(rule, f"fault {index}", seed) for index, rule in enumerate(faults.rules)]
        self._began_at: float | None = None

    def pick(self, call: Call) -> Rule | None:
        """The first rule that applies to ``call``; one of its times is used up."""
        if self._began_at is None:
            self._began_at = call.at
        for part in self._parts:
            if _in_time(part.rule, call.at - self._began_at) and part.strikes(call):
                return part.rule
        return None


class _Part:
    __slots__ = ("_done", "_done_per_body", "_purpose", "_seed", "rule")

    def __init__(self, rule: Rule, purpose: str, seed: int) -> None:
        self.rule = rule
        self._purpose = purpose
        self._seed = seed
        self._done = 0
        self._done_per_body: Counter[bytes] = Counter()

    def strikes(self, call: Call) -> bool:
        if not (_in_turn(self.rule, call.number) and _in_scope(self.rule, call) and self._by_chance(call)):
            return False
        return self._use(call.digest)

    def _by_chance(self, call: Call) -> bool:
        p = self.rule.probability
        return p is None or uniform(self._seed, call, self._purpose) < p

    def _use(self, digest: bytes) -> bool:
        if self.rule.times is not None and self._done >= self.rule.times:
            return False
        if self.rule.per_body is not None:
            if self._done_per_body[digest] >= self.rule.per_body:
                return False
            self._done_per_body[digest] += 1
        self._done += 1
        return True


def _in_turn(rule: Rule, number: int) -> bool:
    return (
        (rule.every is None or number % rule.every == 0)
        and (rule.first is None or number <= rule.first)
        and (rule.after is None or number > rule.after)
        and (rule.between is None or rule.between[0] <= number <= rule.between[1])
    )


def _in_time(rule: Rule, seconds: float) -> bool:
    return rule.during is None or rule.during[0] <= seconds < rule.during[1]


def _in_scope(rule: Rule, call: Call) -> bool:
    return (
        (rule.fault not in _STREAMS or call.stream)
        and call.endpoint in _NEEDS.get(rule.fault, (call.endpoint,))
        and (rule.path is None or rule.path in call.path)
        and (not rule.match or any(needle in call.body for needle in rule.match))
    )
