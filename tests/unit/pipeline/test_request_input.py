"""The input of `/v1/responses`: what each entry becomes; requests grow at their end only."""

import asyncio
import copy
import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.responses_events import reasoning, web_search
from turnline.contracts.conversation import (
    AssistantEntry,
    check_reply_items,
    decode_context_entry,
)
from turnline.worker.pipeline.aggregators import (
    LLMAssistantAggregatorParams,
    LLMAssistantContextAggregator,
)
from turnline.worker.pipeline.context import Message, OpenAILLMContext
from turnline.worker.pipeline.frames import (
    Frame,
    FunctionCallFromLLM,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    FunctionCallsStartedFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    StartInterruptionFrame,
)
from turnline.worker.pipeline.processor import DOWNSTREAM
from turnline.worker.pipeline.reply_frames import LLMCitationFrame, LLMReplyItemFrame
from turnline.worker.pipeline.reply_items import canonical_item

MODEL, OTHER = "grok-4.3", "grok-9"
R, R2, WEB = reasoning("q3J", "Hm."), reasoning("z9"), web_search()
CALLS = [
    {"id": f"c{n}", "function": {"name": f"f{n}", "arguments": f'{{"n": {n}}}'}, "type": "function"}
    for n in range(3)
]
SENT_CALLS = [
    {"type": "function_call", "call_id": f"c{n}", "name": f"f{n}", "arguments": f'{{"n": {n}}}'}
    for n in range(3)
]


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def with_items(*items: tuple[int, int, Any], model: str = MODEL, **message: Any) -> Message:
    kept = [{"chars": chars, "calls": calls, "item": item} for chars, calls, item in items]
    return {"role": "assistant", **message, "reply_items": {"model": model, "items": kept}}


def input_bytes(context: OpenAILLMContext, model: str = MODEL) -> bytes:
    return context.encoded_request_input(lambda name: name == model)


def sent(*messages: Message, model: str = MODEL) -> list[Any]:
    """The input for messages, which is the same whether they were stored or just added."""
    stored = OpenAILLMContext.from_stored([*map(msgspec.json.encode, messages)])
    added = OpenAILLMContext(messages)
    as_stored = input_bytes(stored, model)
    assert as_stored == input_bytes(added, model)
    stored.messages.append({"role": "user", "content": "x"})  # decoded by now
    stored.messages.pop()
    assert as_stored == input_bytes(stored, model)
    return json.loads(as_stored)


