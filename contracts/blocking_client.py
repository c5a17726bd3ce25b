"""SyncTurnClient: the verbs of `TurnClient`, blocking. It runs them; it has none of its own.

A coroutine pauses only where it waits for something. Given a Redis whose commands block, those of
`TurnClient` never pause, so that one step runs them to their end, without an event loop
(docs/adr/0023-one-client.md).
"""

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, cast, get_args, overload

from turnline.contracts.blocking_servers import BLOCKING, AsIfAsync, run
from turnline.contracts.blocking_streams import BlockingStreams
from turnline.contracts.client import TurnClient
from turnline.contracts.connection import SyncRedis
from turnline.contracts.opening import open_sync
from turnline.contracts.patience import PATIENCE_S, PatientRedis
from turnline.contracts.protocol import Limits
from turnline.contracts.replies import AnyEvent, Receipt

P = ParamSpec("P")
T = TypeVar("T")


def _returning(
    verb: Callable[Concatenate[TurnClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """Make a coroutine's verb one of `SyncTurnClient`, which returns."""

    @functools.wraps(verb)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run(verb(self._client, *args, **kwargs))

    return call


def _yielding(
    verb: Callable[Concatenate[TurnClient, P], AsyncIterator[T]],
) -> Callable[Concatenate[Any, P], Generator[T, None, None]]:
    """Make an async generator's verb one of `SyncTurnClient`, which yields."""

    @functools.wraps(verb)
    def iterate(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        items: Any = verb(self._client, *args, **kwargs)
        try:
            while True:
                yield run(anext(items))
        except StopAsyncIteration:
            return
        finally:
            run(items.aclose())

    signature = inspect.signature(verb)
    item: Any = get_args(signature.return_annotation)[0]
    returned: Any = Generator[item, None, None]
    vars(iterate)["__signature__"] = signature.replace(return_annotation=returned)
    return iterate


class _EventsVerb(Protocol):
    @overload
    def __call__(
        self, receipt: Receipt, *, after: str | None = None
    ) -> Generator[AnyEvent, None, None]: ...
    @overload
    def __call__(
        self, receipt: Receipt, *, after: str | None = None, keep_alive_s: float
    ) -> Generator[AnyEvent | None, None, None]: ...


def _overloaded(verb: Callable[..., Any]) -> Any:
    """Make a verb that yields, whose types stand beside it."""
    return _yielding(verb)


class SyncTurnClient:
    """Submit turns and read what becomes of them, blocking; the verbs of `TurnClient`.

    Each verb takes what the one of the same name takes there, and returns what awaiting that one
    returns, or yields what that one yields.
    """

    def __init__(
        self,
        redis: SyncRedis,
        *,
        shards: int = 1,
        prefix: str = "",
        limits: Limits | None = None,
        patience_s: float = PATIENCE_S,
        wait_replicas: int = 0,
    ) -> None:
        """Wrap a redis-py client that does not decode responses; see `TurnClient`."""
        patient = PatientRedis(AsIfAsync(redis), patience_s, BLOCKING)
        self._client = TurnClient(
            cast("Any", patient),
            shards=shards,
            prefix=prefix,
            limits=limits,
            wait_replicas=wait_replicas,
            streams=BlockingStreams(patient),
        )

    @classmethod
    @contextmanager
    def connect(
        cls,
        url: str,
        *,
        shards: int = 1,
        prefix: str = "",
        limits: Limits | None = None,
        patience_s: float = PATIENCE_S,
        wait_replicas: int = 0,
    ) -> Generator[Self, None, None]:
        """Open a client for an address; close it at the end. See `TurnClient.connect`."""
        redis = open_sync(url)
        try:
            yield cls(
                redis,
                shards=shards,
                prefix=prefix,
                limits=limits,
                patience_s=patience_s,
                wait_replicas=wait_replicas,
            )
        finally:
            redis.close()

    submit = _returning(TurnClient.submit)
    submit_many = _returning(TurnClient.submit_many)
    ask = _returning(TurnClient.ask)
    events: _EventsVerb = _overloaded(TurnClient.events)
    text = _yielding(TurnClient.text)
    follow = _yielding(TurnClient.follow)
    result = _returning(TurnClient.result)
    interrupt = _returning(TurnClient.interrupt)
    configure = _returning(TurnClient.configure)
    feedback = _returning(TurnClient.feedback)
    history = _returning(TurnClient.history)
    usage = _returning(TurnClient.usage)
    spend = _returning(TurnClient.spend)
    record = _returning(TurnClient.record)
    forget = _returning(TurnClient.forget)
    conversations = _returning(TurnClient.conversations)
    turns = _returning(TurnClient.turns)
    find_turn = _returning(TurnClient.find_turn)
    replies = _yielding(TurnClient.replies)
    tool_calls = _yielding(TurnClient.tool_calls)
    answer = _returning(TurnClient.answer)
