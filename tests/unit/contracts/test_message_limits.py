"""What a producer may not send is refused by name, and never repeated."""

import copy
import json
import math
import re
import traceback
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.contracts.examples import INBOUND
from turnline.contracts import Feedback, InvalidMessage, ToolResult, TurnlineError, UserMessage
from turnline.contracts.conversation import SUBMITTED_ID_PATTERN, SettingsChange
from turnline.contracts.messages import Inbound, decode, encode, validated
from turnline.contracts.protocol import Requests, configure_message

KIB = 1024
ID_RULE = "1 to 200 printable characters (Unicode NFC) without spaces or braces"
TEXT_RULE = "text of at most 262144 bytes"


def refused(data: bytes | str) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        decode(data)
    return caught.value


def user(**fields: Any) -> str:
    plain = {"type": "user_message", "conversation_id": "c", "text": "hi", **fields}
    return json.dumps({name: value for name, value in plain.items() if value is not ...})


def of_type(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, "conversation_id": "c", **fields})


def feedback(**fields: Any) -> str:
    return of_type("feedback", **{"of_turn": "t", **fields})


def entries(*messages: dict[str, Any]) -> str:
    return of_type("context_append", messages=messages)


@pytest.mark.parametrize(
    "value",
    ["x", "x" * 200, "ö" * 200, "日本語", "a:b/c-d_e.f|g", "'\"\\", "🦜", "{s0}".strip("{}")],
)
@pytest.mark.parametrize("field", ["conversation_id", "turn_id", "reply_to"])
def test_an_id_is_any_printable_word(field: str, value: str) -> None:
    """1 to 200 characters of any script."""
    assert getattr(decode(user(**{field: value})), field) == value


@pytest.mark.parametrize(
    "value",
    [
        *("", "x" * 201, "ö" * 201, "a b", " a", "a ", "a\t", "a\n", "\n", "a\nb", "a\r", "a\0"),
        *("{", "}", "{s0}", "a\x1b[0m", "a\x7f", "a\x85", "a\xa0b", "a\xad", "a\u1680b", "a\u2003"),
        *("a\u200b", "a\u200e", "a\u2028", "a\u2029", "a\u202e", "a\u2060", "a\u3000", "\ufeffa"),
    ],
)
@pytest.mark.parametrize("field", ["conversation_id", "turn_id", "reply_to"])
def test_an_id_with_anything_else_is_refused(field: str, value: str) -> None:
    """Spaces, braces, control and invisible characters, and a newline at the end too."""
    error = refused(user(**{field: value}))

    assert (error.field, error.expected) == (field, ID_RULE)


LOOKS_ALIKE = [
    *(
        "a\u034f",
        "a\u115f",
        "\u3164",
        "a\uffa0",
        "a\u2800",
        "a\ufe0f",
        "a\ufff0",
        "a\ufdd0",
        "a\u180b",
    ),
    *(
        "a\U000e0041",
        "a\U000e0101",
        "a\U0001d173",
        "a\u17b5",
        "e\u0301",
        "\u212b",
        "\u1112\u1161\u11ab",
    ),
]


@pytest.mark.parametrize("value", LOOKS_ALIKE)
@pytest.mark.parametrize("field", ["conversation_id", "turn_id", "reply_to"])
def test_an_id_that_looks_like_another_is_not_accepted(field: str, value: str) -> None:
    """Fillers, joiners, variation selectors, tags, letters that are written in two ways."""
    sent = user(**{field: value}).encode()
    with pytest.raises(InvalidMessage) as error:
        Requests().submission(sent)

    assert (error.value.field, error.value.expected) == (field, ID_RULE)
    assert getattr(decode(sent), field) == value  # what was accepted once is read


@pytest.mark.parametrize("value", ["a\nb", "a\u202e", "a\ufeff", "\x1b[0m", "a\u200b"])
def test_an_id_of_a_call_is_seen(value: str) -> None:
    """The model made it, so it may hold spaces; nothing that does not show."""
    Requests().submission(of_type("tool_result", call_id="call {1} é").encode())
    with pytest.raises(InvalidMessage) as error:
        Requests().submission(of_type("tool_result", call_id=value).encode())

    assert error.value.field == "call_id"


