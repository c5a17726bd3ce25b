"""Marks at replies that were cut short: right after a replacement, without reading all records."""

import tracemalloc
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from turnline.contracts import TurnCompleted, TurnInterrupted
from turnline.contracts import history as history_module
from turnline.contracts.history import HistoryReading
from turnline.contracts.keys import conversation_keys
from turnline.contracts.replies import History, TurnRecord, encode_event

KEYS = conversation_keys("{s0}", "c")
USER = {"role": "user", "content": "?"}
CALL = {"id": "1", "function": {"name": "f", "arguments": "{}"}, "type": "function"}


class Kept:
    """What Redis would keep, and how much of it was asked for."""

    def __init__(self, messages: Sequence[Any], turns: Sequence[TurnRecord]) -> None:
        self.messages = [msgspec.json.encode(message) for message in messages]
        self.records = {b"t%d" % n: msgspec.json.encode(turn) for n, turn in enumerate(turns)}
        self.pages: list[int] = []

    def answer(self, command: Sequence[Any]) -> Any:
        match command:
            case ("LRANGE", key, start, stop) if key == KEYS.log:
                ids = list(self.records)
                if start == 0:
                    return ids[:1]
                return ids[max(0, len(ids) + start) : max(0, len(ids) + stop + 1)]
            case ("LRANGE", _, 0, -1):
                return list(self.messages)
            case ("HGET", *_):
                return None
            case ("HMGET", _, *ids):
                self.pages.append(len(ids))
                return [self.records.get(turn_id) for turn_id in ids]
        raise AssertionError(command)

    def history(self) -> History:
        reading = HistoryReading("c", KEYS)
        while True:
            history = reading.parse([self.answer(command) for command in reading.commands()])
            if history is not None:
                return history


def said(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def turn(first: int, last: int, text: str = "", *, cut: bool = True) -> TurnRecord:
    kind = TurnInterrupted if cut else TurnCompleted
    return TurnRecord(
        state="interrupted" if cut else "completed",
        accepted_at_ms=1,
        messages_from=first,
        messages_to=last,
        event=msgspec.Raw(encode_event(kind(conversation_id="c", turn_id="t", text=text))),
    )


NOTE = turn(0, 0, cut=False)


def test_a_replaced_context_has_no_marks_of_the_old_one() -> None:
    """What stands at the old places is something else."""
    turns = [turn(0, 2, "One"), turn(2, 4, "Two"), NOTE]

    assert Kept([USER, said("One"), USER, said("Two")], turns).history().interrupted == (1, 3)
    assert Kept([USER, said("Uno"), USER, said("Due")], turns).history().interrupted == ()
    assert Kept([USER, said("Sum")], turns).history().interrupted == ()


def test_marks_after_a_replacement_are_found() -> None:
    """Older turns' places do not confuse them."""
    old = [turn(2 * n, 2 * n + 2, f"Old {n}") for n in range(5)]
    context = [USER, said("Sum"), USER, said("Cut"), USER, said("Whole")]

    history = Kept(context, [*old, NOTE, turn(2, 4, "Cut"), turn(4, 6, "Whole", cut=False)])

    assert history.history().interrupted == (3,)


@pytest.mark.parametrize(
    ("messages", "text", "marks"),
    [
        ([USER, said("Let me", tool_calls=[CALL]), {"role": "tool", "content": "1"}], "Let me", 1),
        ([USER, said("A", tool_calls=[CALL]), said("B")], "A\n\nB", 2),
        ([USER, said(" ", tool_calls=[CALL])], "", None),
        ([USER], "", None),
    ],
)
def test_the_last_thing_said_is_what_was_cut(
    messages: list[Any], text: str, marks: int | None
) -> None:
    """Also where a tool call stands behind it; nothing where nothing was said."""
    messages = [{**m, "tool_call_id": "1"} if m["role"] == "tool" else m for m in messages]

    history = Kept(messages, [turn(0, len(messages), text)]).history()

    assert history.interrupted == ((marks,) if marks is not None else ())


def test_a_turn_that_ends_while_the_context_is_read_hides_no_mark() -> None:
    """Its messages are not in what was read."""
    turns = [turn(0, 2, "One"), turn(2, 4, "Two")]

    assert Kept([USER, said("One")], turns).history().interrupted == (1,)


def test_no_more_records_are_read_than_the_context_goes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page at a time, newest first; none of before the context was replaced but a page."""
    monkeypatch.setattr(history_module, "PAGE", 4)
    old = [turn(2 * n, 2 * n + 2, "Old") for n in range(40)]
    new = [turn(1 + n, 2 + n, f"New {n}") for n in range(6)]
    kept = Kept([USER, *(said(f"New {n}") for n in range(6))], [*old, NOTE, *new])

    assert kept.history().interrupted == (1, 2, 3, 4, 5, 6)
    assert kept.pages == [4, 4]
    whole = Kept([USER, said("x")] * 40, old)
    assert whole.history().interrupted == ()
    assert whole.pages == [4] * 10


def test_turns_that_come_in_between_pages_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are counted from the newest end: what is shown twice is read once."""
    monkeypatch.setattr(history_module, "PAGE", 2)
    kept = Kept([said(f"S {n}") for n in range(8)], [turn(n, n + 1, f"S {n}") for n in range(8)])
    reading, history, late = HistoryReading("c", KEYS), None, 8
    while history is None:
        history = reading.parse([kept.answer(command) for command in reading.commands()])
        kept.records[b"t%d" % late] = msgspec.json.encode(turn(late, late + 1, "late"))
        late += 1

    assert history.interrupted == tuple(range(8))


def test_a_history_has_no_items_of_replies() -> None:
    """Only the provider can read them; what people read is all there."""
    items = {"model": "m", "items": [{"item": {"type": "reasoning", "encrypted_content": "x"}}]}
    asked = [
        USER,
        said("Hello", reply_items=items),
        said(None, tool_calls=[CALL], reply_items=items),
    ]

    messages = Kept(asked, []).history().messages

    assert [msgspec.to_builtins(entry) for entry in messages] == [
        USER,
        said("Hello"),
        {"role": "assistant", "tool_calls": (CALL,)},
    ]


def test_items_of_replies_are_not_turned_into_objects() -> None:
    """A history costs what it shows, however much reasoning stands beside it."""
    deep = [{"n": [n]} for n in range(100_000)]
    items = {"model": "m", "items": [{"item": {"type": "reasoning", "deep": deep}}]}
    context = Kept([USER, said("Hello", reply_items=items)], [])
    size = len(context.messages[1])

    tracemalloc.start()
    try:
        context.history()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < size < len(deep) * 64  # as objects they take 200 bytes each
