"""What OpenAI-compatible servers send for the same reply, over real bytes: all of it is used."""

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from tests.integration.services.wire import (
    CLOSE_HEAD,
    END_OF_BODY,
    STREAM_HEAD,
    Connection,
    Script,
    call,
    chunk,
    delta,
    failed,
    finish,
    frame,
    ran,
    sse,
    turn,
    usage,
)
from turnline.contracts.conversation import check_visible
from turnline.worker.errors import (
    ProviderUnavailable,
    ReplyTooLarge,
    Retryable,
    Truncated,
    UnusableReply,
)
from turnline.worker.pipeline.functions import FunctionCallParams
from turnline.worker.pipeline.stream_events import ProviderUsage
from turnline.worker.services.transport import TimeLimits

DONE = b"[DONE]"
COUNTED = ProviderUsage(11, 7, 0, 0, 18)
END = (finish(), usage(11, 7), DONE)


def choice(**fields: Any) -> bytes:
    """A chunk whose choice has these fields."""
    return frame(id="r-1", model="grok-4.3", choices=[fields])


def text(*parts: Any) -> list[bytes]:
    """Deltas with these contents."""
    return [delta(content=part) for part in parts]


class Shape(NamedTuple):
    """What is sent, and what has to come of it."""

    body: bytes
    text: str = "Hello world"
    usage: ProviderUsage | None = COUNTED
    calls: Sequence[tuple[str, Any]] = ()
    finish: str | None = "stop"


def message(content: Any, **fields: Any) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": content}, **fields}


WHOLE = frame(
    id="r-1",
    object="chat.completion",
    model="grok-4.3",
    choices=[message("Hello world", finish_reason="stop")],
    usage={"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
)
COUNTS = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}

