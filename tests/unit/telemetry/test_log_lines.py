"""Lines of the log, as a kind: one line each, bounded, valid, without what was raised."""

import json
import logging
import math
import traceback
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnline.worker.logs import JsonFormatter, TextFormatter, facts_of, on_loop_error

CANARY = "wombat-7c1f"
HEAD = ["at", "level", "logger", "event"]
UNSEEN = [chr(n) for n in (*range(32), 0x7F, 0x85, 0x9B, 0x200B, 0x2028, 0x202E, 0xFEFF, 0xDC80)]


class Long(NamedTuple):
    """Stands for a long text, or for a long number (0), in what Hypothesis prints."""

    length: int


def whole(value: Any) -> Any:
    """Return a value with what is long written out."""
    match value:
        case Long(length):
            return "é" * length if length else 10**4000
        case list():
            return [*map(whole, value)]
        case dict():
            return {key: whole(item) for key, item in value.items()}
        case _:
            return value


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=40),
    st.sampled_from(UNSEEN),
    st.binary(max_size=8),
    st.builds(object),
    st.builds(ValueError, st.just(CANARY)),
    st.integers(min_value=1, max_value=30_000).map(Long),
    st.just(Long(0)),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=50), st.dictionaries(st.text(max_size=9), inner, max_size=5)
    ),
    max_leaves=60,
)
names = st.one_of(st.text(min_size=1, max_size=90), st.sampled_from([*HEAD, "error", "n"]))


def record(msg: Any, *args: Any, name: str = "turnline.test", **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.ERROR, "file.py", 7, msg, args, None)
    vars(made).update(extra)
    return made


def raised(error: BaseException) -> BaseException:
    try:
        raise error  # noqa: TRY301  to give it a stack
    except BaseException as caught:  # noqa: BLE001  any of them
        return caught


def is_one_visible_line(line: str) -> bool:
    return not any(mark in line for mark in UNSEEN) and len(line.splitlines()) == 1


@given(fields=st.dictionaries(names, values, max_size=20), event=st.text(max_size=2_000))
def test_whatever_the_fields_are_a_line_is_one_bounded_line(
    fields: dict[str, Any], event: str
) -> None:
    """Of at most 8 KiB in both formats; JSON stays valid, and time, level and event stay theirs."""
    own = {name: whole(it) for name, it in fields.items() if name not in vars(record(""))}
    line = JsonFormatter().format(record(event, **own))

    told = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert [*told][:4] == HEAD
    assert told["level"] == "error"
    assert told["at"].startswith("20")
    assert is_one_visible_line(line)
    assert len(line.encode()) <= 8_192
    assert CANARY not in line
    text = TextFormatter().format(record(event, **own))
    assert is_one_visible_line(text)
    assert len(text.encode()) <= 8_192
    assert CANARY not in text


@pytest.mark.parametrize("letter", ["n", "é", "語", "𠀋"])
@pytest.mark.parametrize("value", [1, "語", Long(8_000)])
def test_names_and_what_stands_between_fields_count_too(letter: str, value: Any) -> None:
    """A thousand small fields are a line of at most 8 KiB, whatever script their names are in."""
    own = {letter * (1 + n % 60) + f"{n}": whole(value) for n in range(1_000)}

    for formatter in (JsonFormatter(), TextFormatter()):
        line = formatter.format(record("e", **own))
        assert "cut" in line
        assert 5_000 < len(line.encode()) <= 8_192


@given(value=st.one_of(st.booleans(), st.integers(-(2**63), 2**63), st.text(max_size=200)))
def test_fields_keep_their_types(value: Any) -> None:
    """A number is a number, a text the same text, true is true."""
    told = json.loads(JsonFormatter().format(record("e", field=value)))["field"]

    assert (type(told), told) == (type(value), value)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(math.nan, "nan"), (math.inf, "inf"), (1.5, 1.5), (b"words", "<bytes>"), ({1}, "<set>")],
)
def test_what_json_does_not_have_is_named(value: Any, shown: Any) -> None:
    """Never the value's own words, never a line that no parser takes."""
    assert json.loads(JsonFormatter().format(record("e", field=value)))["field"] == shown


def test_a_reserved_name_does_not_replace_the_time() -> None:
    """A field of that name gets another one."""
    told = json.loads(JsonFormatter().format(record("e", at=["frames"], level="low")))

    assert told["at"].startswith("20")
    assert (told["at_"], told["level_"]) == (["frames"], "low")


def test_an_exceptions_text_is_never_said() -> None:
    """Its type and the places of its stack are; so are the types of what led to it."""
    inner = raised(ValueError(CANARY))
    error = raised(KeyError(CANARY))
    error.__cause__ = inner
    line = record("e")
    line.exc_info = (type(error), error, error.__traceback__)

    for formatter in (JsonFormatter(), TextFormatter()):
        told = formatter.format(line)
        assert "KeyError" in told
        assert "ValueError" in told
        assert "test_log_lines.py" in told
        assert CANARY not in told


def test_a_stack_says_places_and_no_source_lines() -> None:
    """A line of source may hold words; a deep stack keeps its innermost places."""

    def deep(n: int) -> None:
        if not n:
            raise ValueError("wombat-" + "7c1f")
        deep(n - 1)

    with pytest.raises(ValueError, match=CANARY) as caught:
        deep(100)
    facts: Any = facts_of(caught.value)

    assert "wombat" in "".join(traceback.format_tb(caught.tb))
    assert len(facts["stack"]) == 24
    assert "deep" in facts["stack"][-1]
    assert "wombat" not in str(facts)


@pytest.mark.parametrize(
    ("logger", "msg", "args", "event"),
    [
        ("shop", "refused %s", (CANARY,), "refused %s"),
        ("shop", "shop is closed", (), "shop is closed"),
        ("asyncio", f"Task exception was never retrieved {CANARY}", (), "library.message"),
        ("arq.worker", "job %s failed: %s", ("1", CANARY), "job %s failed: %s"),
        ("shop", ValueError(CANARY), (), "<ValueError>"),
        ("turnline.x", "event %d", (CANARY,), "event %d"),
    ],
)
def test_what_others_put_into_their_messages_is_not_said(
    logger: str, msg: Any, args: tuple[Any, ...], event: str
) -> None:
    """Their constant texts are; and where in their code that was."""
    line = JsonFormatter().format(record(msg, *args, name=logger))

    assert json.loads(line)["event"] == event
    assert CANARY not in line


def test_a_made_up_type_does_not_carry_words() -> None:
    """The name of a type is said only if it is a name."""
    made: type[Exception] = type(f"said {CANARY}", (Exception,), {})

    assert CANARY not in str(facts_of(made()))


def test_what_a_loop_could_not_deliver_is_told_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The handler of asyncio itself prints the exception and what a callback was given."""
    context: Any = {"message": f"in callback f({CANARY!r})", "exception": ValueError(CANARY)}

    on_loop_error(None, context)  # type: ignore[arg-type]

    (line,) = caplog.records
    assert line.getMessage() == "loop.uncaught"
    assert CANARY not in JsonFormatter().format(line)
