"""The context: who owns the lists, what stays bytes, what a commit appends."""

import json
import time
import timeit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.tool_schemas import NOT_GIVEN, FunctionSchema, ToolsSchema

USER = {"role": "user", "content": "Grüße 👋"}
CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}, "type": "function"}],
}
RESULT = {"role": "tool", "content": '"ok"', "tool_call_id": "c1"}
WAITING = {"role": "tool", "content": "IN_PROGRESS", "tool_call_id": "c1"}
IMAGE = {
    "role": "user",
    "content": [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
    ],
}
ALL = [USER, CALL, RESULT, IMAGE, {"role": "assistant", "content": "fin"}]


def encoded(*messages: dict[str, object]) -> list[bytes]:
    return [msgspec.json.encode(message) for message in messages]


def stored(*messages: dict[str, object]) -> OpenAILLMContext:
    return OpenAILLMContext.from_stored(encoded(*messages))


def test_the_callers_list_is_not_aliased() -> None:
    """The caller's list is not aliased; the live list keeps its identity through replacements."""
    given_list = [dict(USER)]
    context = OpenAILLMContext(given_list)
    live = context.messages

    context.add_message(dict(CALL))
    context.add_messages([dict(RESULT)])
    assert (len(given_list), len(live), context.message_count) == (1, 3, 3)

    context.set_messages([dict(IMAGE)])
    assert context.messages is live
    assert context.get_messages() is live
    assert context.get_messages_for_initializing_history() is live
    assert live == [IMAGE]
    copy = context.get_messages_for_persistent_storage()
    assert copy is not live
    assert copy[0] is live[0]


def test_a_context_from_messages_copies_them() -> None:
    """The caller's dicts stay as they are, and no name is added."""
    original = dict(USER)

    context = OpenAILLMContext.from_messages([original])
    context.messages[0]["content"] = "changed"

    assert original == USER


def test_inline_images_are_left_out_of_what_is_logged() -> None:
    """Inline images are left out of what is shown; the context and https addresses are not."""
    context = OpenAILLMContext([json.loads(json.dumps(IMAGE)), dict(USER)])

    shown = context.get_messages_for_logging()

    assert "AAAA" not in shown
    assert "data:image/..." in shown
    assert "https://example.org/a.png" in shown
    assert "Grüße" in shown
    assert context.messages == [IMAGE, USER]
    assert json.loads(context.get_messages_json()) == [IMAGE, USER]


def test_no_tools_are_no_list_and_a_schema_becomes_openais_list() -> None:
    """An empty list is none, a schema becomes OpenAI's list, a choice is kept as it is."""
    schema = ToolsSchema([FunctionSchema("f", "does f", {"a": {"type": "integer"}}, ["a"])])

    assert OpenAILLMContext(tools=[]).tools is NOT_GIVEN
    context = OpenAILLMContext(tools=schema, tool_choice="auto")
    assert context.tool_choice == "auto"
    assert context.tools == [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": "does f",
                "parameters": {
                    "type": "object",
                    "properties": {"a": {"type": "integer"}},
                    "required": ["a"],
                },
            },
        }
    ]
    context.set_tools([])
    assert context.tools is NOT_GIVEN


def test_images_need_an_encoding() -> None:
    """A raw pixel format is refused by name."""
    with pytest.raises(ValueError, match="RGB"):
        OpenAILLMContext().add_image_frame_message(format="RGB", size=(1, 1), image=b"\0\0\0")


@pytest.mark.promise("P13")
def test_saving_what_was_loaded_gives_the_same_bytes() -> None:
    """Saving what was loaded gives the same bytes, and so does a request built from it."""
    first = OpenAILLMContext(ALL)
    bytes_once = first.encoded_messages()

    loaded = OpenAILLMContext.from_stored(bytes_once)
    decoded = OpenAILLMContext([msgspec.json.decode(raw) for raw in bytes_once])

    assert loaded.encoded_messages() == decoded.encoded_messages() == bytes_once
    assert loaded.encoded_request_messages() == first.encoded_request_messages()
    assert "Grüße 👋".encode() in loaded.encoded_request_messages()
    assert loaded.messages == ALL


@pytest.mark.promise("P13")
def test_stored_bytes_are_not_rewritten() -> None:
    """Even bytes in another JSON style are kept as they were given, read or not."""
    odd = b'{"role": "user",  "content": "\\u00e9"}'
    context = OpenAILLMContext.from_stored([odd], system_prompt="Be brief.")

    context.add_message({"role": "assistant", "content": "ok"})
    unread = context.encoded_messages()
    assert context.messages[0]["content"] == "é"

    assert context.encoded_messages() == unread == [odd, b'{"role":"assistant","content":"ok"}']
    assert context.encoded_request_messages() == (
        b'[{"role":"system","content":"Be brief."},' + b",".join(unread) + b"]"
    )
    assert context.message_count == 2


