"""What every gateway must be good for, end to end: the same scenarios for the simulator's dialects and for a real peer.

A ``Gateway`` describes what is under test: what it is called, what models it has, what it cannot do. A ``Lab`` runs jobs
against it in a folder of its own. Each scenario is a function of a lab.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import Ended, clean_environment, read_jsonl, write_jsonl
from reconcile import Bill, Reckoning, reconcile

from pipeline import Job, PipelineError, Redo, Wishes, run
from pipeline.ending import last_words
from pipeline.progress import Snapshot
from pipeline.progress.display import Silent
from pipeline.simulator import embeddings

Row = dict[str, Any]
Fault = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A gateway under test. ``bills`` is its ledger from the start of the test on; ``asked`` counts requests for an answer,
    billed or not; ``play`` gives the models behind it a script of faults, and takes it away where there is none.
    ``served`` is the model that answers for ``priced``, ``told_by`` the source of what that costs.

    What it cannot do: ``vectors`` None: it has no embeddings. ``lists_models`` False: its list of models binds nobody, so
    a wrong model or key shows at the first request only. ``free_by`` "price_table": it does not say that a model is free.
    ``settings`` are what a job for it says besides: prices where it lists none.
    """

    preset: str
    url: str
    key: str
    bills: Callable[[], list[Bill]]
    asked: Callable[[], int]
    play: Callable[..., None]
    told_by: str
    free_by: str = "free"
    priced: str = "lab/priced"
    served: str = "openai/priced-1"
    free: str = "lbl/free"
    short: str = "lab/short"
    vectors: str | None = "lab/vectors"
    unknown: str = "lab/pricy"
    unit: str = "USD"
    lists_models: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A gateway, and a folder to run jobs in; ``billed_before`` are others' bills."""

    gateway: Gateway
    folder: Path
    billed_before: int = 0

    def apart(self, name: str) -> Lab:
        """Another folder, where nothing was run yet."""
        folder = self.folder / name
        folder.mkdir()
        return Lab(gateway=self.gateway, folder=folder, billed_before=len(self.gateway.bills()))

    def run(
        self,
        rows: Sequence[Row],
        model: str | None,
        wishes: Wishes | None = None,
        *,
        key: str | None = None,
        display: Silent | None = None,
        **changes: Any,
    ) -> Ended:
        """A run over these rows; ``changes`` are settings of the job (``gateway__stream=True``)."""
        try:
            job = Job.load(None, overrides=self.settings(rows, model, key=key, **changes))
            summary = run(job, wishes, display=display)
        except PipelineError as exc:
            return Ended(code=exc.exit_code, out="", err=str(exc))
        return Ended(code=summary.exit_code, out="", err=last_words(summary, again="pipeline run"))

    def start(self, rows: Sequence[Row], model: str, **changes: Any) -> subprocess.Popen[bytes]:
        """The same in a process of its own, which can be killed."""
        code = "import json, sys; from pipeline import Job, run; run(Job.load(None, overrides=json.loads(sys.argv[1])))"
        settings = json.dumps(self.settings(rows, model, **changes))
        return subprocess.Popen([sys.executable, "-c", code, settings], env=clean_environment())

    def settings(
        self, rows: Sequence[Row], model: str | None, *, key: str | None = None, **changes: Any
    ) -> dict[str, Any]:
        """The job, its input written."""
        write_jsonl(self.folder / "in.jsonl", list(rows))
        secret = self.folder / "key"
        secret.write_text(key or self.gateway.key, encoding="utf-8")
        secret.chmod(0o600)
        return {
            "input.path": str(self.folder / "in.jsonl"),
            "input.id": "id",
            "output.path": str(self.results_file),
            "model": model,
            "request.prompt": "{{ text }}",
            "gateway.preset": self.gateway.preset,
            "gateway.base_url": self.gateway.url,
            "gateway.api_key_file": str(secret),
            **self.gateway.settings,
            **{name.replace("__", "."): value for name, value in changes.items()},
        }

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
        return reconcile(self.folder / "out.jsonl.run", self.bills, results=results)

    @property
    def bills(self) -> list[Bill]:
        """What the gateway has billed for jobs of this folder."""
        return self.gateway.bills()[self.billed_before :]


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
    assert {(row["attempts"], row["finish_reason"]) for row in lab.results} == {(1, "stop")}
    assert {(row["model"], row["served_model"]) for row in lab.results} == {(lab.gateway.priced, lab.gateway.served)}
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
    """A row's cost is what the gateway bills, plain or streamed, and says who told it; free is 0, and known."""
    gateway = lab.gateway
    for model, source in ((gateway.priced, gateway.told_by), (gateway.free, gateway.free_by)):
        for stream in (False, True):
            own = lab.apart(f"{model[-4:]}-{stream}")
            assert own.run(SIX, model, gateway__stream=stream).code == 0
            assert {(row["cost_source"], row["cost_unit"]) for row in own.results} == {(source, gateway.unit)}
            assert {row["cost"] > 0 for row in own.results} == {model == gateway.priced}
            assert own.reconcile().answers == 6


def unknown_model(lab: Lab) -> None:
    """It stops the run, says so, and costs nothing: before row 1 where the gateway lists its models, else at row 1."""
    ended = lab.run(SIX, lab.gateway.unknown)
    assert ended.code == 4, ended.err
    assert lab.gateway.unknown in ended.err
    _refused(lab)


def bad_key(lab: Lab) -> None:
    """The same for a key that is none; and the key is not in what is said."""
    ended = lab.run(SIX, lab.gateway.priced, key="sk-SECRET-not-this-one")
    assert ended.code == 4, ended.err
    assert "key" in ended.err
    assert "sk-SECRET-not-this-one" not in ended.err
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
    _away(lab, lab.gateway.priced)


def away_for_a_while_free(lab: Lab) -> None:
    """The same for a model without a price."""
    _away(lab, lab.gateway.free)


def _away(lab: Lab, model: str) -> None:
    rows = numbered(24)
    lab.gateway.play({"fault": "refused", "seconds": 0.8, "match": "row 5", "times": 1})
    ended = lab.run(rows, model, gateway__concurrency=2)
    assert ended.code == 0, ended.err
    assert "The gateway was away for" in ended.err
    assert {row["attempts"] - row["lost_attempts"] for row in lab.results} == {1}
    assert lab.reconcile().answers == 24


def malformed_replies(lab: Lab) -> None:
    """An answer that cannot be read is asked for again, and what it cost is not forgotten."""
    _broken(
        lab,
        {"fault": "truncated_json", "match": "[cut]", "per_body": 1},
        {"fault": "reset", "at": "body", "match": "[reset]", "per_body": 1},
        {"fault": "reset", "at": "reply", "match": "[gone]", "per_body": 1},
    )


def a_stream_that_breaks(lab: Lab) -> None:
    """The same in the middle of events."""
    _broken(lab, {"fault": "reset", "at": "body", "match": "] and some words", "per_body": 1}, gateway__stream=True)


def _broken(lab: Lab, *faults: Fault, **settings: Any) -> None:
    lab.gateway.play(*faults)
    rows = rows_of("one", "[cut] and some words", "[reset] and some words", "[gone] and some words", "five")
    ended = lab.run(rows, lab.gateway.priced, **settings)
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
    away_for_a_while_free,
    malformed_replies,
    a_stream_that_breaks,
    a_stop_in_the_middle,
    failed_rows_again,
)


def vector_of(text: str) -> array[float]:
    """What the simulator makes of a text."""
    ask = embeddings.EmbeddingAsk(model="any", inputs=(text,), base64=False, dimensions=64)
    return embeddings.embed(ask).vectors[0]
