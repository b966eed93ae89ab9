"""Fault scripts: when a rule strikes, how scripts are read, and what is said about bad ones."""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.simulator import Faults, faults
from pipeline.simulator.call import Call
from pipeline.simulator.measured import MEASURED
from pipeline.simulator.playback import Playback


def strikes(rule: dict[str, Any], texts: list[str], *, seed: int = 0) -> list[bool]:
    """Which of these requests the rule strikes, one request a text."""
    playback = Playback(Faults.from_list([rule]), seed)
    calls = [
        Call(
            number=number,
            at=1e9 + number,
            method="POST",
            path="/v1/chat/completions",
            endpoint="chat",
            body=text.encode(),
            digest=blake2b(text.encode(), digest_size=16).digest(),
            occurrence=texts[: number - 1].count(text),
            call_id=None,
        )
        for number, text in enumerate(texts, start=1)
    ]
    return [playback.pick(call) is not None for call in calls]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({}, "XXXXXXXX"),
        ({"every": 3}, "..X..X.."),
        ({"first": 2}, "XX......"),
        ({"after": 5}, ".....XXX"),
        ({"between": [2, 4]}, ".XXX...."),
        ({"during": [0, 2]}, "XX......"),
        ({"during": [1.5, 4]}, "..XX...."),
        ({"after": 2, "every": 2}, "...X.X.X"),
        ({"times": 3}, "XXX....."),
        ({"match": "b"}, ".X...X.."),
        ({"match": "é"}, "..XX..XX"),
        ({"match": "b", "times": 1}, ".X......"),
        ({"per_body": 1}, "XXXX...."),
        ({"path": "/embeddings"}, "........"),
        ({"probability": 0}, "........"),
        ({"probability": 1}, "XXXXXXXX"),
    ],
)
def test_when_a_fault_strikes(when: dict[str, Any], expected: str) -> None:
    struck = strikes({"fault": 500, **when}, ["a", "b", "\\u00e9", "é"] * 2)
    assert "".join("X" if one else "." for one in struck) == expected


def test_chance_depends_on_the_request_not_on_the_order() -> None:
    texts = [f"row {number % 20}" for number in range(60)]

    def struck(order: list[str], seed: int) -> set[tuple[str, int]]:
        found = zip(order, strikes({"fault": 500, "probability": 0.3}, order, seed=seed), strict=True)
        return {(text, order[:at].count(text)) for at, (text, hit) in enumerate(found) if hit}

    once = struck(texts, seed=1)
    assert 8 <= len(once) <= 30
    assert once == struck(texts[::-1], seed=1)
    assert once != struck(texts, seed=2)
    assert {text for text, time in once if time == 0} != {text for text, time in once if time == 1}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, r"faults\[1\]\.fault: expected a status"),
        ({"fault": "explode"}, r'faults\[1\]\.fault: .*"reset".* got \'explode\''),
        ({"fault": 99}, r"faults\[1\]\.fault"),
        ({"fault": 500.5}, r"faults\[1\]\.fault"),
        ({"fault": "hang", "seconds": float("inf")}, r"faults\[1\]\.seconds"),
        ({"fault": 500, "evry": 2}, r"faults\[1\]\.evry: expected one of .*every"),
        ({"fault": "hang", "retry_after": 2}, r"faults\[1\]\.retry_after: expected one of seconds, every"),
        ({"fault": 500, "every": 0}, r"faults\[1\]\.every: expected a whole number of at least 1, got 0"),
        ({"fault": 500, "first": "2"}, r"faults\[1\]\.first"),
        ({"fault": 500, "between": [4, 2]}, r"faults\[1\]\.between: expected two arrival numbers"),
        ({"fault": 500, "between": 3}, r"faults\[1\]\.between"),
        ({"fault": 500, "during": [3, 3]}, r"faults\[1\]\.during: expected two numbers of seconds"),
        ({"fault": 500, "during": 3}, r"faults\[1\]\.during"),
        ({"fault": 500, "probability": 2}, r"faults\[1\]\.probability: expected a number from 0 to 1"),
        ({"fault": 500, "match": ""}, r"faults\[1\]\.match"),
        ({"fault": 500, "headers": "x"}, r"faults\[1\]\.headers"),
        ({"fault": 429, "retry_after": -1}, r"faults\[1\]\.retry_after"),
        ({"fault": "reset", "at": "end"}, r'faults\[1\]\.at: expected "request", "reply" or "body"'),
        ({"fault": "hang", "seconds": True}, r"faults\[1\]\.seconds"),
        (["500"], r"faults\[1\]: expected a table"),
    ],
)
def test_bad_rules_name_the_key_and_what_was_expected(rule: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Faults.from_list([{"fault": 500}, rule])


def test_scripts_are_read_from_toml_and_json(tmp_path: Path) -> None:
    toml, as_json = tmp_path / "faults.toml", tmp_path / "faults.json"
    toml.write_text(
        '[[faults]]\nfault = 429\nretry_after = 2\nevery = 10\n[[faults]]\nfault = "hang"\nbetween = [1, 5]\n'
    )
    rules = [{"fault": "429", "retry_after": 2, "every": 10}, {"fault": "hang", "between": [1, 5]}]
    for script in (rules, {"faults": rules}):
        as_json.write_text(json.dumps(script))
        assert Faults.from_file(as_json) == Faults.from_file(toml) == Faults.from_list(rules)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("faults = 1", "faults.toml: faults: expected a list"),
        ("[[fault]]", 'faults.toml: fault: expected only "faults"'),
        ("[[faults]\n", "faults.toml: expected a TOML or .json fault script: .*line 1"),
        ("[[faults]]\nfault = 500\nevery = -1", r"faults.toml: faults\[0\].every: "),
        (None, "cannot read the fault script .*faults.toml: No such file"),
    ],
)
def test_bad_scripts_are_usage_errors(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "faults.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message):
        Faults.from_file(path)


def test_every_error_of_every_dialect_is_documented() -> None:
    table = re.split(r"\n=+  =+\n", faults.__doc__ or "")[3]
    for row in re.split(r"\n(?=\w)", table):
        dialect, names = row.split(maxsplit=1)
        named = set(re.sub(r"\(.*?\)|After cooldown.*", "", names, flags=re.DOTALL).replace(".", "").split())
        assert named == MEASURED[dialect].keys() - {"stream_error"}