@pytest.mark.parametrize("field", ["of_turn", "name", "label"])
def test_what_names_a_rating_is_seen(field: str) -> None:
    """What is rated, and in which word, may hold spaces; nothing that does not show."""
    Requests().submission(feedback(name="as helpful as", label="très bien", score=-0.5).encode())
    with pytest.raises(InvalidMessage) as error:
        Requests().submission(feedback(**{"score": 1, field: "a\u034f"}).encode())

    assert error.value.field == field


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, 10**400, "1"])
def test_a_score_is_a_finite_number(score: float) -> None:
    """JSON has no word for others: a client would send null without a word."""
    with pytest.raises(InvalidMessage) as error:
        Feedback(conversation_id="c", of_turn="t", score=score, label="good")

    assert str(error.value) == "score: a finite number"


@pytest.mark.parametrize(
    "value", ["x", "ö" * 200, "日本語", "한국어", "नमस्ते", "🦜", "שלום", "Ωμέγα"]
)
def test_ordinary_ids_of_any_script_are_accepted(value: str) -> None:
    """And the schema for other languages agrees with the client."""
    Requests().submission(user(conversation_id=value).encode())

    assert re.match(SUBMITTED_ID_PATTERN, value)


@pytest.mark.parametrize("value", LOOKS_ALIKE[:-3])
def test_the_schema_refuses_what_the_client_refuses(value: str) -> None:
    """All but the normal form, which no pattern can tell."""
    assert not re.match(SUBMITTED_ID_PATTERN, value)


