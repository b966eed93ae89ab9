"""What every gateway must be good for, end to end: the same scenarios for the simulator's dialects and for a real peer.

A ``Gateway`` describes what is under test: what it is called, what models it has, what it cannot do. A ``Lab`` runs jobs
against it in a folder of its own. Each scenario is a function of a lab.
"""

from __future__ import annotations

import math
import signal
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import Ended, read_jsonl, write_jsonl
from reconcile import Bill, Reckoning, reconcile

from pipeline import Job, PipelineError, Redo, Wishes, run
from pipeline.ending import last_words
from pipeline.progress import Silent, Snapshot
from pipeline.simulator import embeddings

Row = dict[str, Any]
Fault = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A gateway under test. ``bills`` is its ledger from the start of the test on; ``play`` gives what stands behind it a
    script of faults, and takes it away where there is none; ``asked`` counts requests for an answer, billed or not.

    What it cannot do: ``vectors`` None: it has no embeddings. ``lists_models`` False: its list of models binds nobody, so
    a wrong model or key shows at the first request only. ``names_free`` False: it does not say that a model is free.
    ``prices`` are the job's own, where it lists none.
    """

    preset: str
    url: str
    key: str
    bills: Callable[[], list[Bill]]
    asked: Callable[[], int]
    play: Callable[..., None]
    told_by: str
    priced: str = "lab/priced"
    free: str = "lbl/free"
    short: str = "lab/short"
    vectors: str | None = "lab/vectors"
    unknown: str = "lab/pricy"
    unit: str = "USD"
    lists_models: bool = True
    names_free: bool = True
    prices: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A gateway, and a folder to run jobs in."""

    gateway: Gateway
    folder: Path

    def run(
        self,
        rows: Sequence[Row],
        model: str,
        wishes: Wishes | None = None,
        *,
        key: str | None = None,
        display: Silent | None = None,
        **changes: Any,
    ) -> Ended:
        """A run over these rows; ``changes`` are settings of the job (``gateway__stream=True``)."""
        write_jsonl(self.folder / "in.jsonl", list(rows))
        secret = self.folder / "key"
        secret.write_text(key or self.gateway.key, encoding="utf-8")
        secret.chmod(0o600)
        settings = {
            "input.path": str(self.folder / "in.jsonl"),
            "input.id": "id",
            "output.path": str(self.results_file),
            "model": model,
            "request.prompt": "{{ text }}",
            "prices": self.gateway.prices,
            "gateway.preset": self.gateway.preset,
            "gateway.base_url": self.gateway.url,
            "gateway.api_key_file": str(secret),
        }
        try:
            job = Job.load(
                None, overrides=settings | {name.replace("__", "."): value for name, value in changes.items()}
            )
            summary = run(job, wishes, display=display)
        except PipelineError as exc:
            return Ended(code=exc.exit_code, out="", err=str(exc))
        return Ended(code=summary.exit_code, out="", err=last_words(summary, again="pipeline run"))

    @property
    def results_file(self) -> Path:
        """Where results come."""
        return self.folder / "out.jsonl"

    @property
    def results(self) -> list[Row]:
        """What stands there."""
        return read_jsonl(self.results_file)

    def column(self, name: str) -> list[Any]:
        """One column of the results."""
        return [row[name] for row in self.results]

    def reconcile(self) -> Reckoning:
        """The gateway's ledger, the journal and the results agree."""
        results = self.results_file if self.results_file.exists() else None
        return reconcile(self.folder / "out.jsonl.run", self.gateway.bills(), results=results)


def rows_of(*texts: str) -> list[Row]:
    """A row for each text."""
    return [{"id": f"r{number}", "text": text} for number, text in enumerate(texts)]


def numbered(count: int) -> list[Row]:
    """So many rows, of different lengths."""
    return rows_of(*(f"This is row {number}" + " and more" * (number % 7) for number in range(count)))


SIX = rows_of("one", "two words", "three little words", "ü ß 漢字", 'a "b" \\ c', "six")


def _echoed(rows: Sequence[Row]) -> list[str]:
    return [f"You said: {row['text']}" for row in rows]


