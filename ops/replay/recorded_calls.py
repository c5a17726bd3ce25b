"""The recorded services of a replay: how workers get them, and what they executed."""

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec

from turnline.contracts import TurnClient
from turnline.contracts.connection import AsyncRedis
from turnline.contracts.replies import AnyEvent, ToolCallFinished
from turnline.contracts.scripts import text
from turnline.ops.cli.failures import Failure
from turnline.ops.replay.comparison import ExpectedCalls
from turnline.ops.replay.recorded_services import LEDGER, Executed, Recording, read_tools
from turnline.ops.simulator.model.dialogues import Dialogue
from turnline.worker.pipeline.aggregators import to_json

_decode = msgspec.json.Decoder(Executed).decode
_PAGE: Final = 1_000


class ExecutedCalls:
    """The services' ledger of one run."""

    def __init__(
        self,
        recording: Recording,
        names: frozenset[str],
        entries: Sequence[tuple[str, Executed]],
        *,
        elsewhere: bool,
    ) -> None:
        """Hold (position in the ledger, execution), in order."""
        self._recording = recording
        self._names = names
        self._elsewhere = elsewhere
        self._by_conversation: dict[str, list[tuple[str, Executed]]] = {}
        for at, entry in entries:
            self._by_conversation.setdefault(entry.conversation_id, []).append((at, entry))
        self.executions = len(entries)
        """How often a service ran."""
        self.calls = len({entry.key for _, entry in entries})
        """Calls that were made."""

    def expected(self, dialogue: Dialogue) -> ExpectedCalls:
        """Return what the calls of a dialogue add to its conversation."""
        results: dict[int, str] = {}
        for number in range(1, len(dialogue.user_texts) + 1):
            recorded = self._recording.answer(dialogue.dialogue_id, f"t{number}")
            if recorded is not None and recorded[0].method in self._names:
                results[number] = to_json(recorded[1])
        return ExpectedCalls(results, len(results) if self._elsewhere else 0)

    def faults_of(
        self, dialogue: Dialogue, conversation_id: str, events: Sequence[AnyEvent]
    ) -> list[str]:
        """Return what is wrong with the executions of one conversation's calls."""
        entries = self._by_conversation.get(conversation_id, [])
        wanted = len(self.expected(dialogue).results)
        keys = Counter(entry.key for _, entry in entries)
        faults: list[str] = []
        if len(keys) != wanted:
            faults.append(f"{len(keys)} calls were executed instead of {wanted}")
        if any(not entry.is_as_recorded for _, entry in entries):
            faults.append("a call has another tool or other arguments than the recording")
        finished = {
            event.call_id: _order(event.event_id)
            for event in events
            if isinstance(event, ToolCallFinished)
        }
        for at, entry in entries:
            done = finished.get(entry.call_id)
            if done is not None and _order(at)[0] > done[0]:
                faults.append(f"call {entry.call_id} was executed again after it had finished")
        return faults


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)


class ReplayedServices:
    """The services of a file of dialogues: inside the workers, or in this process."""

    def __init__(self, dialogues: Path, tools: Path, folder: Path, *, elsewhere: bool) -> None:
        """Read dialogues and tools.

        Raises:
            Failure: One of the files cannot be used.
        """
        self.elsewhere = elsewhere
        try:
            self._recording = Recording(dialogues)
            definitions = read_tools(tools)
        except (OSError, msgspec.DecodeError, KeyError) as error:
            raise Failure(f"{tools}: no list of tools ({type(error).__name__})") from None
        self._names = frozenset(it["function"]["name"] for it in definitions)
        self._answered: list[tuple[str, Executed]] = []
        schemas = folder / "tools.json"
        schemas.write_bytes(msgspec.json.encode(definitions))
        self.worker_env: Mapping[str, str] = (
            {"TURNLINE_TOOL_SCHEMAS": str(schemas)}
            if elsewhere
            else {
                "TURNLINE_TOOLS": "turnline.ops.replay.recorded_services",
                "REPLAY_TOOLS": str(tools.resolve()),
                "REPLAY_DIALOGUES": str(dialogues.resolve()),
            }
        )
        """Settings of the workers."""

    async def serve(self, client: TurnClient) -> None:
        """Answer calls until cancelled, for workers that do not have the tools."""
        async for call in client.tool_calls("replay", "one"):
            recorded = self._recording.answer(call.conversation_id, call.turn_id)
            made = (call.name, call.arguments_as(dict[str, Any]))
            wanted = (recorded[0].method, dict(recorded[0].parameters)) if recorded else None
            entry = Executed(
                call.conversation_id,
                call.turn_id,
                call.call_id,
                call.idempotency_key,
                made == wanted,
            )
            self._answered.append(("0-0", entry))
            await client.answer(call, recorded[1] if recorded is not None else [])

    async def executed(self, redis: AsyncRedis, run: str) -> ExecutedCalls:
        """Read the ledger of one run."""
        entries = [*self._answered]
        after = "-"
        while not self.elsewhere:
            page = await redis.execute_command("XRANGE", LEDGER, after, "+", "COUNT", _PAGE)
            entries += [(text(at), _decode(fields[b"e"])) for at, fields in page]
            if len(page) < _PAGE:
                break
            after = f"({text(page[-1][0])}"
        own = [(at, it) for at, it in entries if it.conversation_id.startswith(f"{run}/")]
        return ExecutedCalls(self._recording, self._names, own, elsewhere=self.elsewhere)


@contextmanager
def replayed_services(
    dialogues: Path, tools: Path | None, *, elsewhere: bool
) -> Generator[ReplayedServices | None, None, None]:
    """Prepare the services, if there is a file of tools.

    Raises:
        Failure: One of the files cannot be used.
    """
    if tools is None:
        yield None
        return
    with TemporaryDirectory(prefix="turnline-replay-") as folder:
        yield ReplayedServices(dialogues, tools, Path(folder), elsewhere=elsewhere)
