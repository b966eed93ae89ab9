"""How many tokens a request will take, prompt and answer: an estimate that this run's own answers correct."""

from __future__ import annotations

from pipeline.records import EMBEDDINGS, Request, Usage

FIRST_ANSWER = 256.0  # tokens, before any answer has been seen
WEIGHT = 0.1  # of each new answer in the running means


class Estimate:
    """Learns how far the estimates from bytes are off, and how long answers are."""

    def __init__(self) -> None:
        self._per_estimated = 1.0
        self._answer = FIRST_ANSWER

    def of(self, request: Request) -> int:
        """Tokens that the request and its answer will take, about."""
        answer = 0.0 if request.endpoint == EMBEDDINGS else self._answer
        return max(1, round(request.estimated_tokens * self._per_estimated + answer))

    def learn(self, request: Request, usage: Usage) -> None:
        """What an answer really took."""
        if usage.prompt_tokens is not None and request.estimated_tokens > 0:
            seen = usage.prompt_tokens / request.estimated_tokens
            self._per_estimated += WEIGHT * (seen - self._per_estimated)
        if usage.completion_tokens is not None:
            self._answer += WEIGHT * (usage.completion_tokens - self._answer)