def chat(lab: Lab) -> None:
    """Each row is asked once, and has its answer; the same run again asks nothing."""
    _chat(lab, stream=False)


def chat_streamed(lab: Lab) -> None:
    """The same in events."""
    _chat(lab, stream=True)


def _chat(lab: Lab, *, stream: bool) -> None:
    ended = lab.run(SIX, lab.gateway.priced, gateway__stream=stream)
    assert ended.code == 0, ended.err
    assert lab.column("content") == _echoed(SIX)
    assert {(row["attempts"], row["finish_reason"], row["model"]) for row in lab.results} == {
        (1, "stop", lab.gateway.priced)
    }
    assert (lab.reconcile().answers, lab.gateway.asked()) == (6, 6)
    assert lab.run(SIX, lab.gateway.priced, gateway__stream=not stream).code == 0
    assert lab.gateway.asked() == 6


def embeddings_packed(lab: Lab) -> None:
    """Rows share calls, each gets its own vector to the last bit; a gateway that has none says so before row 1."""
    rows = rows_of(*(f"abstract number {number} " + "word " * number for number in range(10)))
    asked = {"request__endpoint": "embeddings", "request__pack": 4, "gateway__concurrency": 1}
    if lab.gateway.vectors is None:
        ended = lab.run(rows, lab.gateway.priced, **asked)
        assert (ended.code, lab.gateway.asked()) == (2, 0), ended.err
        assert f"{lab.gateway.preset} has no embeddings" in ended.err
        return
    ended = lab.run(rows, lab.gateway.vectors, **asked)
    assert ended.code == 0, ended.err
    assert [array("f", vector) for vector in lab.column("embedding")] == [vector_of(row["text"]) for row in rows]
    assert set(lab.column("usage_estimated")) == {True}
    assert lab.reconcile().answers == lab.gateway.asked() == 3


def a_bad_text_in_a_pack(lab: Lab) -> None:
    """It fails alone; the others of its call are answered."""
    if lab.gateway.vectors is None:
        return embeddings_packed(lab)
    lab.gateway.play({"fault": "context", "match": "[long]"})
    ended = lab.run(
        rows_of("one", "two", "[long]", "four"), lab.gateway.vectors, request__endpoint="embeddings", request__pack=4
    )
    assert ended.code == 3, ended.err
    assert lab.column("error_code") == [None, None, "context_length_exceeded", None]
    assert lab.gateway.asked() == 5  # all, two halves, the halves of the bad one
    lab.reconcile()
    return None


def prices(lab: Lab) -> None:
    """A row's cost is what the gateway bills, and says who told it; free is 0, and known."""
    gateway = lab.gateway
    assert lab.run(SIX, gateway.priced).code == 0
    assert {(row["cost_source"], row["cost_unit"]) for row in lab.results} == {(gateway.told_by, gateway.unit)}
    assert all(row["cost"] > 0 for row in lab.results)
    paid = lab.reconcile()
    assert lab.run(SIX, gateway.free, Wishes(accept_changes=True)).code == 0
    source = "free" if gateway.names_free else "price_table"
    assert {(row["cost"], row["cost_source"]) for row in lab.results} == {(0.0, source)}
    assert math.isclose(math.fsum(bill.cost for bill in gateway.bills()), paid.billed)
    assert gateway.asked() == 12


def unknown_model(lab: Lab) -> None:
    """It stops the run, says so, and costs nothing: before row 1 where the gateway lists its models, else at row 1."""
    ended = lab.run(SIX, lab.gateway.unknown)
    assert ended.code == 4, ended.err
    assert lab.gateway.unknown in ended.err
    _refused(lab)


def bad_key(lab: Lab) -> None:
    """The same for a key that is none; and the key is not in what is said."""
    ended = lab.run(SIX, lab.gateway.priced, key="sk-not-this-one")
    assert ended.code == 4, ended.err
    assert "key" in ended.err
    assert "sk-not-this-one" not in ended.err
    _refused(lab)


def _refused(lab: Lab) -> None:
    assert lab.gateway.bills() == []
    assert not lab.results_file.exists()
    if lab.gateway.lists_models:
        assert lab.gateway.asked() == 0