@pytest.mark.parametrize("read_first", [True, False])
def test_new_messages_are_what_a_commit_appends(read_first: bool) -> None:
    """With an intact prefix only the new messages need to be written."""
    context = stored(USER, CALL, RESULT)
    if read_first:
        assert context.messages[0] == USER

    context.add_message(dict(USER))

    assert context.prefix_intact()
    assert context.new_messages_encoded() == encoded(USER)
    assert context.encoded_messages() == encoded(USER, CALL, RESULT, USER)


def _change(context: OpenAILLMContext) -> None:
    context.messages[1]["tool_calls"][0]["id"] = "c2"


def _remove(context: OpenAILLMContext) -> None:
    del context.messages[2]


def _insert(context: OpenAILLMContext) -> None:
    context.messages.insert(0, {"role": "system", "content": "x"})


def _replace(context: OpenAILLMContext) -> None:
    context.set_messages([dict(USER)])


def _settle(context: OpenAILLMContext) -> None:
    assert context.set_tool_result("c1", '"done"')


@pytest.mark.parametrize(
    ("change", "intact"), [(_change, 1), (_remove, 2), (_insert, 0), (_replace, 0), (_settle, 2)]
)
def test_changes_to_loaded_messages_are_noticed(change: object, intact: int) -> None:
    """A changed, removed, inserted or replaced message makes the caller rewrite from there."""
    context = stored(USER, CALL, WAITING)

    change(context)  # type: ignore[operator]
    context.add_message(dict(USER))

    assert not context.prefix_intact()
    assert context.intact_count() == intact
    assert context.encoded_messages() == encoded(*context.messages)
    assert context.new_messages_encoded() == encoded(*context.messages)[intact:]
    assert json.loads(context.encoded_request_messages()) == context.messages


def test_a_call_that_never_ended_is_cancelled_before_a_request() -> None:
    """A loaded call that never ended is CANCELLED before a request; nothing else is touched."""
    context = stored(USER, CALL, WAITING)
    assert context.in_progress_ids() == ["c1"]

    assert context.repair_in_progress() == 1

    assert context.messages[-1]["content"] == "CANCELLED"
    assert not context.prefix_intact()
    assert context.repair_in_progress() == 0


def test_a_sound_context_is_not_decoded() -> None:
    """Looking for calls to repair costs one search through the bytes."""
    context = OpenAILLMContext.from_stored([b"not JSON at all"])

    assert context.repair_in_progress() == 0
    assert context.in_progress_ids() == []
    assert not context.set_tool_result("c1", "x")
    assert context.encoded_request_messages() == b"[not JSON at all]"


def test_a_user_who_says_in_progress_is_not_a_call() -> None:
    """Only tool messages are repaired."""
    context = stored({"role": "user", "content": "IN_PROGRESS"})

    assert context.repair_in_progress() == 0
    assert context.prefix_intact()


def test_a_turn_costs_the_same_after_a_thousand_messages() -> None:
    """Adding to a long context and building the request does no work per stored message."""

    def cost_s(count: int) -> float:
        raw = encoded(USER) * count

        def turn() -> None:
            context = OpenAILLMContext.from_stored(raw)
            context.repair_in_progress()
            context.add_message({"role": "user", "content": "hi"})
            context.encoded_request_messages()
            context.new_messages_encoded()

        return timeit.timeit(turn, time.process_time, number=20)

    # By turns, and the least of many: a shared core does half as much, now and then.
    few_s, many_s = map(min, zip(*((cost_s(10), cost_s(1000)) for _ in range(15)), strict=True))
    assert many_s < 20 * few_s, "a hundred times as many messages"


MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()})
)


@given(MESSAGES, MESSAGES, st.booleans())
def test_bytes_and_messages_agree(
    old: list[dict[str, object]], new: list[dict[str, object]], read: bool
) -> None:
    """Whatever is loaded and added, bytes, messages and request say the same."""
    context = stored(*old)
    if read:
        assert context.messages == old
    context.add_messages(new)

    assert context.encoded_messages() == encoded(*old, *new)
    assert context.new_messages_encoded() == encoded(*new)
    assert json.loads(context.encoded_request_messages()) == [*old, *new]
    assert context.messages == [*old, *new]