SHAPES: dict[str, Shape] = {
    "a list of parts": Shape(
        sse(
            *text([{"type": "text", "text": "Hello"}]),
            *text([{"type": "text", "text": " world", "annotations": [{"url": "https://x"}]}]),
            *END,
        )
    ),
    "parts of all kinds": Shape(
        sse(
            *text(["Hel", {"text": "lo"}, {"type": "output_text", "text": " "}, None, ""]),
            *text([{"content": [{"type": "text", "text": "wor"}]}, {"text": {"value": "ld"}}]),
            *END,
        )
    ),
    "an object": Shape(sse(*text({"type": "text", "text": "Hello"}, {"parts": [" world"]}), *END)),
    "thinking parts": Shape(
        sse(
            *text([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
            *text([{"type": "text", "text": "Hello world"}]),
            *text([{"type": "reference", "reference_ids": [1]}]),
            *END,
        )
    ),
    "a refusal part": Shape(
        sse(*text([{"type": "refusal", "refusal": "Hello"}]), delta(refusal=" world"), *END)
    ),
    "numbers": Shape(sse(*text("Hello ", 4, 2), *END), "Hello 42"),
    "a delta that is a text": Shape(
        sse(choice(index=0, delta="Hello"), choice(index=0, delta=" world"), *END)
    ),
    "text in the choice": Shape(
        sse(choice(index=0, text="Hello"), choice(index=0, text=" world"), *END)
    ),
    "text beside the same delta": Shape(
        sse(
            choice(index=0, delta={"content": "Hello"}, text="Hello"),
            choice(index=0, delta={"content": " world"}, text=""),
            *END,
        )
    ),
    "message in place of delta": Shape(
        sse(choice(**message("Hello")), choice(**message(" world")), *END)
    ),
    "message that grows": Shape(
        sse(choice(**message("Hel")), choice(**message("Hello")), choice(**message("Hello world")))
        + sse(choice(**message("Hello world", finish_reason="stop")), usage(11, 7), DONE)
    ),
    "message that grows beside deltas": Shape(
        sse(
            choice(index=0, delta={"content": "Hello"}, message={"content": "Hello"}),
            choice(index=0, delta={"content": " world"}, message={"content": "Hello world"}),
            *END,
        )
    ),
    "the whole message at the end": Shape(
        sse(
            *text("Hello", " world"),
            choice(**message("Hello world", finish_reason="stop")),
            usage(11, 7),
            DONE,
        )
    ),
    "the whole message at the end, trimmed": Shape(
        sse(
            delta(role="assistant"),
            *text("Hello", " world", "\n"),
            choice(**message("Hello world", finish_reason="stop")),
            usage(11, 7),
            DONE,
        )
    ),
    "a whole message with more": Shape(
        sse(*text("Hello"), choice(**message("Hello world", finish_reason="stop")), usage(11, 7))
        + sse(DONE)
    ),
    "a whole completion as the only event": Shape(sse(WHOLE, DONE)),
    "a whole completion and nothing else": Shape(sse(WHOLE)),
    "JSON in place of a stream": Shape(WHOLE),
    "JSON in place of a stream, and an end of one": Shape(WHOLE + b"\n\n" + sse(DONE)),
    "JSON without a finish reason": Shape(
        frame(choices=[message("Hello world")], usage=COUNTS), finish=None
    ),
    "several choices": Shape(
        sse(
            choice(index=1, delta={"content": "Bye"}),
            *text("Hello"),
            frame(
                choices=[
                    {"index": 1, "delta": {"content": " moon"}, "finish_reason": "length"},
                    {"index": 0, "delta": {"content": " world"}},
                ]
            ),
            choice(index=1, delta={"content": "!"}),
            *END,
        )
    ),
    "an index in quotes": Shape(sse(choice(index="0", delta={"content": "Hello world"}), *END)),
    "text after a finish reason": Shape(
        sse(*text("Hello"), finish(), *text(" world"), usage(11, 7), DONE)
    ),
    "text after usage": Shape(
        sse(*text("Hello"), finish(), usage(11, 7), *text(" world"), finish(), DONE)
    ),
    "no finish reason": Shape(sse(*text("Hello", " world"), usage(11, 7), DONE), finish=None),
    "no finish reason and no usage": Shape(
        sse(*text("Hello", " world"), DONE), usage=None, finish=None
    ),
    "no finish reason and no [DONE]": Shape(
        sse(*text("Hello", " world"), usage(11, 7)), finish=None
    ),
    "an empty finish reason in every chunk": Shape(
        sse(
            choice(index=0, delta={"role": "assistant"}, finish_reason=""),
            choice(index=0, delta={"content": "Hello"}, finish_reason=""),
            choice(index=0, delta={"content": " world"}, finish_reason="null"),
            *END,
        )
    ),
    "half a character in each of two chunks": Shape(
        sse(
            b'{"choices":[{"index":0,"delta":{"content":"a\\ud83c"}}]}',
            b'{"choices":[{"index":0,"delta":{"content":"\\udf75b"}}]}',
            b'{"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}',
            *END,
        ),
        "a🍵b\ufffd",
    ),
    "reasoning under other names": Shape(
        sse(
            delta(reasoning="hm"),
            delta(reasoning_details=[{"type": "reasoning.text", "text": "hm"}], content=""),
            delta(thinking="hm"),
            *text("Hello world"),
            *END,
        )
    ),
    "usage in the choice": Shape(
        sse(*text("Hello world"), choice(index=0, delta={}, finish_reason="stop", usage=COUNTS))
        + sse(DONE)
    ),
    "usage of Groq": Shape(
        sse(*text("Hello world"), finish(), frame(choices=[], x_groq={"usage": COUNTS}), DONE)
    ),
    "usage under other names": Shape(
        sse(*text("Hello world"), finish())
        + sse(frame(choices=[], usage={"input_tokens": 11, "output_tokens": 7.0}), DONE)
    ),
    "usage in quotes": Shape(
        sse(*text("Hello world"), finish())
        + sse(frame(choices=[], usage={"prompt_tokens": "11", "completion_tokens": "7"}), DONE)
    ),
    "usage that grows": Shape(
        sse(
            frame(choices=[{"delta": {"content": "Hello"}}], usage={"prompt_tokens": 11}),
            frame(
                choices=[{"delta": {"content": " world"}, "finish_reason": "stop"}],
                usage={"completion_tokens": 7},
            ),
            DONE,
        )
    ),
    "usage that is no number": Shape(
        sse(*text("Hello world"), finish())
        + sse(frame(choices=[], usage={"prompt_tokens": True, "completion_tokens": -7}), DONE),
        usage=None,
    ),
    "all calls under index 0": Shape(
        sse(
            delta(
                tool_calls=[{"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}]
            ),
            delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a":1}'}}]),
            delta(
                tool_calls=[{"index": 0, "id": "c2", "function": {"name": "f", "arguments": ""}}]
            ),
            delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a":2}'}}]),
            *END,
        ),
        "",
        calls=[("f", {"a": 1}), ("f", {"a": 2})],
    ),
    "function_call": Shape(
        sse(
            delta(function_call={"name": "f", "arguments": '{"a"'}),
            delta(function_call={"arguments": ":1}"}),
            *END,
        ),
        "",
        calls=[("f", {"a": 1})],
    ),
    "calls in a whole completion": Shape(
        frame(
            choices=[
                {
                    "message": {
                        "content": "Hello world",
                        "tool_calls": [
                            {"function": {"name": "f", "arguments": {"a": 1}}},
                            {"id": "c", "name": "f", "arguments": '{"a":2}'},
                            {"id": "", "function": None, "name": "f"},
                        ],
                    },
                    "finish_reason": "tool_calls",
                }
            ],
            usage=COUNTS,
        ),
        calls=[("f", {"a": 1}), ("f", {"a": 2}), ("f", {})],
    ),
    "calls again in the whole message": Shape(
        sse(
            delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f"}}]),
            delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a":1}'}}]),
            choice(
                index=0,
                message={
                    "content": None,
                    "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"a": 1}}}],
                },
                finish_reason="tool_calls",
            ),
            usage(11, 7),
            DONE,
        ),
        "",
        calls=[("f", {"a": 1})],
    ),
}
SHAPES |= {
    "events without blank lines": Shape(
        sse(*text("Hello", " world"), *END).replace(b"\n\n", b"\n"),
    ),
    "a payload without a field's name, and one that is indented": Shape(
        b": hi\n\n%b\n\n data: %b\n\n" % (*text("Hello"), *text(" world")) + sse(*END)
    ),
    "numbers that JSON does not have, beside the text": Shape(
        sse(
            b'{"choices":[{"index":0,"delta":{"content":"Hello"},"logprobs":{"x":-Infinity}}]}',
            b'{"choices":[{"index":0,"delta":{"content":" world"},"logprobs":{"x":NaN}}]}',
            *END,
        )
    ),
    "a bare tab in the text": Shape(
        sse(b'{"choices":[{"index":0,"delta":{"content":"Hello\tworld"}}]}', *END), "Hello\tworld"
    ),
    "errors that are none": Shape(
        sse(
            frame(error={}, choices=[{"delta": {"content": "Hello"}}]),
            frame(error={"code": None, "message": ""}, choices=[{"delta": {"content": " world"}}]),
            frame(code=200, message="success", error="", choices=[], usage=COUNTS),
            frame(choices=[], base_resp={"status_code": 0, "status_msg": "success"}),
            finish(),
            DONE,
        )
    ),
    "a choice in pieces": Shape(
        sse(
            frame(
                choices=[
                    {"index": 0, "delta": {"content": "Hello"}},
                    {"index": 0, "delta": {"content": " world"}},
                    {"index": 0, "delta": {"tool_calls": [call(0, "c", "f", "{}")]}},
                ]
            ),
            *END,
        ),
        calls=[("f", {})],
    ),
    "a message in a delta": Shape(
        sse(delta(message={"content": "Hello"}), delta(message={"content": " world"}), *END)
    ),
    "calls among the parts of a content": Shape(
        sse(
            *text([{"type": "text", "text": "Hello"}]),
            *text([{"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}]),
            *text([{"text": " world", "functionCall": {"name": "g", "args": {}}}]),
            *text({"parts": [{"functionCall": {"name": "f", "args": {"a": 2}}}]}),
            *END,
        ),
        calls=[("f", {"a": 1}), ("g", {}), ("f", {"a": 2})],
    ),
    "calls in the choice": Shape(
        sse(
            choice(index=0, delta={"content": "Hello world"}, tool_calls=[call(0, "c", "f", "{}")]),
            choice(index=0, delta={}, tool_calls=[call(1, "d", "f", '{"a":1}')]),
            *END,
        ),
        calls=[("f", {}), ("f", {"a": 1})],
    ),
    "calls by number, and in camel case": Shape(
        sse(
            delta(tool_calls={"0": call(0, "c", "f", "{}")}),
            delta(toolCalls=[call(1, "d", "f", '{"a":1}')]),
            *END,
        ),
        "",
        calls=[("f", {}), ("f", {"a": 1})],
    ),
    "one id for all calls": Shape(
        sse(
            *(delta(tool_calls=[call(0, "c", "f", f'{{"a":{n}}}')]) for n in (1, 2, 2)),
            delta(tool_calls=[call(0, "c", "g", '{"a":2}')]),
            *END,
        ),
        "",
        calls=[("f", {"a": 1}), ("f", {"a": 2}), ("g", {"a": 2})],
    ),
    "a name that begins with another one's": Shape(
        sse(
            *(
                delta(tool_calls=[{"index": 0, "function": {"name": n, "arguments": '{"a":1}'}}])
                for n in ("f", "fg")
            ),
            *END,
        ),
        "",
        calls=[("f", {"a": 1}), ("fg", {"a": 1})],
    ),
    "arguments that begin as an empty object": Shape(
        sse(
            *(delta(tool_calls=[call(0, "c", "f", part)]) for part in ("{}", '{"a"', ":1}")),
            *END,
        ),
        "",
        calls=[("f", {"a": 1})],
    ),
}


def body(data: bytes, *, kind: str = "text/event-stream") -> Script:
    """Answer with these bytes and a content-length, as most servers and proxies do not."""

    async def run(connection: Connection) -> None:
        await connection.answer(200, data, kind)

    return run


@pytest.mark.parametrize("name", SHAPES)
async def test_a_reply_in_any_shape(name: str) -> None:
    """Text, calls and usage are taken from where they stand, once."""
    shape = SHAPES[name]
    seen: list[tuple[str, Any]] = []

    async def handler(params: FunctionCallParams) -> None:
        seen.append((params.function_name, params.arguments))
        await params.result_callback("")  # an empty result asks the model for nothing more

    async with turn(body(shape.body)) as (run, server):
        for name in ("f", "g", "fg"):
            run.service.register_function(name, handler)
        await run.run()

        made = run.service.calls[0]
        said = [message.get("content", "") for message in run.said]
        assert said[:1] == ([shape.text] if shape.text else said[:1])
        assert not shape.calls or seen == [*shape.calls]
        assert (made.usage, made.outcome) == (shape.usage, "completed")
        assert len(server.requests) == 1
        assert shape.calls or made.finish_reason == shape.finish


UNREADABLE: dict[str, bytes] = {
    "a flag as content": sse(*text("Hello", True), *END),
    "a broken number as content": sse(*text("Hello", 1.5), *END),
    "a part of no known shape": sse(*text("Hello", [{"type": "card", "title": "x"}]), *END),
    "an image": sse(*text([{"type": "image_url", "image_url": {"url": "https://x"}}]), *END),
    "two texts": sse(choice(delta={"content": "Hello"}, text="Bye"), *END),
    "a message that contradicts": sse(*text("Hello"), choice(**message("Bye")), *END),
    "text in an unknown field only": sse(delta(answer="Hello"), *END),
    "the second choice only": sse(choice(index=1, delta={"content": "Hello"}), *END),
    "an interface of another kind": sse(frame(response="Hello"), frame(response="!"), *END),
    "calls of no known shape": sse(delta(tool_calls=["f"]), *END),
    "choices of no known shape": sse(frame(choices=["Hello"]), *END),
    "broken text after a finish reason in the same chunk": sse(
        choice(delta={"content": "Hello"}, finish_reason="stop"), b'{"choices":[{"del', DONE
    ),
    "a body in lines of JSON": frame(message={"content": "a"}) + b"\n" + frame(done=True),
    "JSON of another kind": frame(answer="Hello"),
    "calls that did not come": sse(delta(role="assistant"), finish("tool_calls"), DONE),
    "a failed call's reason": sse(choice(delta={}, finish_reason="MALFORMED_FUNCTION_CALL"), DONE),
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_what_cannot_be_understood_fails_by_name(name: str) -> None:
    """A reply is never completed without text that was sent."""
    async with turn(body(UNREADABLE[name])) as (run, _):
        with pytest.raises(UnusableReply) as caught:
            await run.run()

        assert caught.value.code in {"malformed_stream", "not_a_stream"}
        assert run.service.calls[0].outcome == "failed"


BROKEN_OFF: dict[str, bytes] = {
    "Groq": sse(frame(choices=[], x_groq={"error": "over_capacity"})),
    "Groq, with a finish reason": sse(
        choice(index=0, delta={}, finish_reason="stop")[:-1] + b',"x_groq":{"error":"over"}}'
    ),
    "MiniMax": sse(frame(choices=None, base_resp={"status_code": 1000, "status_msg": "unknown"})),
    "Baidu": sse(frame(error_code=336100, error_msg="busy")),
    "FastAPI": sse(frame(detail="Internal error")),
    "vLLM": sse(frame(object="error", message="boom", code=None)),
    "a list": sse(frame(errors=[{"message": "boom"}])),
    "a flag": sse(frame(success=False, message="boom")),
    "llama.cpp": b'error: {"code":500,"message":"boom","type":"server_error"}\n\n',
    "a line of JSON": b'{"error":{"message":"boom","code":500}}\n\n',
    "words": b"event: error\ndata: boom\n\n",
}


@pytest.mark.parametrize("name", BROKEN_OFF)
async def test_an_error_in_the_middle_is_never_taken_for_the_end(name: str) -> None:
    """However a server says that it broke off, what came before is not a whole reply."""
    async with turn(body(sse(*text("Hello")) + BROKEN_OFF[name] + sse(DONE))) as (run, _):
        with pytest.raises(Retryable) as caught:
            await run.run()

        assert caught.value.code in {"reply_error", "stream_error", "rate_limited"}
        assert run.service.calls[0].outcome == "failed"


CUT: dict[str, tuple[bytes, ...]] = {
    "after text": (sse(*text("Hello")),),
    "after usage with text": (
        sse(frame(choices=[{"delta": {"content": "Hello"}}], usage={"prompt_tokens": 5})),
    ),
    "with an empty finish reason in every chunk": (
        sse(choice(delta={"content": "Hello"}, finish_reason="")),
    ),
    "after finish reasons that meant nothing": (
        sse(choice(delta={"content": "Hello"}, finish_reason="stop"), *text(" wor")),
    ),
    "half a call": (sse(delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f"}}])),),
}


@pytest.mark.parametrize("name", CUT)
async def test_a_cut_reply_is_not_taken_for_whole(name: str) -> None:
    """A body that ends without what ends a reply is cut off."""

    async def cut(connection: Connection) -> None:
        await connection.send(CLOSE_HEAD + b"".join(CUT[name]))
        connection.fin()

    await failed(Truncated, cut)


async def test_a_finish_reason_with_every_text_ends_nothing() -> None:
    """With finish reason and usage in every chunk, and time between, all chunks are read."""
    counts = {"prompt_tokens": 11, "completion_tokens": 7}

    async def slow(connection: Connection) -> None:
        await connection.send(STREAM_HEAD)
        for part in ("Hello", " world", " after a pause"):
            fields = {"delta": {"content": part}, "finish_reason": "stop"}
            data = frame(choices=[{"index": 0, **fields}], usage=counts)
            await connection.send(chunk(sse(data)))
            await asyncio.sleep(0.6)
        await connection.send(chunk(sse(DONE)) + END_OF_BODY)

    run, _ = await ran(slow, limits=TimeLimits(tail_s=0.3))

    assert run.said == [{"role": "assistant", "content": "Hello world after a pause"}]


async def test_a_connection_lost_between_such_texts_is_a_failure() -> None:
    """Where finish reasons mean nothing, only the end of the response is one."""

    async def lost(connection: Connection) -> None:
        fields = {"delta": {"content": "Hello"}, "finish_reason": "stop"}
        data = frame(choices=[{"index": 0, **fields}])
        await connection.send(STREAM_HEAD + chunk(sse(data, data)))
        await asyncio.sleep(0.05)
        connection.rst()

    await failed(ProviderUnavailable, lost)


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


ARGUMENTS = {
    "nested 3,000 deep": nested(3_000),
    "nested 300 deep": nested(300),
    "lists 101 deep": '{"a":' + "[" * 100 + "]" * 100 + "}",
    "NaN": '{"a":NaN}',
    "Infinity": '{"a":1e999}',
    "a huge number": '{"a":' + "9" * 5_000 + "}",
    "half a character": '{"a":"\\ud83d"}',
    "a list": "[1]",
    "a text": '"x"',
    "cut": '{"a":',
    "two objects": '{"a":1}{"a":2}',
    "a mark": '\ufeff{"a":1}',
}


@pytest.mark.parametrize("name", ARGUMENTS)
async def test_arguments_that_are_no_object_are_the_models_to_mend(name: str) -> None:
    """The call's result says so, and what goes back to the provider is valid."""
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": ARGUMENTS[name]}}
    first = body(sse(delta(tool_calls=[call]), *END))
    async with turn(first, body(sse(*text("ok"), *END))) as (run, server):

        async def handler(params: FunctionCallParams) -> None:
            raise AssertionError

        run.service.register_function("f", handler)
        await run.run()

        sent = server.requests[1].body["messages"]
        assert json.loads(sent[1]["tool_calls"][0]["function"]["arguments"]) == {}
        assert json.loads(sent[2]["content"]) == {
            "error": "The arguments are not a valid JSON object."
        }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("", {}), (" \n", {}), ('{"a":1,"a":2}', {"a": 2}), (nested(99), json.loads(nested(99)))],
)
async def test_arguments_that_are_an_object_after_all(arguments: str, expected: Any) -> None:
    """None at all are an empty object; of a key that comes twice the last one counts."""
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": arguments}}
    seen: list[Any] = []

    async def handler(params: FunctionCallParams) -> None:
        seen.append(params.arguments)
        await params.result_callback("")

    async with turn(body(sse(delta(tool_calls=[call]), *END))) as (run, _):
        run.service.register_function("f", handler)
        await run.run()

    assert seen == [expected]


@pytest.mark.parametrize("call_id", ["x" * 100_000, "a\nb", "\u200b", "a\u3164b", "a\ufe0f", ""])
async def test_ids_and_names_can_be_read_back(call_id: str) -> None:
    """An id that the contract cannot hold gets another one; a name is cut to what names are."""
    name = "get weather\n" * 10_000
    call = {"index": 0, "id": call_id, "function": {"name": name, "arguments": "{}"}}
    _, server = await ran(body(sse(delta(tool_calls=[call]), *END)), body(sse(*text("ok"), *END)))

    made = server.requests[1].body["messages"][1]["tool_calls"][0]
    assert 0 < len(made["id"]) <= 200
    assert made["id"].isprintable()
    check_visible(made["id"], "call_id")  # else no producer could send its result
    assert made["function"]["name"] == ("get_weather_" * 10)[:64]


def compressed(data: bytes, encoding: str) -> Script:
    """Answer with these bytes in that encoding."""

    async def run(connection: Connection) -> None:
        await connection.answer(200, data, "text/event-stream", content_encoding=encoding)

    return run


RAW = zlib.compressobj(wbits=-zlib.MAX_WBITS)
HELLO = sse(*text("Hello world"), *END)
ENCODED = {
    "gzip": ("gzip", gzip.compress(HELLO)),
    "gzip in two members": ("gzip", gzip.compress(HELLO[:50]) + gzip.compress(HELLO[50:])),
    "deflate": ("deflate", zlib.compress(HELLO)),
    "raw deflate": ("deflate", RAW.compress(HELLO) + RAW.flush()),
}


@pytest.mark.parametrize("name", ENCODED)
async def test_a_compressed_reply(name: str) -> None:
    """What the request says that it takes is taken."""
    encoding, data = ENCODED[name]
    run, _ = await ran(compressed(data, encoding))

    assert run.said == [{"role": "assistant", "content": "Hello world"}]


async def test_an_encoding_that_was_not_asked_for_is_refused() -> None:
    """It is never taken apart, however much may be in it."""
    await failed(UnusableReply, compressed(b"x" * 100, "br"))


@pytest.mark.parametrize("status", [200, 500])
async def test_a_few_bytes_that_stand_for_many_are_taken_apart_in_pieces(status: int) -> None:
    """100 MB in 100 KB end at the limit of what says nothing, and never stand in memory."""
    comments = b": keepalive\n\n" * 200_000 + (b": " + b"x" * 60_000 + b"\n\n") * 1_700
    bomb = gzip.compress(comments)

    async def run_it(connection: Connection) -> None:
        await connection.answer(status, bomb, "text/event-stream", content_encoding="gzip")

    async with turn(run_it) as (run, _):
        tracemalloc.start()
        with pytest.raises(ReplyTooLarge if status == 200 else ProviderUnavailable):
            await run.run()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert most < 20e6
