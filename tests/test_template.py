"""A row becomes the same request every time, data never becomes template, and a null is never written as text."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import examples, write_jsonl
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline import Job
from pipeline.errors import InputError, RowError, TemplateError
from pipeline.records import Row
from pipeline.template import Composed, Template
from pipeline.workspace import make_folder, opened

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    SCALARS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
PARAM_NAMES = st.sampled_from(["temperature", "max_tokens", "seed", "stop", "response_format", "logit_bias", "é"])
PARAMS = st.dictionaries(PARAM_NAMES, JSON.filter(lambda value: value is not None), max_size=4)


def template(columns: Any = ("x",), prompt: str | None = "{{ x }}", **settings: Any) -> Template:
    made: dict[str, Any] = {"family": "openai", "model": "m", "system": None, "params": {}, "replace_model": False}
    return Template(**{**made, "prompt": prompt, "columns": columns, **settings})


def composed(data: dict[str, Any], prompt: str | None = "{{ x }}", *, at: int = 1, **settings: Any) -> Composed:
    columns = settings.pop("columns", data)
    return template(columns, prompt, **settings).compose(Row(custom_id=None, index=at, data=data))


def body(data: dict[str, Any], prompt: str | None = "{{ x }}", **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(composed(data, prompt, **settings).body)
    return found


def text(data: dict[str, Any], prompt: str | None = "{{ x }}", **settings: Any) -> Any:
    return body(data, prompt, **settings)["messages"][-1]["content"]


def refused(data: dict[str, Any], prompt: str | None = "{{ x }}", **settings: Any) -> RowError:
    with pytest.raises(RowError) as caught:
        composed(data, prompt, **settings)
    return caught.value


def turned(value: Any) -> Any:
    """The same JSON value with the members of every object the other way round."""
    if isinstance(value, dict):
        return {key: turned(value[key]) for key in reversed(value)}
    return [turned(item) for item in value] if isinstance(value, list) else value


# ---------------------------------------------------------------- the fingerprint: content, and nothing else


@settings(deadline=None)
@given(word=TEXT, other=JSON, params=PARAMS, row_params=PARAMS, at=st.integers(1, 10**9))
def test_key_order_position_and_unused_columns_do_not_change_a_request(
    word: str, other: Any, params: dict[str, Any], row_params: dict[str, Any], at: int
) -> None:
    data = {"x": word, "other": other, "params": row_params}
    one = composed(data, "say {{ x }}", params=params)
    again = composed(turned(data), "say {{ x }}", params=turned(params), at=at)
    assert (one.body, one.fingerprint) == (again.body, again.fingerprint)
    without = {name: value for name, value in data.items() if name != "other"}
    assert composed(without, "say {{ x }}", params=params).fingerprint == one.fingerprint
    as_text = {**data, "params": json.dumps(row_params)}
    assert composed(as_text, "say {{ x }}", params=params).fingerprint == one.fingerprint
    assert len(one.fingerprint) == 16


@settings(deadline=None)
@given(one=st.tuples(TEXT, TEXT, PARAMS, PARAMS), two=st.tuples(TEXT, TEXT, PARAMS, PARAMS), same=st.integers(0, 15))
def test_fingerprints_differ_exactly_when_the_bodies_do(one: tuple[Any, ...], two: tuple[Any, ...], same: int) -> None:
    two = tuple(mine if same >> at & 1 else theirs for at, (mine, theirs) in enumerate(zip(one, two, strict=True)))
    first, second = (
        composed({"x": word, "params": row}, "{{ x }}!", system=system.replace("{", "(") or None, params=params)
        for word, system, params, row in (one, two)
    )
    assert (first.fingerprint == second.fingerprint) == (first.body == second.body)
    bodies = [json.loads(request.body) for request in (first, second)]
    assert (first.body == second.body) == (orjson_sorted(bodies[0]) == orjson_sorted(bodies[1]))


def orjson_sorted(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


BASE: dict[str, Any] = {"prompt": "say {{ x }}", "system": "be brief", "params": {"seed": 1}}


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "say  {{ x }}"},
        {"prompt": "say {{ x }}\n"},
        {"system": None},
        {"system": "be brief {{ x }}"},
        {"params": {}},
        {"params": {"seed": 2}},
        {"params": {"seed": 1.0}},
        {"params": {"seed": "1"}},
        {"params": {"seed": True}},
        {"params": {"seed": 1, "n": 1}},
        {"model": "m2"},
        {"family": "lumen"},
    ],
    ids=str,
)
def test_every_change_that_reaches_the_gateway_is_another_request(change: dict[str, Any]) -> None:
    data = {"x": "a"}
    assert composed(data, **BASE).fingerprint != composed(data, **{**BASE, **change}).fingerprint
    assert composed(data, **BASE).fingerprint != composed({"x": "b"}, **BASE).fingerprint


def test_a_prompt_column_and_a_template_that_says_the_same_are_one_request() -> None:
    assert composed({"prompt": "hi"}, None).fingerprint == composed({"x": "hi"}).fingerprint
    messages = [{"content": "hi", "role": "user", "name": None}]
    assert composed({"messages": messages}, None).fingerprint == composed({"x": "hi"}).fingerprint


def test_where_the_gateway_is_and_how_fast_it_is_asked_is_no_part_of_a_request(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"x": "a"}])
    found = set()
    for changes in (
        {},
        {"gateway.base_url": "http://elsewhere:1/v1"},
        {"gateway.concurrency": 3, "gateway.timeout": 5.0},
        {"output.prefix": "llm_", "limits.max_attempts": 1},
    ):
        overrides = {
            "input.path": str(tmp_path / "in.jsonl"),
            "output.path": str(tmp_path / "out.jsonl"),
            "gateway.base_url": "http://here:1/v1",
            "model": "m",
            "request.prompt": "{{ x }}",
            **changes,
        }
        job = Job.load(None, overrides=overrides)
        make_folder(job)
        with opened(job, slots=1, adopt=False) as space:
            request = space.template.compose(Row(custom_id=None, index=1, data={"x": "a"}))
            found.add((space.spec, request.fingerprint))
    assert len(found) == 1


def test_the_identity_of_a_row_that_is_no_request_is_its_data_and_its_error() -> None:
    made = template()

    def identity(data: dict[str, Any], code: str = "null_field") -> bytes:
        return made.fingerprint_of_error(data, RowError(code, "m"))

    assert identity({"x": None, "y": b"\xff"}) == identity({"y": b"\xff", "x": None})
    assert len({identity({"x": None}), identity({"x": None, "y": 1}), identity({"x": None}, "other")}) == 3
    assert identity({"x": None}) != composed({"x": "None"}).fingerprint


# ---------------------------------------------------------------- data is never template

TEMPLATE_LIKE = st.lists(
    st.sampled_from(
        ["{{ 7*7 }}", "{% raw %}", "{% endraw %}", "{#", "#}", "{{", "}}", "{%", "%}", "# x", "-%}", "{{ x }}"]
    )
    | TEXT,
    max_size=6,
).map("".join)


@settings(deadline=None, max_examples=examples(200))
@given(word=TEMPLATE_LIKE)
def test_what_looks_like_a_template_in_a_row_arrives_verbatim(word: str) -> None:
    assert text({"x": word}) == word
    assert text({"x": word}, "a{{ x }}{{ x }}b") == f"a{word}{word}b"
    assert text({"x": {"y": [word]}}, "{{ x.y[0] }}") == word
    assert text({"prompt": word}, None) == word
    assert body({"x": word}, "-", system="{{ x }}")["messages"][0]["content"] == word
    assert text({"messages": [{"role": "user", "content": word}]}, None) == word
    assert json.loads(text({"x": word}, "{{ x|tojson }}")) == word
    assert json.loads(text({"x": word}, "{{ row|tojson(indent=2) }}")) == {"x": word}


@pytest.mark.parametrize("name", ["{{ 7*7 }}", "a b", "self", "loop", "é", "a.b", "not", ""])
def test_a_column_of_any_name_can_be_written(name: str) -> None:
    assert text({name: "v"}, "{{ row[%r] }}" % name) == "v"  # noqa: UP031 - the braces are the template's


def test_a_member_of_the_data_comes_before_a_method_of_that_name() -> None:
    struct = {"items": 1, "keys": 2, "get": 3, "__class__": 4}
    assert text({"s": struct}, "{{ s.items }}{{ s.keys }}{{ s['get'] }}{{ s.__class__ }}") == "1234"
    assert text({"s": {"a": 1}}, "{% for k, v in s.items() %}{{ k }}{{ v }}{% endfor %}") == "a1"
    assert text({"items": "v"}, "{{ items }}{{ row.items }}") == "vv"


@pytest.mark.parametrize(
    "use",
    [
        *("{{ %s }}", "{{ %s ~ '' }}", "{{ [%s] }}", "{{ {'a': %s} }}", "{{ (%s)|string }}", "{{ [1, %s]|join }}"),
        *("{{ '%%s' %% %s }}", "{{ '{}'.format(%s) }}", "{{ '{!r}'.format(%s) }}", "{{ '%%s'|format(%s) }}"),
        *("{{ dict(a=%s) }}", "{{ x.replace('v', %s) }}", "{%% set y = namespace(a=%s) %%}{{ y.a ~ y.a }}"),
    ],
)
def test_what_would_be_written_as_an_address_in_memory_is_refused(use: str) -> None:
    for value in ("x.upper", "range", "s.items", "cycler(1)", "m", "joiner", "self", "namespace(a=1)"):
        error = refused({"x": "v", "s": {}}, "{% macro m() %}{% endmacro %}" + use % value)
        assert error.code == "template_error"
        assert "is no value" in error.message


# ---------------------------------------------------------------- null

REFUSED_NULLS = [
    "{{ x }}", "{{ x|upper }}", "{{ x ~ 'a' }}", "{{ 'a' ~ x }}", "{{ x + 'a' }}", "{{ 1 - x }}", "{{ x * 2 }}", "{{ -x }}",
    "{{ x < 1 }}", "{{ x[:3] }}", "{{ x[0] }}", "{{ x.y }}", "{{ x.y.z }}", "{{ x() }}", "{{ 1 in x }}", "{{ x|length }}",
    "{{ x|int }}", "{{ x|abs }}", "{{ x|round(1) }}", "{{ x|trim }}", "{{ x|join }}", "{{ x|list }}", "{{ x|e }}",
    "{{ x|truncate(9) }}", "{{ '%s'|format(x) }}", "{{ '{}'.format(x) }}", "{{ [x, 1]|sort }}", "{{ [x, 1]|join }}",
    "{% for i in x %}{{ i }}{% endfor %}", "{% set y = x %}{{ y }}", "{% if x.y %}{% endif %}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(x) }}", "{{ row.x }}", "{{ row['x']|upper }}", "{{ row.x ~ 'a' }}",
]  # fmt: skip
ALLOWED_NULLS = {
    "{{ x or '' }}": "",
    "{{ x or 'none given' }}": "none given",
    "{{ x|default('d') }}": "d",
    "{{ x|d('d', true) }}": "d",
    "{{ x if x is not none else '-' }}": "-",
    "{% if x is none %}n{% endif %}": "n",
    "{{ x is none }}{{ x == none }}{{ x != 'a' }}": "TrueTrueTrue",
    "{{ x is defined }}": "False",
    "{% if x %}{{ x }}{% else %}e{% endif %}": "e",
    "{% if not x %}e{% endif %}": "e",
    "{{ x in ['a'] }}": "False",
    "{% for i in x or [] %}{{ i }}{% else %}e{% endfor %}": "e",
    "{{ x|tojson }}": "null",
    "{{ {'a': x}|tojson }}": '{"a":null}',
    "{{ row.x or 'r' }}{{ row['x'] is none }}": "rTrue",
    "{{ x and x.y }}{{ 1 }}": None,
    "{{ [x, 'a']|select|join }}": "a",
    "{{ [x, 'a']|reject('none')|join }}": "a",
    "{{ [x, 'a']|map('default', '-')|join }}": "-a",
    "{{ (x or '')|upper }}": "",
}


@pytest.mark.parametrize("present", [True, False], ids=["null", "absent"])
@pytest.mark.parametrize("prompt", REFUSED_NULLS)
def test_a_null_is_its_rows_error(prompt: str, present: bool) -> None:
    error = refused({"x": None} if present else {}, prompt, columns=["x"])
    assert error.code == "null_field"
    assert "null" in error.message


@pytest.mark.parametrize("present", [True, False], ids=["null", "absent"])
@pytest.mark.parametrize(("prompt", "expected"), ALLOWED_NULLS.items())
def test_unless_the_template_says_what_to_do_with_it(prompt: str, expected: str | None, present: bool) -> None:
    data = {"x": None} if present else {}
    if expected is None:
        assert refused(data, prompt, columns=["x"]).code == "null_field"
    else:
        assert text(data, prompt, columns=["x"]) == expected


NESTED: dict[str, Any] = {"s": {"a": None, "b": "B", "deep": {"c": None}}, "xs": ["v", None], "o d": None}


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ s.a }}", "{{ s['a'] }}", "{{ s.a|upper }}", "{{ s.a ~ '' }}", "{{ s.deep.c|trim }}", "{{ s.nothing }}",
        "{{ s.deep.c.d }}", "{{ xs[1] }}", "{{ xs|join(',') }}", "{% for x in xs %}{{ x|upper }}{% endfor %}",
        "{{ row['o d'] }}", "{{ row['o d']|upper }}", "{{ row.s.a|upper }}", "{{ row.nothing }}", "{{ s.values()|join }}",
        "{% for k, v in s.items() %}{{ v|upper }}{% endfor %}",
    ],
)  # fmt: skip
def test_a_null_inside_a_value_is_no_less_an_error(prompt: str) -> None:
    assert refused(NESTED, prompt).code == "null_field"


def test_nulls_inside_values_can_be_allowed_and_values_written_whole() -> None:
    assert text(NESTED, "{{ s.a or 'n' }}{{ s.b }}{{ xs|select|join }}{{ row['o d'] or '-' }}") == "nBv-"
    assert text(NESTED, "{{ s.a is none }}{{ s.a|default('d') }}") == "Trued"
    assert json.loads(text(NESTED, "{{ s|tojson }}")) == NESTED["s"]
    assert json.loads(text(NESTED, "{{ row|tojson(indent=2) }}")) == NESTED
    assert text(NESTED, "{{ s }} {{ xs }}") == f"{NESTED['s']} {NESTED['xs']}"


def test_a_null_names_what_to_write_instead() -> None:
    assert refused({"x": None}).message == "the column 'x' is null; write {{ x or '' }} to allow that"
    assert "{{ s['a'] or '' }}" in refused(NESTED, "{{ s.a|upper }}").message
    assert "{{ row['o d'] or '' }}" in refused(NESTED, "{{ row['o d'] }}").message


@pytest.mark.parametrize("name", ["range", "dict", "cycler", "namespace", "joiner"])
def test_a_column_called_like_a_function_of_jinja_is_a_column(name: str) -> None:
    prompt = "{{ %s }}" % name  # noqa: UP031 - the braces are the template's
    assert text({name: "v"}, prompt) == "v"
    assert refused({name: None}, prompt).code == "null_field"
    assert refused({}, prompt, columns=[name]).code == "null_field"


def test_what_is_not_null_is_written() -> None:
    data = {"e": "", "z": 0, "f": False, "l": [], "h": 1.5, "d": Decimal("1.50"), "t": datetime(2024, 1, 2, tzinfo=UTC)}
    assert text(data, "{{ e }}{{ z }}{{ f }}{{ l }}{{ h }}{{ d }}{{ t.year }}") == "0False[]1.51.502024"
    assert text({"x": date(2024, 1, 2)}, "{{ x }} {{ x.strftime('%d.%m.') }}") == "2024-01-02 02.01."
    assert refused({"x": b"\x00"}).code == "binary_field"


@pytest.mark.parametrize(
    "prompt", ["{{ x / 0 }}", "{{ x + 'a' }}", "{{ x|int + [] }}", "{{ 'a' * 10**15 }}", "{{ x[5:].y() }}"]
)
def test_a_template_that_does_not_fit_a_row_is_that_rows_error(prompt: str) -> None:
    error = refused({"x": 1}, prompt)
    assert error.code == "template_error"
    assert not error.message.endswith(": ")


# ---------------------------------------------------------------- what the template is checked for before the start


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("{{ bodi }}", "line 1: the input has no column 'bodi' (did you mean 'body'?); its columns are: body, title"),
        ("\n\n{{ nothing }}", "line 3: the input has no column 'nothing'; its columns are: body, title"),
        ("{% if q %}{% endif %}", "no column 'q'"),
        ("{% for i in body %}{{ i }}{{ j }}{% endfor %}", "no column 'j'"),
        ("{{ body", "line 1: unexpected end of template"),
        ("a\n{% if body %}", "line 2: Unexpected end of template"),
        ("{{ body|nofilter }}", "No filter named 'nofilter'"),
        ("{{ body is notest }}", "No test named 'notest'"),
    ],
)
@pytest.mark.parametrize("what", ["prompt", "system"])
def test_a_wrong_template_is_found_before_the_start(prompt: str, words: str, what: str) -> None:
    with pytest.raises(TemplateError) as caught:
        template(["title", "body"], **{"prompt": "{{ body }}", what: prompt})
    assert str(caught.value).startswith(f"request.{what}, line ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "ends"),
    [
        ("{{ a title }}", """got 'title'; a column whose name is no word is written {{ row["a title"] }}"""),
        ("{{ q-1 | upper }}", """; a column whose name is no word is written {{ row["q-1"] }}"""),
        ("{{ body }}{{ body", "expected 'end of print statement'."),
        (
            "{{ title }}",
            """(did you mean 'a title', written {{ row["a title"] }}?); its columns are: a title, body, q-1""",
        ),
    ],
)
def test_how_a_column_is_written_whose_name_is_no_word(prompt: str, ends: str) -> None:
    with pytest.raises(TemplateError) as caught:
        template(["a title", "body", "q-1"], prompt)
    assert str(caught.value).endswith(ends)


def test_names_the_template_makes_itself_are_no_columns() -> None:
    prompt = "{% set a = 1 %}{% for i in range(2) %}{{ loop.index }}{{ i }}{% endfor %}{{ a }}"
    assert text({"x": "v"}, prompt) == "10211"


def test_without_a_template_the_columns_decide() -> None:
    assert template(["prompt", "messages"], None).kind == "prompt"
    assert template(["messages"], None).kind == "messages"
    assert template(["custom_id", "method", "url", "body"], None).kind == "batch"
    assert template(["custom_id", "method", "url", "body"], "{{ url }}").kind == "prompt"
    for columns, settings_, words in (
        (["x"], {}, "request.prompt is missing (or -p TEMPLATE)"),
        (["x"], {"model": None}, "model is missing (or -m MODEL)"),
        (["custom_id", "url", "body"], {"system": "s"}, "request.system: batch lines bring their own messages"),
    ):
        with pytest.raises(TemplateError) as caught:
            template(columns, None, **settings_)
        assert words in str(caught.value)


# ---------------------------------------------------------------- prompt, messages, params, batch lines


@settings(deadline=None)
@given(
    job=PARAMS,
    row=st.dictionaries(PARAM_NAMES | st.just("model"), JSON, max_size=4).filter(
        lambda found: (
            isinstance(found.get("model", "m"), str) and found.get("model") != "" and "," not in found.get("model", "")
        )
    ),
)
def test_the_rows_params_win_and_null_takes_one_away(job: dict[str, Any], row: dict[str, Any]) -> None:
    expected = {name: value for name, value in {"model": "m", **job, **row}.items() if value is not None}
    for given_ in (row, json.dumps(row)):
        found = body({"prompt": "p", "params": given_}, None, params=job)
        assert found.pop("messages") == [{"role": "user", "content": "p"}]
        assert found == expected


@pytest.mark.parametrize("nothing", [None, "", {}, "{}", '{"model": null, "messages": null, "stream": null}'])
def test_params_that_say_nothing_change_nothing(nothing: Any) -> None:
    same = composed({"prompt": "p"}, None, params={"seed": 1})
    assert composed({"prompt": "p", "params": nothing}, None, params={"seed": 1}).body == same.body


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"prompt": None}, "null_field"),
        ({}, "null_field"),
        ({"prompt": 5}, "bad_prompt"),
        ({"prompt": ["a"]}, "bad_prompt"),
        ({"prompt": "p", "params": "[1]"}, "bad_params"),
        ({"prompt": "p", "params": "{"}, "bad_params"),
        ({"prompt": "p", "params": 5}, "bad_params"),
        ({"prompt": "p", "params": {"model": 5}}, "bad_params"),
        ({"prompt": "p", "params": {"model": ""}}, "bad_params"),
        ({"prompt": "p", "params": {"messages": []}}, "bad_params"),
        ({"prompt": "p", "params": {"stream": True}}, "bad_params"),
    ],
)
def test_a_row_that_makes_no_request_says_why(data: dict[str, Any], code: str) -> None:
    assert refused(data, None, columns=["prompt", "params"]).code == code


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        (None, "null_field"),
        ("", "bad_messages"),
        ("hello", "bad_messages"),
        ([], "bad_messages"),
        ({"role": "user"}, "bad_messages"),
        (["hello"], "bad_messages"),
        ([{"content": "no role"}], "bad_messages"),
    ],
)
def test_messages_must_be_messages(messages: Any, code: str) -> None:
    assert refused({"messages": messages}, None).code == code


def test_messages_come_as_values_or_as_json_text_after_the_system_message() -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "{{ x }}"},
    ]
    for given_ in (messages, json.dumps(messages)):
        found = body({"messages": given_, "x": "v"}, None, system="be {{ x }}", params={"seed": 1})
        assert found == {"model": "m", "seed": 1, "messages": [{"role": "system", "content": "be v"}, *messages]}
    parts = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": "data:"}}],
        }
    ]
    assert body({"messages": parts}, None)["messages"] == parts


BATCH = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
ASKED = {"model": "theirs", "messages": [{"role": "user", "content": "hi"}], "seed": 3}


def test_a_batch_line_is_sent_as_it_stands() -> None:
    for given_ in (ASKED, json.dumps(ASKED)):
        found = composed({**BATCH, "body": given_}, None, model=None)
        assert (found.endpoint, found.model, json.loads(found.body)) == ("/chat/completions", "theirs", ASKED)
    found = composed({**BATCH, "body": ASKED}, None, model=None, params={"seed": 1, "n": 1})
    assert json.loads(found.body) == {**ASKED, "n": 1}
    nameless = {name: value for name, value in ASKED.items() if name != "model"}
    assert composed({**BATCH, "body": nameless}, None).model == "m"
    assert composed({**BATCH, "body": ASKED}, None, replace_model=True).model == "m"
    assert (
        composed({**BATCH, "body": ASKED}, None, model="theirs").body
        == composed({**BATCH, "body": ASKED}, None, model=None).body
    )


@pytest.mark.parametrize(
    ("line", "model", "words"),
    [
        ({"body": ["x"]}, None, "'body' is a list, not an object"),
        ({"body": {**ASKED, "stream": True}}, None, "'stream': true"),
        ({"body": {"messages": []}}, None, "names no model, and neither does the job"),
        ({"body": {**ASKED, "model": 5}}, None, "names no model"),
        ({"body": ASKED}, "m", "request.replace_model = true"),
        ({"body": ASKED, "method": "GET"}, None, "'method' is 'GET', not 'POST'"),
        (
            {"body": ASKED, "url": "/v1/nothing"},
            None,
            "'url' is '/v1/nothing'; this version takes /v1/chat/completions, /v1/completions, /v1/embeddings",
        ),
        ({"body": ASKED, "url": None}, None, "'url' is None"),
    ],
)
def test_a_batch_line_that_asks_for_something_else_is_a_bad_line(
    line: dict[str, Any], model: str | None, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        composed({**BATCH, **line}, None, model=model)
    assert words in str(caught.value)


# ---------------------------------------------------------------- odd values, and what a row costs


def test_lone_surrogates_big_integers_and_bytes_have_a_place_in_a_body() -> None:
    assert text({"x": "a\ud800b"}) == "a�b"
    assert text({"prompt": "\udfff"}, None) == "�"
    assert text({"x": 2**100}) == str(2**100)
    found = body({"prompt": "p", "params": {"seed": 2**100, "stop": "\ud800", "f": 0.1}}, None, params={"n": -(2**64)})
    assert found == {
        "model": "m", "n": -(2**64), "seed": 2**100, "stop": "�", "f": 0.1, "messages": [{"role": "user", "content": "p"}],
    }  # fmt: skip
    image = [{"role": "user", "content": [{"type": "image", "data": b"\x00\xff"}]}]
    assert base64.b64decode(body({"messages": image}, None)["messages"][0]["content"][0]["data"]) == b"\x00\xff"


@settings(deadline=None)
@given(value=JSON)
def test_big_integers_and_deep_values_keep_the_order_of_keys(value: Any) -> None:
    """orjson and what stands in for it must sort alike, or one row would be two requests."""
    assume(isinstance(value, dict))
    plain = composed({"prompt": "p", "params": {"a": value}}, None).body
    big = composed({"prompt": "p", "params": {"a": value, "z": 2**70}}, None).body
    assert big == plain[:-1] + b',"z":1180591620717411303424}'


@settings(deadline=None)
@given(
    pieces=st.lists(st.sampled_from(["{{ a }}", "{{ b }}", "{{ self }}", "%", "%s", "%%", "\n"]) | TEXT, max_size=6),
    data=st.fixed_dictionaries(dict.fromkeys(("a", "b", "self"), SCALARS | TEXT)),
)
def test_a_template_that_only_names_columns_writes_what_any_other_does(pieces: list[str], data: dict[str, Any]) -> None:
    prompt = " ".join([*pieces, "{{ a }}"])
    assume(not any(sign in prompt.replace("{{ ", "").replace(" }}", "") for sign in ("{{", "{%", "{#")))

    def written(prompt: str) -> Any:
        try:
            return text(data, prompt)
        except RowError as error:
            return error.code, error.message

    assert written(prompt) == written(f"{{% if true %}}{prompt}{{% endif %}}")


def test_what_composing_a_row_costs(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"subject": "s" * 60, "body": "word " * 80, "id": "r1", "extra": None}
    made = template(
        data, "{{ subject }}\n\n{{ body }}", system="You label.", params={"temperature": 0, "max_tokens": 256}
    )
    row = Row(custom_id="r1", index=1, data=data)
    costs = []
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(2000):
            made.compose(row)
        costs.append((time.perf_counter() - begun) / 2000 * 1e6)
    with capsys.disabled():
        print(f" composing a row takes {min(costs):.1f} us (body {len(made.compose(row).body)} bytes)", end=" ")
    assert orjson.loads(made.compose(row).body)["max_tokens"] == 256
