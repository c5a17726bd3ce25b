"""`turnline replay`: recorded dialogues through real workers, each reply and token checked."""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec
import uvloop
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from turnline.contracts import TextDelta, TurnClient, UserMessage
from turnline.contracts.connection import AsyncRedis, open_async
from turnline.contracts.conversation import CallEntry, Usage, decode_context_entry
from turnline.contracts.protocol import TOTAL_FIELDS, Requests, read_totals
from turnline.contracts.replies import decode_event, decode_record
from turnline.contracts.scripts import text
from turnline.ops.cli import output
from turnline.ops.cli.failures import FAILED, Failure
from turnline.ops.cli.sigterm import ends_in_order
from turnline.ops.fleet.stack import Stack
from turnline.ops.replay.comparison import Kept, faults_of, quantile, total
from turnline.ops.replay.recorded_calls import ExecutedCalls, ReplayedServices, replayed_services
from turnline.ops.replay.recordings import read_dialogues
from turnline.ops.replay.served import read_ledger
from turnline.ops.simulator.model.dialogues import Dialogue

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
    run: str
    """Beginning of the conversations' ids."""


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline replay dialogues.jsonl --workers 2\n"
    "  turnline replay dialogues.jsonl --limit 50 --json | jq .turns_per_s\n"
    "  turnline replay dialogues.jsonl --workers 3 --kill-every 200\n\n"
    "\b\nA dialogue is one line:\n"
    '  {"dialogue_id": "d1", "turns": [{"speaker": "user", "text": "Hello"},\n'
    '                                  {"speaker": "system", "text": "Hello!"}]}'
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Worker processes."
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Dialogues running at once; the turns of each follow one another.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many dialogues.")
@click.option(
    "--redis",
    "redis_url",
    metavar="URL",
    help="Use this Redis, which no other workers serve; the conversations stay there.  "
    "[default: its own]",
)
@click.option(
    "--kill-every",
    type=click.IntRange(min=1),
    metavar="N",
    help="Kill a worker (SIGKILL) every N turns, and start another one.",
)
@click.option(
    "--tools",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Tools of the recorded services: their calls are made for real, in the workers.",
)
@click.option(
    "--elsewhere",
    is_flag=True,
    help="With --tools: the calls go out, and this process answers them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def replay(
    *,
    file: Path,
    workers: int,
    concurrency: int,
    limit: int | None,
    redis_url: str | None,
    kill_every: int | None,
    tools: Path | None,
    elsewhere: bool,
    as_json: bool,
) -> None:
    """Run recorded dialogues through real workers and check every reply and every token.

    Starts workers and a simulated Grok that knows the dialogues, submits each user turn when the
    one before it has ended, and then compares each stored context with the recording, and all
    totals with what the simulator says it served. Exits with 1 if anything differs.
    """
    dialogues = read_dialogues(file, limit)
    sim_options = ("--dialogues", str(file.resolve()), "--ledger-entries", "0")
    if elsewhere and tools is None:
        raise Failure("--elsewhere needs --tools")
    with (
        ends_in_order(),
        replayed_services(file, tools, elsewhere=elsewhere) as services,
        Stack(
            workers,
            redis_url=redis_url,
            sim_options=sim_options,
            worker_env=services.worker_env if services is not None else None,
        ) as stack,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        driver = _Replay(stack, dialogues, concurrency, kill_every, services)
        report = runner.run(driver.run())
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        _show(report, redis_stays=redis_url is not None)
    if report.mismatches:
        raise click.exceptions.Exit(FAILED)


class _Replay:
    """One run: conversations `replay-<run>/<dialogue id>`, turns `t1`, `t2` and so on."""

    def __init__(
        self,
        stack: Stack,
        dialogues: Sequence[Dialogue],
        concurrency: int,
        kill_every: int | None,
        services: ReplayedServices | None,
    ) -> None:
        self._stack = stack
        self._dialogues = dialogues
        self._concurrency = concurrency
        self._kill_every = kill_every
        self._services = services
        self._run = f"replay-{secrets.token_hex(4)}"
        self._requests = Requests()
        self._turns = 0
        self._kills = 0
        self._first_deltas_ms: list[float] = []
        self._unanswered: dict[str, str] = {}
        """Conversations that were given up, and why."""

    async def run(self) -> Report:
        """Say everything, then check everything."""
        turns = sum(len(dialogue.user_texts) for dialogue in self._dialogues)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        to = output.console(stderr=True)
        with Progress(
            *columns, TimeRemainingColumn(), console=to, transient=True, disable=not to.is_terminal
        ) as progress:
            task = progress.add_task("turns", total=turns)
            began_at = time.monotonic()
            await self._say_all(lambda: progress.advance(task))
            seconds = time.monotonic() - began_at
            task = progress.add_task("checked", total=len(self._dialogues))
            return await self._check_all(seconds, lambda: progress.advance(task))

    # -- saying ---------------------------------------------------------------------------------

    async def _say_all(self, advance: Callable[[], None]) -> None:
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

    async def _check_all(self, seconds: float, advance: Callable[[], None]) -> Report:
        served = read_ledger(self._stack.base_url)
        redis = open_async(self._stack.redis_url, retries=3)
        kept: list[Kept] = []
        faults: dict[str, list[str]] = {}
        executed: ExecutedCalls | None = None
        try:
            if self._services is not None:
                executed = await self._services.executed(redis, self._run)
            for dialogue in self._dialogues:
                name = self._name(dialogue)
                kept.append(await self._read(redis, name))
                found = faults_of(
                    dialogue,
                    kept[-1],
                    served.get(name, ()),
                    with_kills=self._kills > 0,
                    calls=executed.expected(dialogue) if executed is not None else None,
                )
                if executed is not None:
                    found += executed.faults_of(dialogue, name, kept[-1].events)
                if name in self._unanswered:
                    found.insert(0, self._unanswered[name])
                if found:
                    faults[name] = found
                advance()
        finally:
            await redis.aclose()
        requests = [it for name, its in served.items() if name.startswith(self._run) for it in its]
        whole = [usage for it in requests if (usage := it.reported) is not None]
        calls = [call for it in kept for call in it.calls]
        named = (f"{name}: {phrase}" for name, found in faults.items() for phrase in found)
        return Report(
            dialogues=len(self._dialogues),
            turns=self._turns,
            mismatches=len(faults),
            faults=list(itertools.islice(named, _NAMED_FAULTS)),
            usage=total(it.totals.usage for it in kept),
            simulator_usage=total(whole),
            requests=len(requests),
            abandoned_calls=sum(call.abandoned for call in calls),
            kills=self._kills,
            tool_calls=executed.calls if executed is not None else 0,
            executions=executed.executions if executed is not None else 0,
            seconds=round(seconds, 3),
            turns_per_s=round(self._turns / seconds, 1),
            first_delta_p50_ms=round(quantile(self._first_deltas_ms, 0.5), 2),
            first_delta_p99_ms=round(quantile(self._first_deltas_ms, 0.99), 2),
            workers=len(self._stack.worker_names),
            concurrency=self._concurrency,
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


def _show(report: Report, *, redis_stays: bool) -> None:
    to = output.console()
    columns = ("dialogues", "turns", "mismatches", "tokens", "turns/s", "first delta p50", "p99")
    shown = output.table(*columns, numbers=columns)
    shown.add_row(
        str(report.dialogues),
        str(report.turns),
        str(report.mismatches),
        f"{report.usage.total_tokens:,}",
        f"{report.turns_per_s:,.0f}",
        f"{report.first_delta_p50_ms:.1f} ms",
        f"{report.first_delta_p99_ms:.1f} ms",
    )
    to.print(shown)
    usage = report.usage
    output.say(
        to,
        f"{report.workers} workers, {report.concurrency} dialogues at once, "
        f"{report.seconds:.1f} s. "
        f"Of the tokens {usage.prompt_tokens:,} were input ({usage.cached_tokens:,} cached), "
        f"{usage.completion_tokens:,} output and {usage.reasoning_tokens:,} reasoning; the "
        f"simulator served {report.requests:,} requests and counts "
        f"{report.simulator_usage.total_tokens:,}.",
    )
    if report.kills:
        output.say(
            to,
            f"{report.kills} workers were killed; {report.abandoned_calls} calls that this cut "
            "short or left uncommitted are kept apart from these tokens.",
        )
    if report.tool_calls:
        output.say(
            to,
            f"{report.tool_calls:,} tool calls, executed {report.executions:,} times; none again "
            "once it had finished, or it is named below.",
        )
    for phrase in report.faults:
        output.say(to, output.printable(f"mismatch: {phrase}"), "red")
    if report.mismatches and redis_stays:
        output.say(to, f"`turnline show {report.run}/DIALOGUE` shows what is in Redis.", "dim")