@given(st.characters(categories=["Cc", "Zs", "Zl", "Zp"]) | st.sampled_from("{}"))
def test_no_place_in_an_id_takes_a_forbidden_character(character: str) -> None:
    """At the beginning, in the middle, at the end."""
    for value in (character, character + "a", "a" + character, "a" + character + "b"):
        assert refused(user(conversation_id=value)).field == "conversation_id"


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    "fits",
    ["x" * 256 * KIB, "é" * 128 * KIB, "日" * (256 * KIB // 3), "👀" * 64 * KIB],
    ids=["ascii", "two-bytes", "three-bytes", "four-bytes"],
)
def test_a_text_may_have_256_kib_of_utf8(fits: str) -> None:
    """The limit counts bytes, in each place that holds text."""
    over = fits + "xx"

    for template, field in (
        (lambda text: user(text=text), "text"),
        (lambda text: user(text=..., parts=[{"type": "text", "text": text}]), "parts[0].text"),
        (lambda text: of_type("transcription", text=text), "text"),
        (lambda text: of_type("interrupt", heard=text), "heard"),
        (
            lambda text: entries({"role": "user", "content": text}),
            "messages[0].content",
        ),
        (
            lambda text: entries({"role": "user", "content": [{"type": "text", "text": text}]}),
            "messages[0].content[0].text",
        ),
        (
            lambda text: of_type("configure", settings={"system_prompt": text}),
            "settings.system_prompt",
        ),
    ):
        decode(template(fits).encode())
        error = refused(template(over))
        assert (error.field, error.expected) == (field, TEXT_RULE)


def test_a_struct_built_in_python_is_held_to_the_same_limit() -> None:
    """The constructor says so already."""
    with pytest.raises(InvalidMessage, match=TEXT_RULE):
        UserMessage(conversation_id="c", text="é" * 128 * KIB + "x")


@pytest.mark.promise("P9")
@pytest.mark.parametrize("make", [str, str.encode], ids=["str", "bytes"])
def test_a_message_may_have_one_mib(make: Any) -> None:
    """Bytes of the whole message, also where it is given as a string."""
    bare = len(of_type("tool_result", call_id="x", result=""))
    fits = of_type("tool_result", call_id="x", result="x" * (KIB * KIB - bare))
    assert len(fits) == KIB * KIB

    decode(make(fits))
    assert refused(make(fits + " ")).expected == "at most 1048576 bytes, got 1048577"
    multibyte = json.dumps(json.loads(fits), ensure_ascii=False).replace("xx", "é", 1) + " "
    assert len(multibyte) == KIB * KIB
    assert refused(make(multibyte)).expected == "at most 1048576 bytes, got 1048577"


def test_what_a_submission_adds_counts_too() -> None:
    """A worker refuses what is over the limit, so the producer must be told before."""
    bare = len(of_type("tool_result", call_id="x", result=""))
    fits = of_type("tool_result", call_id="x", result="x" * (KIB * KIB - bare - 10)).encode()
    decode(fits)

    with pytest.raises(InvalidMessage, match="message: at most 1048576 bytes"):
        Requests().submission(fits)


def test_metadata_has_at_most_16_pairs() -> None:
    """With keys of 1 to 64 and values of up to 512 characters."""
    pairs = {f"key{n}": "v" * 512 for n in range(15)} | {"k" * 64: ""}
    assert decode(user(metadata=pairs)).metadata == pairs

    assert refused(user(metadata=pairs | {"one": "more"})).field == "metadata"
    assert refused(user(metadata={"a": 1})).field == "metadata[...]"
    assert refused(user(metadata={"a": "v" * 513})).field == "metadata[...]"
    for key in ("", "k" * 65):
        error = refused(user(metadata={key: "v"}))
        assert error.field == "metadata"
        assert error.expected.startswith("keys: ")


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("data", "field", "expected"),
    [
        (user(type="nope"), "type", "one of user_message, transcription, "),
        (user(type=7), "type", "one of user_message"),
        (user(type=...), "type", "one of user_message"),
        ("{}", "type", "one of user_message"),
        (user(conversation_id=...), "conversation_id", "this field is required"),
        (user(conversation_id=7), "conversation_id", "Expected `str`, got `int`"),
        (user(conversation_id=None), "conversation_id", "Expected `str`, got `null`"),
        (user(text=["x"]), "text", "Expected `str`, got `array`"),
        (user(text=...), "text", "exactly one of text and parts"),
        (user(text=""), "text", "exactly one of text and parts"),
        (user(parts=[{"type": "text", "text": "x"}]), "text", "exactly one of text and parts"),
        (user(run="yes"), "run", "Expected `bool`, got `str`"),
        (user(sent_at_ms="now"), "sent_at_ms", "Expected `int`, got `str`"),
        (user(sent_at_ms=1.5), "sent_at_ms", "Expected `int`, got `float`"),
        (user(deadline_at_ms={}), "deadline_at_ms", "Expected `int | null`, got `object`"),
        (user(metadata=[]), "metadata", "Expected `object`, got `array`"),
        (user(when_busy="wait"), "when_busy", "one of enqueue, interrupt, rollback, reject"),
        (user(when_busy=None), "when_busy", "Expected `str`, got `null`"),
        (user(traceparent="0" * 257), "traceparent", "Expected `str` of length <= 256"),
        (user(text=..., parts=[{"type": "file"}]), "parts[0].type", "one of text, image_url"),
        (user(text=..., parts=[{"text": "x"}]), "parts[0].type", "this field is required"),
        (
            user(text=..., parts=[{"type": "image_url", "image_url": {"url": "file:///x"}}]),
            "parts[0].image_url.url",
            "an http(s) URL or a data:image/ URL",
        ),
        (
            user(
                text=...,
                parts=[{"type": "image_url", "image_url": {"url": "https://x", "detail": "max"}}],
            ),
            "parts[0].image_url.detail",
            "one of auto, low, high",
        ),
        (of_type("tool_result"), "call_id", "this field is required"),
        (of_type("tool_result", call_id="x" * 201), "call_id", "Expected `str` of length <= 200"),
        (of_type("context_append"), "messages", "this field is required"),
        (entries({"role": "robot"}), "messages[0].role", "one of system, user, assistant, tool"),
        (entries({}), "messages[0].role", "this field is required"),
        (entries({"role": "user"}), "messages[0].content", "this field is required"),
        (
            entries({"role": "user", "content": "x"}, {"role": "assistant"}),
            "messages[1].content",
            "text, parts or tool_calls",
        ),
        (
            entries(
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "1", "type": "x", "function": {"name": "f", "arguments": ""}}
                    ],
                }
            ),
            "messages[0].tool_calls[0].type",
            "function",
        ),
        (of_type("configure"), "settings", "this field is required"),
        (of_type("configure", settings={"model": "a b"}), "settings.model", ID_RULE),
        (of_type("configure", settings={"model": "x" * 201}), "settings.model", ID_RULE),
        (
            of_type("configure", settings={"temperature": 2.1}),
            "settings.temperature",
            "Expected `float` <= 2.0",
        ),
        (
            of_type("configure", settings={"reasoning_effort": "max"}),
            "settings.reasoning_effort",
            "one of none, low, medium, high, xhigh",
        ),
        (
            of_type("configure", settings={"tools": [{"type": "x", "function": {"name": "f"}}]}),
            "settings.tools[0].type",
            "function",
        ),
        (
            of_type("configure", settings={"tools": [{"function": {"name": "a b"}}]}),
            "settings.tools[0].function.name",
            "letters, digits, `_`, `.` and `-`",
        ),
        (of_type("feedback", score=1), "of_turn", "this field is required"),
        (feedback(of_turn="a b", score=1), "of_turn", ID_RULE),
        (feedback(), "score", "one of score, label and explanation at least"),
        (feedback(label="x" * 65), "label", "Expected `str` of length <= 64"),
        (feedback(label=""), "label", "Expected `str` of length >= 1"),
        (feedback(score=1, name=""), "name", "Expected `str` of length >= 1"),
        (feedback(score=1, name="x" * 65), "name", "Expected `str` of length <= 64"),
        (feedback(score=True), "score", "Expected `float | null`, got `bool`"),
        (feedback(explanation="x" * 4_097), "explanation", "Expected `str` of length <= 4096"),
        ("[]", "message", "Expected `object`, got `array`"),
        ("null", "message", "Expected `object`, got `null`"),
        ('"user_message"', "message", "Expected `object`, got `str`"),
    ],
)
def test_a_wrong_field_is_named_with_what_it_takes(data: str, field: str, expected: str) -> None:
    """The producer can mend the message without reading our source."""
    error = refused(data)

    assert error.field == field
    assert error.expected.startswith(expected)
    assert str(error) == f"{error.field}: {error.expected}"
    assert isinstance(error, TurnlineError)


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"",
            b" ",
            b"hello",
            b"{",
            user() + "{}",
            b"{'type':'user_message'}",
            b"\xff\xfe",
            b"\x00",
        ),
        of_type("tool_result", call_id="x", result=math.nan),
        of_type("tool_result", call_id="x", result=math.inf),
        user().encode("utf-16"),
        user().encode().replace(b"hi", b"\xed\xa0\x80"),
        user().encode().replace(b"hi", b"\xc3"),
        user().replace("hi", r"\ud800"),
        user().replace("hi", "\ud800"),
        user().replace("hi", "a\nb"),
    ],
)
def test_what_is_not_json_in_utf8_is_refused(data: bytes | str) -> None:
    """NaN, lone surrogates and raw control characters are not JSON."""
    assert str(refused(data)) == "message: one JSON object in UTF-8"


