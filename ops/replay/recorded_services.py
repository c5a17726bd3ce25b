"""The services of recorded dialogues as tools: they answer as recorded, and keep a ledger.

A module of tools for workers: what they are and where the recordings lie stands in the variables
REPLAY_TOOLS and REPLAY_DIALOGUES.
"""

import inspect
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from turnline.contracts.connection import AsyncRedis
from turnline.contracts.opening import open_async
from turnline.ops.simulator.model.dialogues import ServiceCall, load_dialogues
from turnline.worker.tools import Tool, ToolContext, tool

LEDGER: Final = "replay:{s0}:executed"
"""Stream: one entry for each execution. Field e (JSON of `Executed`)."""
_LEDGER_MS: Final = 24 * 3600 * 1000
_encode = msgspec.json.Encoder().encode


class Executed(msgspec.Struct, frozen=True):
    """One execution of a call."""

    conversation_id: str
    turn_id: str
    call_id: str
    key: str
    """Idempotency key."""
    is_as_recorded: bool
    """Whether tool and arguments are those of the recording."""


class Recording:
    """What the services of a file of dialogues were asked, and what they answered."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            OSError: It cannot be read.
            msgspec.DecodeError: A line is no dialogue.
        """
        self._dialogues = {it.dialogue_id: it for it in load_dialogues(path)}

    def answer(self, conversation_id: str, turn_id: str) -> tuple[ServiceCall, list[Any]] | None:
        """Return the call behind the n-th user message (turn `t<n>`), and its results."""
        dialogue = self._dialogues.get(conversation_id.rpartition("/")[2])
        number = turn_id.removeprefix("t")
        if dialogue is None or not number.isdecimal():
            return None
        turn = dialogue.answer(int(number))
        return None if turn is None or turn.call is None else (turn.call, turn.results)


def read_tools(path: Path) -> list[dict[str, Any]]:
    """Read tools in the shape of OpenAI's API; of several with one name, all arguments are allowed.

    Raises:
        OSError: The file cannot be read.
        msgspec.DecodeError: It is no list of tools.
    """
    found: dict[str, dict[str, Any]] = {}
    for element in msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]]):
        function = element["function"]
        same = found.get(function["name"])
        if same is None:
            found[function["name"]] = {"type": "function", "function": function}
            continue
        one, other = same["function"]["parameters"], function["parameters"]
        required = [name for name in one["required"] if name in other["required"]]
        same["function"]["parameters"] = {
            "type": "object",
            "properties": {
                name: {"type": "string"} for name in {**one["properties"], **other["properties"]}
            },
            "required": required,
        }
    return [*found.values()]


class _Service:
    """The recorded services, as workers open them."""

    def __init__(self, recording: Recording, redis: AsyncRedis) -> None:
        self._recording = recording
        self._redis = redis

    async def run(
        self, name: str, arguments: Mapping[str, Any], context: ToolContext[Any]
    ) -> list[Any]:
        recorded = self._recording.answer(context.conversation_id, context.turn_id)
        said = {key: value for key, value in arguments.items() if value is not None}
        as_recorded = recorded is not None and (name, said) == (
            recorded[0].method,
            dict(recorded[0].parameters),
        )
        entry = Executed(
            context.conversation_id,
            context.turn_id,
            context.call_id,
            context.idempotency_key,
            as_recorded,
        )
        await self._redis.execute_command("XADD", LEDGER, "*", "e", _encode(entry))
        await self._redis.execute_command("PEXPIRE", LEDGER, _LEDGER_MS)
        return recorded[1] if recorded is not None else []


@asynccontextmanager
async def resources() -> AsyncGenerator[_Service, None]:
    """Open the recording and the ledger."""
    redis = open_async(os.environ["TURNLINE_REDIS_URL"], patience_s=3)
    try:
        yield _Service(Recording(Path(os.environ["REPLAY_DIALOGUES"])), redis)
    finally:
        await redis.aclose()


def _tool(definition: Mapping[str, Any]) -> Tool[Any, Any]:
    """Make a tool of a schema: a function with the signature that the schema describes."""
    function = definition["function"]
    name, parameters = function["name"], function["parameters"]
    kinds: dict[str, Any] = {
        key: Literal[tuple(about["enum"])] if "enum" in about else str
        for key, about in parameters["properties"].items()
    }

    async def run(**arguments: Any) -> list[Any]:
        context: ToolContext[_Service] = arguments.pop("replay_context")
        return await context.resources.run(name, arguments, context)

    hints: dict[str, Any] = {"replay_context": ToolContext[_Service]}
    signature = [inspect.Parameter("replay_context", inspect.Parameter.KEYWORD_ONLY)]
    for key, kind in kinds.items():
        optional = key not in parameters["required"]
        hints[key] = kind | None if optional else kind
        default = None if optional else inspect.Parameter.empty
        signature.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default))
    run.__annotations__ = hints
    made: Callable[..., Awaitable[list[Any]]] = run
    setattr(made, "__signature__", inspect.Signature(signature))  # noqa: B010  not in its type
    return tool(name=name, description=function["description"], retry_safe=True)(made)


TOOLS = (
    [_tool(it) for it in read_tools(Path(os.environ["REPLAY_TOOLS"]))]
    if "REPLAY_TOOLS" in os.environ
    else []
)
