"""Runs recorded dialogues through a fleet, and checks each reply and each token."""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from turnline.contracts import TextDelta, TurnClient, UserMessage
from turnline.contracts.connection import AsyncRedis
from turnline.contracts.conversation import CallEntry, Usage, decode_context_entry
from turnline.contracts.opening import open_async
from turnline.contracts.protocol import TOTAL_FIELDS, Requests, read_totals
from turnline.contracts.replies import decode_event, decode_record
from turnline.contracts.scripts import text
from turnline.ops.fleet.stack import Stack
from turnline.ops.replay.comparison import Kept, faults_of, quantile, total
from turnline.ops.replay.recorded_calls import ExecutedCalls, ReplayedServices
from turnline.ops.replay.served import Served, read_ledger
from turnline.ops.simulator.model.dialogues import Dialogue
from turnline.worker.services.grok.responses_request import Wire

_LONGEST_TURN_S: Final = 120.0
_NAMED_FAULTS: Final = 5
_decode_call = msgspec.json.Decoder(CallEntry).decode


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay found."""

    dialogues: int
    turns: int
    mismatches: int
    """Dialogues with something wrong."""
    faults: list[str]
    """The first few, by name."""
    usage: Usage
    """Of all answers together."""
    simulator_usage: Usage
    """The same by the simulator's own ledger."""
    requests: int
    lost_reasoning: int
    """Reasoning items that did not come back to the model as it gave them."""
    prefix_breaks: int
    """Requests that changed what stood in the one before."""
    abandoned_calls: int
    """Calls whose answer was not committed, workers having been killed."""
    kills: int
    tool_calls: int
    """Calls of recorded services that were made."""
    executions: int
    """How often a service ran; above `tool_calls` where workers were killed while one did."""
    seconds: float
    turns_per_s: float
    first_delta_p50_ms: float
    first_delta_p99_ms: float
    workers: int
    concurrency: int
    wire: Wire
    run: str
    """Beginning of the conversations' ids."""