ENTRIES: dict[str, tuple[Message, list[Any]]] = {
    "user": (
        {"role": "user", "content": "Grüße 👋"},
        [{"role": "user", "content": "Grüße 👋"}],
    ),
    "user_with_a_name": (
        {"role": "user", "name": "bob", "content": "hi"},
        [{"role": "user", "name": "bob", "content": "hi"}],
    ),
    "images": (
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "https://x/a.png"}},
                {
                    "type": "image_url",
                    "image_url": {"url": "data:image/png;base64,AA", "detail": "low"},
                },
                {"type": "file", "file": {"file_id": "f"}},
            ],
        },
        [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "look"},
                    {"type": "input_image", "image_url": "https://x/a.png"},
                    {
                        "type": "input_image",
                        "image_url": "data:image/png;base64,AA",
                        "detail": "low",
                    },
                    {"type": "file", "file": {"file_id": "f"}},
                ],
            }
        ],
    ),
    "system": ({"role": "system", "content": "s"}, [{"role": "system", "content": "s"}]),
    "system_in_parts": (
        {
            "role": "system",
            "content": [{"type": "text", "text": "s"}, {"type": "text", "text": "t"}],
        },
        [{"role": "system", "content": "st"}],
    ),
    "assistant": (said("a"), [said("a")]),
    "assistant_in_parts": (
        said([{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]),  # type: ignore[arg-type]
        [said("ab")],
    ),
    "nothing": ({"role": "assistant", "content": None}, []),
    "empty": (said(""), []),
    "space": (said(" "), []),
    "calls": ({"role": "assistant", "tool_calls": CALLS[:2]}, SENT_CALLS[:2]),
    "calls_and_null": (
        {"role": "assistant", "content": None, "tool_calls": CALLS[:1]},
        SENT_CALLS[:1],
    ),
    "calls_and_space": (
        {"role": "assistant", "content": " ", "tool_calls": CALLS[:1]},
        SENT_CALLS[:1],
    ),
    "text_and_calls": (
        {"role": "assistant", "content": "a", "tool_calls": CALLS[:2]},
        [said("a"), *SENT_CALLS[:2]],
    ),
    "result": (
        {"role": "tool", "content": '"ok"', "tool_call_id": "c1"},
        [{"type": "function_call_output", "call_id": "c1", "output": '"ok"'}],
    ),
    "result_in_parts": (
        {
            "role": "tool",
            "content": [{"type": "image_url", "image_url": {"url": "https://x"}}],
            "tool_call_id": "c1",
        },
        [
            {
                "type": "function_call_output",
                "call_id": "c1",
                "output": [{"type": "input_image", "image_url": "https://x"}],
            }
        ],
    ),
    "reasoning_first": (with_items((0, 0, R), content="a"), [R, said("a")]),
    "two_first": (with_items((0, 0, R), (0, 0, WEB), content="a"), [R, WEB, said("a")]),
    "between": (
        with_items((0, 0, R), (1, 0, WEB), (2, 0, R2), content="👋b"),
        [R, said("👋"), WEB, said("b"), R2],
    ),
    "before_calls": (
        with_items((0, 0, R), tool_calls=CALLS[:2]),
        [R, *SENT_CALLS[:2]],
    ),
    "between_calls": (
        with_items((0, 0, R), (1, 1, WEB), (1, 3, R2), content="a", tool_calls=CALLS),
        [R, said("a"), SENT_CALLS[0], WEB, *SENT_CALLS[1:], R2],
    ),
    "behind_all_that_is_left": (with_items((9, 4, R), content="a"), [said("a"), R]),
    "of_another_model": (with_items((0, 0, R), content="a", model="grok-2"), [said("a")]),
    "asked_by_another_name": (
        {
            **said("a"),
            "reply_items": {"model": "grok-4.3-0309", "asked": MODEL, "items": [{"item": R}]},
        },
        [R, said("a")],
    ),
    "with_sources": (
        {**said("a"), "citations": [{"url": "https://x", "title": "1", "start": 0, "end": 1}]},
        [said("a")],
    ),
    "with_items_and_sources": (
        {**with_items((0, 0, R), content="a"), "citations": [{"url": "https://x"}]},
        [R, said("a")],
    ),
    "quoting_the_names_of_fields": (
        said('","reply_items":{"model":"m","items":[{"item":1}]}}'),
        [said('","reply_items":{"model":"m","items":[{"item":1}]}}')],
    ),
    "an_item_that_quotes_them": (
        with_items((0, 0, {**R, "item": {"item": 1}}), content="a"),
        [{**R, "item": {"item": 1}}, said("a")],
    ),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_what_an_entry_becomes(case: str) -> None:
    """Each kind of entry, stored, added, or stored and looked at: the same items."""
    message, items = ENTRIES[case]

    assert sent(message) == items


def test_a_system_prompt_is_the_first_item() -> None:
    """As on the other wire."""
    context = OpenAILLMContext([said("a")], system_prompt="Be brief.")

    assert json.loads(input_bytes(context)) == [
        {"role": "system", "content": "Be brief."},
        said("a"),
    ]


def test_a_text_is_the_same_bytes_on_both_wires() -> None:
    """A conversation that changes its wire stays readable, and its texts stay as they were."""
    texts = [
        {"role": "user", "content": "Grüße 👋"},
        said("a\n"),
        {"role": "system", "content": "s"},
    ]
    context = OpenAILLMContext.from_stored([*map(msgspec.json.encode, texts)])

    assert input_bytes(context) == context.encoded_request_messages()


@pytest.mark.promise("P13")
def test_an_item_goes_back_byte_for_byte() -> None:
    """Even where the bytes are such that nobody would write them so."""
    item = b'{"type": "reasoning",  "n": 1.50, "u": "\\u00e9", "encrypted_content":"a\\/b"}'
    for places in (b"", b'"chars":1,', b'"chars":1,"calls":0,'):
        raw = (
            b'{"role":"assistant","content":"abc","reply_items":'
            b'{"model":"grok-4.3","items":[{%b"item":%b}]}}' % (places, item)
        )
        assert item in input_bytes(OpenAILLMContext.from_stored([raw]))


text = st.text(st.characters(codec="utf-8"), max_size=8)
items = st.lists(st.sampled_from([R, R2, WEB, {**R, "x": 'é"\\'}]), max_size=3)
replies = st.tuples(
    st.lists(st.sampled_from(["r", "t", "c"]), max_size=6),
    st.lists(text.filter(str.strip), min_size=6, max_size=6),
    st.sampled_from([MODEL, OTHER]),
    st.sampled_from([None, "", 0.5]),
)
questions = st.one_of(
    text.map(lambda it: [{"role": "user", "content": it}]),
    st.just([{"role": "user", "content": ENTRIES["images"][0]["content"][:3]}]),
    st.just([ENTRIES["text_and_calls"][0], said("by hand"), ENTRIES["user"][0]]),
)


async def reply(
    context: OpenAILLMContext,
    number: int,
    shape: list[str],
    texts: list[str],
    model: str,
    heard: float | str | None,
) -> None:
    """Let the aggregator write one response of these parts into the context."""
    aggregator = LLMAssistantContextAggregator(
        context, params=LLMAssistantAggregatorParams(expect_stripped_words=False)
    )
    frames: list[Frame] = [LLMFullResponseStartFrame()]
    calls: list[FunctionCallFromLLM] = []
    whole = ""
    for index, part in enumerate(shape):
        if part == "t":
            frames.append(LLMTextFrame(texts[index]))
            whole += texts[index]
        elif part == "c":
            calls.append(FunctionCallFromLLM("f", f"c{number}-{index}", {"a": index}))
        else:
            item = canonical_item([R, WEB][index % 2])
            assert item is not None
            place = (len(whole), len(calls))
            frames.append(LLMReplyItemFrame(index, item, model, model, *place))
            frames.append(LLMCitationFrame("https://x", "", len(whole) // 2, len(whole)))
    if heard is not None:
        spoken = whole[: int(len(whole) * heard)] if isinstance(heard, float) else heard
        frames.append(StartInterruptionFrame(heard=spoken))
    else:
        if calls:
            frames.append(FunctionCallsStartedFrame(calls))
            frames += [
                FunctionCallInProgressFrame(it.function_name, it.tool_call_id, it.arguments)
                for it in calls
            ]
        frames.append(LLMFullResponseEndFrame())
        frames += [
            FunctionCallResultFrame(it.function_name, it.tool_call_id, it.arguments, "ok")
            for it in calls
        ]
    for frame in frames:
        await aggregator.process_frame(frame, DOWNSTREAM)


@pytest.mark.promise("P13")
@given(
    st.lists(st.tuples(questions, replies, st.booleans(), st.booleans()), min_size=1, max_size=5),
    st.booleans(),
)
def test_a_request_begins_with_the_one_before_it(
    turns: list[tuple[list[Message], Any, bool, bool]], prompt: bool
) -> None:
    """Byte for byte, on both wires, whoever decoded and stored the conversation in between."""
    system_prompt = "Be brief." if prompt else None
    context = OpenAILLMContext(system_prompt=system_prompt)
    asked: list[bytes] = []
    chatted: list[bytes] = []
    for number, (question, (shape, texts, model, heard), look, store) in enumerate(turns):
        context.add_messages(copy.deepcopy(question))
        asked.append(input_bytes(context))
        chatted.append(context.encoded_request_messages())
        asyncio.run(reply(context, number, shape, texts, model, heard))
        if look:
            context.messages.append({"role": "user", "content": "x"})
            context.messages.pop()
        if store:
            entries = context.encoded_messages()
            for entry in map(decode_context_entry, entries):
                if isinstance(entry, AssistantEntry):
                    check_reply_items(entry, "entry")
                    assert all(it.end <= len(str(entry.content)) for it in entry.citations)
            context = OpenAILLMContext.from_stored(entries, system_prompt=system_prompt)

    for requests in (asked, chatted):
        for earlier, later in itertools.pairwise(requests):
            assert later.startswith(earlier.removesuffix(b"]"))
    sent_items = json.loads(input_bytes(context))
    kept = [it for it in sent_items if it.get("type") in {"reasoning", "web_search_call"}]
    stored = [
        placed["item"]
        for message in context.messages
        for placed in message.get("reply_items", {"items": ()})["items"]
        if message["reply_items"]["model"] == MODEL
    ]
    assert kept == stored
    calls = {it["call_id"] for it in sent_items if it.get("type") == "function_call"}
    made = {it["id"] for m in context.messages for it in m.get("tool_calls", ())}
    assert calls == made
    for message in json.loads(context.encoded_request_messages()):
        assert not {"reply_items", "citations"} & message.keys()


async def test_items_of_a_reply_that_says_nothing_are_not_kept() -> None:
    """They would stand in no message, and the model begins anew."""
    for heard in (None, ""):
        context = OpenAILLMContext()
        await reply(context, 0, ["r", "t"] if heard == "" else ["r"], ["a"] * 6, MODEL, heard)
        assert context.messages == []


async def test_what_stands_beside_a_text_is_cut_with_it() -> None:
    """Also where the text is in the context already when it turns out how much was heard."""
    context = OpenAILLMContext()
    await reply(context, 0, ["r", "t", "r", "c"], ["", "one two", "", "", "", ""], MODEL, None)
    aggregator = LLMAssistantContextAggregator(context)

    await aggregator.process_frame(StartInterruptionFrame(heard="one"), DOWNSTREAM)

    first = context.messages[0]
    assert first["content"] == "one"
    assert [it.get("chars", 0) for it in first["reply_items"]["items"]] == [0, 3]
    assert [it["end"] for it in first["citations"]] == [0]


def test_refused_items_are_forgotten_for_good() -> None:
    """Those of all models, and nothing else."""
    messages = [with_items((0, 0, R), content="a"), with_items((0, 0, R), model=OTHER, content="b")]
    context = OpenAILLMContext.from_stored([*map(msgspec.json.encode, messages)])

    assert context.drop_reply_items()
    assert json.loads(input_bytes(context)) == [said("a"), said("b")]
    assert context.messages == [said("a"), said("b")]
    assert not context.prefix_intact()
    assert not context.drop_reply_items()
