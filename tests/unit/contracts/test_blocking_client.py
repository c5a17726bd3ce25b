"""The blocking client is the other one, run: the same verbs, parameters, types and texts."""

import asyncio
import inspect
from collections.abc import Generator
from typing import Any, assert_type, get_args

import pytest
from redis.exceptions import ResponseError

from turnline.contracts import (
    Receipt,
    StoreIncompatible,
    StoreUnavailable,
    SyncTurnClient,
    TurnClient,
    TurnUnknown,
    UserMessage,
)
from turnline.contracts.layout import FIELDS
from turnline.contracts.replies import AnyEvent, TurnStarted, encode_event

VERBS = [
    name
    for name in dir(TurnClient)
    if not name.startswith("_") and name not in {"connect", "aclose"}
]


class Answering:
    """A blocking Redis that has one answer, and may raise it; it knows no number of shards."""

    def __init__(self, answer: Any) -> None:
        """Keep the answer."""
        self.answer = answer

    def execute_command(self, *command: Any) -> Any:
        """Answer."""
        if isinstance(self.answer, Exception):
            raise self.answer
        return [None] * len(FIELDS) if command[2:] == FIELDS else self.answer

    def pipeline(self, transaction: bool = True) -> Any:
        """Queue nothing."""
        return self

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Answer the one command that was queued."""
        return [self.execute_command()]

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("verb", VERBS)
def test_both_clients_have_the_verb(verb: str) -> None:
    """Its parameters and text are the same; what is awaited or async in one is not in the other."""
    one, other = getattr(TurnClient, verb), getattr(SyncTurnClient, verb)
    expected = inspect.signature(one)
    returned = str(expected.return_annotation)
    if "AsyncGenerator" in returned:
        returned = returned.replace("AsyncGenerator", "Generator").replace("None]", "None, None]")
    elif ".Events[" in returned:
        of = str(get_args(expected.return_annotation)[0])
        returned = f"collections.abc.Generator[{of}, None, None]"

    assert inspect.signature(other).parameters == expected.parameters
    assert str(inspect.signature(other).return_annotation) == returned
    assert inspect.isgeneratorfunction(other) == returned.endswith("None, None]")
    assert not inspect.iscoroutinefunction(other)
    assert other.__doc__ == one.__doc__


def test_there_is_no_other_verb() -> None:
    """What blocks can do is what TurnClient can do."""
    names = [name for name in vars(SyncTurnClient) if not name.startswith("_")]

    assert sorted(names) == sorted(["connect", *VERBS])


def test_type_checkers_see_the_types() -> None:
    """Nothing becomes Any on the way; `ops/run check` reads this, and a wrong call is an error."""

    def calls(client: SyncTurnClient, receipt: Receipt) -> None:
        assert_type(client.submit(message=UserMessage(conversation_id="c", text="t")), Receipt)
        assert_type(client.submit_many([b"{}"]), list[Receipt | Exception])
        assert_type(client.events(receipt, after="1-1"), Generator[AnyEvent, None, None])
        keeping = client.events(receipt, keep_alive_s=1)
        assert_type(keeping, Generator[AnyEvent | None, None, None])
        assert_type(client.follow("c"), Generator[AnyEvent, None, None])
        assert_type(client.forget("c"), bool)
        client.submit(1)  # type: ignore[arg-type]
        client.ask("c")  # type: ignore[call-arg]

    assert callable(calls)


async def test_it_runs_beside_an_event_loop_and_raises_what_is_in_the_way() -> None:
    """Where a loop runs in the same thread, too, and with a generator that is given up early."""
    receipt = Receipt(conversation_id="c", turn_id="t", status="accepted")

    with pytest.raises(TurnUnknown):
        SyncTurnClient(Answering(None)).result(receipt)
    with pytest.raises(StoreUnavailable):
        SyncTurnClient(Answering(ConnectionError()), patience_s=0.01).record(receipt)
    with pytest.raises(StoreIncompatible):
        SyncTurnClient(Answering(ResponseError("ERR unknown command"))).record(receipt)
    started = encode_event(TurnStarted(conversation_id="c", turn_id="t"))
    events = SyncTurnClient(Answering([[b"c", [(b"1-1", {b"e": started})]]])).events(receipt)
    assert next(events).turn_id == "t"
    events.close()
    assert list(events) == []


async def test_what_would_wait_for_a_loop_is_a_bug() -> None:
    """Such a verb is ended, and named as one."""
    client = SyncTurnClient(Answering(None))
    waiting: Any = asyncio.sleep

    async def execute_command(*_: Any) -> None:
        await waiting(1)

    client._client._redis = type("", (), {"execute_command": execute_command})()

    with pytest.raises(AssertionError, match="waits for an event loop"):
        client.usage("c")