class Replay:
    """One run: conversations `replay-<run>/<dialogue id>`, turns `t1`, `t2` and so on."""

    def __init__(
        self,
        stack: Stack,
        dialogues: Sequence[Dialogue],
        concurrency: int,
        kill_every: int | None,
        services: ReplayedServices | None,
        *,
        wire: Wire,
    ) -> None:
        self._stack = stack
        self._dialogues = dialogues
        self._concurrency = concurrency
        self._kill_every = kill_every
        self._services = services
        self._wire: Wire = wire
        self._run = f"replay-{secrets.token_hex(4)}"
        self._requests = Requests()
        self._turns = 0
        self._kills = 0
        self._seconds = 0.0
        self._first_deltas_ms: list[float] = []
        self._unanswered: dict[str, str] = {}
        """Conversations that were given up, and why."""

    @property
    def turns(self) -> int:
        """How many turns there are to say."""
        return sum(len(dialogue.user_texts) for dialogue in self._dialogues)

    # -- saying ---------------------------------------------------------------------------------

    async def say_all(self, advance: Callable[[], None]) -> None:
        """Submit every turn when the one before it has ended; `advance` is called after each."""
        began_at = time.monotonic()
        waiting = iter(self._dialogues)

        async def say_some(client: TurnClient) -> None:
            for dialogue in waiting:
                await self._say(client, dialogue, advance)

        async with (
            TurnClient.connect(self._stack.redis_url) as client,
            asyncio.TaskGroup() as tasks,
        ):
            watch = tasks.create_task(self._watch())
            serving = None
            if self._services is not None and self._services.elsewhere:
                serving = tasks.create_task(self._services.serve(client))
            count = min(self._concurrency, len(self._dialogues))
            await asyncio.wait([tasks.create_task(say_some(client)) for _ in range(count)])
            watch.cancel()
            if serving is not None:
                serving.cancel()
        self._seconds = time.monotonic() - began_at

    async def _watch(self) -> None:
        """Notice a process that ended by itself: nobody else would, before the longest turn."""
        while True:
            self._stack.check()
            await asyncio.sleep(0.5)

    async def _say(
        self, client: TurnClient, dialogue: Dialogue, advance: Callable[[], None]
    ) -> None:
        conversation_id = self._name(dialogue)
        for number, said in enumerate(dialogue.user_texts, 1):
            message = UserMessage(conversation_id=conversation_id, turn_id=f"t{number}", text=said)
            try:
                async with asyncio.timeout(_LONGEST_TURN_S):
                    await self._say_one(client, message)
            except TimeoutError:
                self._unanswered[conversation_id] = f"turn t{number} did not end"
                return
            advance()
            self._turns += 1
            if self._kill_every and self._turns % self._kill_every == 0:
                self._kill()

    async def _say_one(self, client: TurnClient, message: UserMessage) -> None:
        began_at = time.monotonic()
        shown = False
        async for event in client.events(await client.submit(message)):
            if not shown and isinstance(event, TextDelta):
                shown = True
                self._first_deltas_ms.append((time.monotonic() - began_at) * 1000)

    def _kill(self) -> None:
        """Kill the workers in turn; each is replaced at once."""
        index = self._kills % len(self._stack.worker_names)
        self._stack.kill(index)
        self._stack.start(index)
        self._kills += 1

    def _name(self, dialogue: Dialogue) -> str:
        return f"{self._run}/{dialogue.dialogue_id}"

    # -- checking -------------------------------------------------------------------------------

    async def check_all(self, advance: Callable[[], None]) -> Report:
        """Compare what is kept with what was recorded, and with what the simulator served."""
        served = read_ledger(self._stack.base_url)
        kept: list[Kept] = []
        faults: list[tuple[str, list[str]]] = []
        executed: ExecutedCalls | None = None
        redis = open_async(self._stack.redis_url, patience_s=3)
        try:
            if self._services is not None:
                executed = await self._services.executed(redis, self._run)
            for dialogue in self._dialogues:
                name = self._name(dialogue)
                kept.append(await self._read(redis, name))
                requests = served.get(name, ())
                if found := self._faults_of(dialogue, kept[-1], requests, executed):
                    faults.append((name, found))
                advance()
        finally:
            await redis.aclose()
        return self._report(served, kept, faults, executed)

    def _faults_of(
        self,
        dialogue: Dialogue,
        kept: Kept,
        served: Sequence[Served],
        executed: ExecutedCalls | None,
    ) -> list[str]:
        name, calls = self._name(dialogue), executed.expected(dialogue) if executed else None
        found = faults_of(
            dialogue,
            kept,
            served,
            wire=self._wire,
            with_kills=self._kills > 0,
            calls=calls,
        )
        if executed is not None:
            found += executed.faults_of(dialogue, name, kept.events)
        unanswered = self._unanswered.get(name)
        return found if unanswered is None else [unanswered, *found]

    def _report(
        self,
        served: Mapping[str, Sequence[Served]],
        kept: Sequence[Kept],
        faults: Sequence[tuple[str, list[str]]],
        executed: ExecutedCalls | None,
    ) -> Report:
        requests = [it for name, its in served.items() if name.startswith(self._run) for it in its]
        links = [it.continuity for it in requests if it.continuity is not None]
        named = (f"{name}: {phrase}" for name, found in faults for phrase in found)
        return Report(
            dialogues=len(self._dialogues),
            turns=self._turns,
            mismatches=len(faults),
            faults=list(itertools.islice(named, _NAMED_FAULTS)),
            usage=total(it.totals.usage for it in kept),
            simulator_usage=total(usage for it in requests if (usage := it.reported) is not None),
            requests=len(requests),
            lost_reasoning=sum(it.lost_reasoning for it in links),
            prefix_breaks=sum(not (it.prefix_kept and it.head_kept) for it in links),
            abandoned_calls=sum(call.abandoned for it in kept for call in it.calls),
            kills=self._kills,
            tool_calls=executed.calls if executed is not None else 0,
            executions=executed.executions if executed is not None else 0,
            seconds=round(self._seconds, 3),
            turns_per_s=round(self._turns / self._seconds, 1),
            first_delta_p50_ms=round(quantile(self._first_deltas_ms, 0.5), 2),
            first_delta_p99_ms=round(quantile(self._first_deltas_ms, 0.99), 2),
            workers=len(self._stack.worker_names),
            concurrency=self._concurrency,
            wire=self._wire,
            run=self._run,
        )

    async def _read(self, redis: AsyncRedis, conversation_id: str) -> Kept:
        """Fetch all that is kept of a conversation in one round trip."""
        _, keys = self._requests.names(conversation_id)
        pipe = redis.pipeline(transaction=False)
        pipe.execute_command("LRANGE", keys.context, 0, -1)
        pipe.execute_command("HVALS", keys.turns)
        pipe.execute_command("XRANGE", keys.events, "-", "+")
        pipe.execute_command("LRANGE", keys.calls, 0, -1)
        pipe.execute_command("HMGET", keys.state, *TOTAL_FIELDS)
        pipe.execute_command("XLEN", keys.inbox)
        context, records, events, calls, totals, waiting = await pipe.execute()
        return Kept(
            context=[decode_context_entry(data) for data in context],
            records=[decode_record(data) for data in records],
            events=[decode_event(fields[b"e"], text(at)) for at, fields in events],
            calls=[_decode_call(data) for data in calls],
            totals=read_totals(totals),
            waiting=waiting,
        )