@pytest.mark.parametrize("bomb", ["[" * 500_000, '{"a":' * 150_000, "[" * 400_000 + "]" * 400_000])
def test_deep_nesting_is_refused(bomb: str) -> None:
    """Neither the parser's stack nor ours overflows."""
    data = of_type("tool_result", call_id="x", result=0).replace("0", bomb)

    assert str(refused(data)) == "message: JSON nested less deeply"


def test_a_value_nested_too_deeply_is_refused_when_written() -> None:
    """The same for values built in Python."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]

    with pytest.raises(InvalidMessage, match="values that JSON can express"):
        validated(ToolResult(conversation_id="c", call_id="x", result=value))
    while value:  # taken apart from the outside, since freeing recurses
        value = value.pop()


@pytest.mark.parametrize("value", [object(), "\ud800", {1, object()}, b"\xff".join])
def test_what_json_cannot_express_is_refused_when_written(value: Any) -> None:
    """An error of ours, not of the encoder."""
    with pytest.raises(InvalidMessage, match="values that JSON can express"):
        validated(ToolResult(conversation_id="c", call_id="x", result=value))


@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_not_a_number_does_not_clear_a_setting(name: str) -> None:
    """JSON has no NaN; what stands for it would mean: clear the setting."""
    with pytest.raises(InvalidMessage, match=name):
        configure_message("c", {name: math.nan})
    with pytest.raises(InvalidMessage, match=name):
        SettingsChange(**{name: math.nan})


def test_structs_are_checked_before_they_are_sent() -> None:
    """Constructors do not validate; `validated` does, by the same rules and words."""
    message = UserMessage(conversation_id="a b", text="hi")

    with pytest.raises(InvalidMessage, match=re.escape(f"conversation_id: {ID_RULE}")):
        validated(message)


def test_unknown_fields_are_ignored() -> None:
    """A newer producer may send more than this version knows."""
    message = decode(user(turn_id="t", later={"x": 1}, parts=[]))

    assert message == UserMessage(conversation_id="c", turn_id="t", text="hi")


def test_of_a_repeated_key_the_last_counts_everywhere() -> None:
    """Nobody after the decoder sees the first: the message is encoded anew."""
    data = b'{"type":"user_message","conversation_id":"a","conversation_id":"b","text":"x"}'

    submission = Requests().submission(data)

    assert submission.conversation_id == "b"
    assert b'"a"' not in submission.call.args[2]


def test_a_message_without_an_id_gets_one() -> None:
    """A fresh one each time."""
    assert len({decode(user()).turn_id for _ in range(10)}) == 10


def test_unknown_settings_are_refused_by_name() -> None:
    """The names that exist are listed."""
    with pytest.raises(InvalidMessage, match=r"settings\.temprature: one of system_prompt, model,"):
        configure_message("c", {"temprature": 1})


MARKER = "XyZZy-Geheimnis-4711"
WRONG = [
    *(MARKER, {MARKER: MARKER}, {"type": MARKER}, {"role": MARKER}, [MARKER], [[MARKER]]),
    *([{"type": MARKER, "text": MARKER}], [{"role": "user", "content": {MARKER: 1}}]),
    *({"url": MARKER}, {"name": MARKER + " "}, MARKER + "\n", MARKER * 20_000, MARKER + " {x}"),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    found = [path] if path else []
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if is_list(value) else ()
    )
    for key, child in children:
        found += places(child, (*path, key))
    return found


def is_list(value: Any) -> bool:
    return isinstance(value, list)


@pytest.mark.promise("P10")
@given(st.data())
def test_errors_never_repeat_what_was_sent(data: st.DataObject) -> None:
    """A marker put anywhere into any message is not in the error, its fields or its traceback."""
    message: Inbound = data.draw(st.sampled_from([*INBOUND.values()]))
    plain = copy.deepcopy(msgspec.json.decode(encode(message)))
    *parents, last = data.draw(st.sampled_from(places(plain)))
    holder = plain
    for key in parents:
        holder = holder[key]
    wrong = data.draw(st.sampled_from(WRONG))
    if isinstance(holder, dict) and data.draw(st.booleans()):
        holder[MARKER + " "] = wrong
    else:
        holder[last] = wrong

    errors = []
    for sent in (json.dumps(plain), json.dumps(plain)[:-1], json.dumps(plain).replace('"', "'")):
        try:
            decode(sent)
        except InvalidMessage as error:
            errors.append(error)

    for error in errors:
        shown = "".join(traceback.format_exception(error)) + error.field + repr(error)
        assert MARKER not in shown
        assert error.field