def a_row_too_long(lab: Lab) -> None:
    """That row fails at once, and says why; the others succeed."""
    rows = rows_of("one", "word " * 100, "three")
    ended = lab.run(rows, lab.gateway.short)
    assert ended.code == 3, ended.err
    assert lab.column("error_code") == [None, "context_length_exceeded", None]
    assert lab.column("attempts") == [1, 1, 1]
    assert "maximum context length is 64 tokens" in lab.results[1]["error_message"]
    assert lab.reconcile().answers == 2


def away_for_a_while(lab: Lab) -> None:
    """No row fails, and none is charged, while nobody takes connections."""
    rows = numbered(24)
    lab.gateway.play({"fault": "refused", "seconds": 1.5, "match": "row 5", "times": 1})
    ended = lab.run(rows, lab.gateway.priced, gateway__concurrency=2)
    assert ended.code == 0, ended.err
    assert "The gateway was away for" in ended.err
    assert {row["attempts"] - row["lost_attempts"] for row in lab.results} == {1}
    assert lab.reconcile().answers == 24


def malformed_replies(lab: Lab) -> None:
    """An answer that cannot be read is asked for again, and what it cost is not forgotten."""
    lab.gateway.play(
        {"fault": "truncated_json", "match": "[cut]", "per_body": 1},
        {"fault": "reset", "at": "body", "match": "[reset]", "per_body": 1},
        {"fault": "reset", "at": "reply", "match": "[gone]", "per_body": 1},
    )
    rows = rows_of("one", "[cut] and some words", "[reset] and some words", "[gone] and some words", "five")
    ended = lab.run(rows, lab.gateway.priced)
    assert ended.code == 0, ended.err
    assert lab.column("content") == _echoed(rows)
    assert lab.column("attempts") == [1, 2, 2, 2, 1]
    lab.reconcile()


class _StopsAfterSome(Silent):
    """SIGTERM, as soon as a row is done."""

    def show(self, snapshot: Snapshot) -> None:
        """Look."""
        if snapshot.completed:
            signal.raise_signal(signal.SIGTERM)


def a_stop_in_the_middle(lab: Lab) -> None:
    """SIGTERM finishes what is in flight; the same command again asks for the rest, and nothing twice."""
    rows = numbered(40)
    lab.gateway.play({"fault": "slow_headers", "seconds": 0.05})
    ended = lab.run(rows, lab.gateway.priced, display=_StopsAfterSome(), gateway__concurrency=2)
    assert ended.code == 75, ended.err
    assert 0 < lab.reconcile().answers < 40
    lab.gateway.play()
    assert lab.run(rows, lab.gateway.priced).code == 0
    assert lab.column("content") == _echoed(rows)
    assert set(lab.column("attempts")) == {1}
    assert lab.reconcile().answers == lab.gateway.asked() == 40


def failed_rows_again(lab: Lab) -> None:
    """A failed row is final until it is asked for again; then it is sent, and only it."""
    lab.gateway.play({"fault": 400, "match": "words"})
    assert lab.run(SIX, lab.gateway.priced).code == 3
    assert lab.column("status").count("failed") == 2
    lab.gateway.play()
    assert lab.run(SIX, lab.gateway.priced).code == 3
    assert lab.gateway.asked() == 6
    assert lab.run(SIX, lab.gateway.priced, Wishes(redo=Redo(failed=True))).code == 0
    assert lab.column("attempts") == [1, 2, 2, 1, 1, 1]
    assert lab.column("content") == _echoed(SIX)
    assert (lab.reconcile().answers, lab.gateway.asked()) == (6, 8)


SCENARIOS: tuple[Callable[[Lab], None], ...] = (
    chat,
    chat_streamed,
    embeddings_packed,
    a_bad_text_in_a_pack,
    prices,
    unknown_model,
    bad_key,
    a_row_too_long,
    away_for_a_while,
    malformed_replies,
    a_stop_in_the_middle,
    failed_rows_again,
)


def vector_of(text: str) -> array[float]:
    """What the simulator makes of a text."""
    ask = embeddings.EmbeddingAsk(model="any", inputs=(text,), base64=False, dimensions=64)
    return embeddings.embed(ask).vectors[0]
