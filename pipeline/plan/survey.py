"""One walk over the input: what is pending is measured and let go, done rows are weighed for the estimates."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import RowError
from pipeline.journal import Index, copies, history, reader
from pipeline.plan.load import MEASURED_ROWS, Load
from pipeline.records import Request, Row
from pipeline.source import chunks
from pipeline.workspace import Workspace

MODELS = 1_000  # told apart; rows of more are counted with the last


@dataclass(slots=True, kw_only=True)
class Survey:
    """What the walk found. ``loads`` are by model, ``shown`` the first requests, ``failing`` rows that cannot be sent."""

    loads: dict[str, Load] = field(default_factory=dict)
    shown: list[Request] = field(default_factory=list)
    failing: int = 0
    failing_example: str = ""

    def load_of(self, model: str) -> Load:
        """The load of a model; a new one when it is the first row's."""
        if model not in self.loads and len(self.loads) >= MODELS:
            model = "(others)"
        return self.loads.setdefault(model, Load())


async def surveyed(space: Workspace, index: Index, *, show: int) -> Survey:
    """Walk what is to be sent, then look at done rows; ``show`` requests are kept whole."""
    db = space.journal.db
    survey = Survey()
    async for items in space.feed.items(index):
        for item in items:
            if isinstance(item, Request):
                survey.load_of(item.model).add(item, copy=copies.is_copy(db, item.index))
                if len(survey.shown) < show:
                    survey.shown.append(item)
            else:
                survey.failing += 1
                if survey.failing == 1:
                    survey.failing_example = f"{space.name_of(*reader.place_of(db, item.index))}: {item.error_message}"
    _measure(space, survey)
    for model, load in survey.loads.items():
        if not load.is_measured:  # the prompt changed: what earlier answers used is still better than a guess
            for tokens in history.answered(db, model, MEASURED_ROWS):
                load.completion.add(load.bytes / load.rows, tokens)
    return survey


def _measure(space: Workspace, survey: Survey) -> None:
    """Compose the first done rows again, to see how long the requests were that used so much."""
    db = space.journal.db
    left = MEASURED_ROWS
    for file in space.files:
        for chunk in chunks(file):
            done = {row.line: row for row in history.spent(db, str(file.path), chunk.first, chunk.last)}
            for line, data in chunk.rows(frozenset(done)) if done else ():
                try:
                    row = Row(custom_id=done[line].custom_id, index=line, data=data)
                    composed = space.template.compose(row, file.path.parent, whole=False)
                except RowError:
                    continue
                if (load := survey.loads.get(composed.model)) is not None:
                    load.measure(len(composed.body), done[line])
                left -= 1
            if left <= 0:
                return
