"""Producers and readers of a run, in a process of their own: `python -m` with a plan.

They talk to Redis through `TurnClient` alone, as any service does, and note what they sent and what
they were shown. When they begin, they say so on standard output. A line on standard input ends the
talking; when every turn has ended (or there is no more patience), the journal is written and the
process ends.
"""

import asyncio
import random
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import uvloop

from turnline.contracts import (
    Configure,
    ConversationBusy,
    Feedback,
    Interrupt,
    Receipt,
    Refused,
    Transcription,
    TurnClient,
    TurnUnknown,
    UserMessage,
    UserStartedSpeaking,
    UserStoppedSpeaking,
)
from turnline.contracts.conversation import SettingsChange
from turnline.contracts.messages import Inbound
from turnline.contracts.patience import PATIENCE_S
from turnline.contracts.replies import TERMINAL
from turnline.ops.chaos import sabotage
from turnline.ops.chaos.journal import Act, Chat, Journal, Kind, Sent, Shown, encode_journal
from turnline.ops.chaos.turn_reader import GIVEN_UP, PAUSE_S, Errors, TurnReader, closable, now_ms

REPLIES: Final = "chaos"
"""Name of the reply stream."""
_WORDS: Final = (
    "what comes next",
    "tell me more",
    "and then what",
    "say it again slowly",
    "ça va où ça",
    "how so",
)
_RATED: Final = ("user_feedback", "tone")
_TENANTS: Final = ("", "acme", "globex")
_FORGOTTEN: Final = "forgotten"
"""Tenant of conversations that are to be forgotten: their ledgers say nothing in the end."""
_LOOK_S: Final = 2.0
"""After so long without news a producer asks what became of its turns."""


class TrafficPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do."""

    redis_url: str
    shards: tuple[int, ...] = (1,)
    """With how many shards in mind clients begin: one client for each number."""
    client_patience_s: float = PATIENCE_S
    """After how long without a server a client gives up."""
    wait_replicas: int = 0
    """Replicas that producers wait for."""
    journal: str
    """Path of the file to write."""
    prefix: str
    """Of the conversation ids."""
    seed: int
    conversations: int
    """That are talked in at a time."""
    think_s: float
    """Longest pause between two moves in a conversation."""
    forgotten: float
    """Share of the conversations that are forgotten while a turn runs, 0 to 1."""
    patience_s: float
    """How long to wait for the end of all turns when the talking is over."""
    is_new: bool = True
    """Whether turns are rated and delayed, which workers of earlier versions do not know."""
    tenants: bool = True
    """Whether it is kept what tenants spend, which workers of earlier versions do not."""


class _Talk:
    """One conversation: moves of its producers, its follower and its readers."""

    def __init__(  # noqa: PLR0917  all that a conversation has to do with
        self,
        client: TurnClient,
        chat: Chat,
        rng: random.Random,
        quiet: asyncio.Event,
        errors: Errors,
        plan: TrafficPlan,
    ) -> None:
        self._client = client
        self._wait_replicas = plan.wait_replicas
        self._is_new = plan.is_new
        self._errors = errors
        self._chat = chat
        luck = random.Random(f"{plan.seed} {chat.conversation}")
        self._is_to_be_forgotten = luck.random() < plan.forgotten
        if plan.tenants:
            chat.tenant = _FORGOTTEN if self._is_to_be_forgotten else luck.choice(_TENANTS)
        self._is_configured = bool(chat.tenant) and luck.random() < 0.5
        """Whether the conversation's settings say whose it is; else each message does."""
        self._tenant = "" if self._is_configured else chat.tenant or ""
        self._rng = rng
        self._quiet = quiet
        self._tasks: set[asyncio.Task[None]] = set()
        self._over: set[str] = set()
        self._progress = asyncio.Event()

    # -- the whole of it ------------------------------------------------------------------------

    async def run(self, plan: TrafficPlan) -> None:
        """Make moves, then wait for the end of everything that was accepted."""
        rng, chat = self._rng, self._chat
        follower = asyncio.create_task(self._follow())
        try:
            if self._is_configured:
                await self._set(tenant=chat.tenant or None)
            for _ in range(rng.randint(10, 25)):
                if self._quiet.is_set():
                    break
                await self._chosen()()
                await asyncio.sleep(rng.uniform(0, plan.think_s))
            if self._is_to_be_forgotten:
                await self._forget()
            else:
                chat.followed_to_end = await self._wait_for_the_end(plan.patience_s)
        finally:
            follower.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(follower, *self._tasks, return_exceptions=True)

    def _chosen(self) -> Callable[[], Awaitable[None]]:
        moves: Sequence[tuple[int, Callable[[], Awaitable[None]]]] = (
            (40, self._ask),
            (14, self._burst),
            (8, self._twice),
            (7, self._fragments),
            (8, self._interrupt),
            (6, partial(self._cut_in, "interrupt")),
            (6, partial(self._cut_in, "rollback")),
            (4, self._only_if_idle),
            (3, self._note),
            (2, self._configure),
            (4 if self._is_new else 0, self._rate),
            (4 if self._is_new else 0, self._later),
            (2, self._speak),
        )
        weights = [weight for weight, _ in moves]
        return self._rng.choices([move for _, move in moves], weights)[0]

    async def _wait_for_the_end(self, patience_s: float) -> bool:
        """Wait until the follower saw every accepted turn end and every reader is done."""
        deadline: float | None = None
        while True:
            self._progress.clear()
            accepted = {sent.turn for sent in self._chat.sent if sent.outcome == "accepted"}
            if accepted <= self._over and not self._tasks:
                return True
            if self._quiet.is_set():
                deadline = deadline or time.monotonic() + patience_s
                if time.monotonic() > deadline:
                    return False
            try:
                await asyncio.wait_for(self._progress.wait(), _LOOK_S)
            except TimeoutError:
                await self._look_for(accepted - self._over)

    async def _look_for(self, turns: set[str]) -> None:
        """Wait no more for turns that nobody knows any more. What was lost, the checker says."""
        for turn in turns:
            receipt = Receipt(
                conversation_id=self._chat.conversation, turn_id=turn, status="accepted"
            )
            try:
                await self._client.record(receipt)
            except TurnUnknown:
                self._over.add(turn)
                self._progress.set()
            except GIVEN_UP as error:
                self._errors.note(receipt.conversation_id, "record", now_ms(), error)

    # -- moves ----------------------------------------------------------------------------------

    async def _ask(self) -> None:
        reader = await self._say(self._text())
        await self._until_over(reader)

    async def _burst(self) -> None:
        reader: TurnReader | None = None
        for _ in range(self._rng.randint(2, 5)):
            reader = await self._say(self._text())
        await self._until_over(reader)

    async def _twice(self) -> None:
        """Submit the same message again, at once or a little later."""
        sent, message = self._message(self._text())
        if self._rng.random() < 0.5:
            receipts = await asyncio.gather(self._send(sent, message), self._send(sent, message))
            receipt = receipts[0]
        else:
            receipt = await self._send(sent, message)
            await asyncio.sleep(self._rng.uniform(0, 0.3))
            await self._send(sent, message)
        await self._until_over(self._read(receipt))

    async def _fragments(self) -> None:
        """Write in pieces, the last one marked as such or not."""
        count = self._rng.randint(2, 3)
        reader: TurnReader | None = None
        for n in range(count):
            final = n == count - 1 and self._rng.random() < 0.7
            reader = await self._say(self._text(), kind="user" if final else "fragment")
            await asyncio.sleep(self._rng.uniform(0, 0.1))
        if self._rng.random() < 0.2:
            await self._note()
        await self._until_over(reader)

    async def _interrupt(self) -> None:
        reader = await self._say(self._text(), watch=True)
        await self._until_begun(reader)
        heard = None
        if reader is not None and self._rng.random() < 0.3:
            heard = reader.shown.text[: self._rng.randint(0, 40)] or None
        sent = self._new("interrupt", act="interrupt")
        message = Interrupt(conversation_id=self._chat.conversation, turn_id=sent.turn, heard=heard)
        await self._send(sent, message)
        await self._until_over(reader)

    async def _cut_in(self, act: Act) -> None:
        """Say something else while a reply is running."""
        await self._until_begun(await self._say(self._text(), watch=True))
        await self._until_over(await self._say(self._text(), act=act))

    async def _only_if_idle(self) -> None:
        if self._rng.random() < 0.5:
            await self._say(self._text())
        await self._until_over(await self._say(self._text(), act="reject"))

    async def _later(self) -> None:
        """Say something that takes its place later, and go on meanwhile."""
        sent, message = self._message(self._text())
        sent.due_ms = int(now_ms()) + self._rng.randint(1, 4_000)
        message = msgspec.structs.replace(message, deliver_at_ms=sent.due_ms)
        self._read(await self._send(sent, message))

    async def _note(self) -> None:
        where, sent = self._chat.conversation, self._new("note", text=self._text())
        message = UserMessage(conversation_id=where, turn_id=sent.turn, text=sent.text, run=False)
        await self._send(sent, message)

    async def _configure(self) -> None:
        await self._set(temperature=round(self._rng.random(), 2))

    async def _set(self, **settings: Any) -> None:
        where, sent = self._chat.conversation, self._new("setting")
        change = SettingsChange(**settings)
        message = Configure(conversation_id=where, turn_id=sent.turn, settings=change)
        await self._send(sent, message)

    async def _rate(self) -> None:
        """Rate a turn that was accepted and stands before, whether it has ended or not."""
        every = self._chat.sent
        accepted = [it.turn for it in every if it.outcome == "accepted" and not it.due_ms]
        if accepted:
            turn, name = self._rng.choice(accepted[-4:]), self._rng.choice(_RATED)
            sent = self._new("rating", rates=(turn, name))
            message = Feedback(
                conversation_id=self._chat.conversation,
                turn_id=sent.turn,
                of_turn=turn,
                name=name,
                score=round(self._rng.random(), 2),
            )
            await self._send(sent, message)

    async def _speak(self) -> None:
        where = self._chat.conversation
        start = self._new("speech")
        await self._send(start, UserStartedSpeaking(conversation_id=where, turn_id=start.turn))
        said = self._new("fragment", text=self._text())
        message = Transcription(
            conversation_id=where, turn_id=said.turn, text=said.text, tenant=self._tenant
        )
        await self._send(said, message)
        stop = self._new("speech")
        await self._send(stop, UserStoppedSpeaking(conversation_id=where, turn_id=stop.turn))

    async def _forget(self) -> None:
        """Ask to forget the conversation while a turn of it runs."""
        await self._until_begun(await self._say(self._text(), watch=True))
        began_ms = now_ms()
        try:
            await self._client.forget(self._chat.conversation)
        except GIVEN_UP as error:
            self._errors.note(self._chat.conversation, "forget", began_ms, error)
        else:
            self._chat.forgotten_at_ms = now_ms()
        self._chat.forgotten = True

    # -- pieces ---------------------------------------------------------------------------------

    def _text(self) -> str:
        return f"#{len(self._chat.sent)} {self._rng.choice(_WORDS)}"

    def _new(self, kind: Kind, **fields: Any) -> Sent:
        turn = f"{self._chat.conversation}.{len(self._chat.sent)}"
        sent = Sent(turn=turn, kind=kind, **fields)
        self._chat.sent.append(sent)
        return sent

    def _message(
        self, text: str, *, kind: Kind = "user", act: Act = ""
    ) -> tuple[Sent, UserMessage]:
        sent = self._new(kind, text=text, act=act, replies=self._rng.random() < 0.2)
        return sent, UserMessage(
            conversation_id=self._chat.conversation,
            turn_id=sent.turn,
            text=text,
            final=kind != "fragment",
            when_busy=act or "enqueue",
            reply_to=REPLIES if sent.replies else None,
            tenant=self._tenant,
        )

    async def _say(
        self, text: str, *, kind: Kind = "user", act: Act = "", watch: bool = False
    ) -> TurnReader | None:
        sent, message = self._message(text, kind=kind, act=act)
        return self._read(await self._send(sent, message), watch=watch)

    async def _send(self, sent: Sent, message: Inbound) -> Receipt | None:
        """Submit, again while it is refused for now; None without a receipt."""
        sent.begun_ms = sent.begun_ms or now_ms()
        while True:
            began_ms = now_ms()
            try:
                receipt = await self._client.submit(message)
            except ConversationBusy:
                sent.outcome = "refused"
                return None
            except Refused:
                await asyncio.sleep(self._rng.uniform(0.05, 0.3))
            except GIVEN_UP as error:
                self._errors.note(self._chat.conversation, "submit", began_ms, error)
                return None
            else:
                if (took_ms := now_ms() - began_ms) > sent.slowest_ms:
                    sent.slowest_from_ms, sent.slowest_ms = began_ms, took_ms
                is_unsafe = (receipt.replicas or 0) < self._wait_replicas
                sent.is_unsafe = is_unsafe and (sent.is_unsafe or sent.outcome != "accepted")
                sent.outcome = "accepted"
                sent.accepts += receipt.accepted
                sent.answered_ms = sent.answered_ms or now_ms()
                return receipt

    def _read(self, receipt: Receipt | None, *, watch: bool = False) -> TurnReader | None:
        """Show the turn to a reader, or to nobody."""
        chance = self._rng.random()
        if receipt is None or (chance < 0.15 and not watch):
            return None
        by: Literal["events", "text", "result"]
        by = "events" if chance < 0.75 or watch else "text" if chance < 0.85 else "result"
        shown = Shown(turn=receipt.turn_id, by=by)
        self._chat.shown.append(shown)
        reader = TurnReader(self._client, receipt, shown, self._rng.getrandbits(32), self._errors)
        task = asyncio.create_task(reader.run())
        self._tasks.add(task)
        task.add_done_callback(self._read_to_the_end)
        return reader

    def _read_to_the_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._progress.set()
        if not task.cancelled():
            task.result()  # an unexpected error goes to the loop's handler

    async def _until_begun(self, reader: TurnReader | None) -> None:
        if reader is not None:
            await _within(reader.begun.wait(), 10)

    async def _until_over(self, reader: TurnReader | None) -> None:
        if reader is not None:
            while not reader.shown.ended and not self._quiet.is_set():
                self._progress.clear()
                await _within(self._progress.wait(), 1)

    async def _follow(self) -> None:
        """Follow the whole conversation, leaving and resuming."""
        chat = self._chat
        while True:
            after = chat.followed[-1] if chat.followed else "0-0"
            began_ms = now_ms()
            try:
                follow = self._client.follow(chat.conversation, after=after)
                async with aclosing(closable(follow)) as events:
                    async for event in events:
                        chat.followed.append(event.event_id)
                        if isinstance(event, TERMINAL):
                            chat.followed_ends.append(event.event_id)
                            self._over.add(event.turn_id)
                            self._progress.set()
                        if self._rng.random() < 0.01:
                            break
            except GIVEN_UP as error:
                self._errors.note(chat.conversation, "follow", began_ms, error)
                await asyncio.sleep(PAUSE_S)
            chat.resumed += 1


async def _within(awaitable: Any, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(awaitable, seconds)


async def run(plan: TrafficPlan, quiet: asyncio.Event) -> Journal:
    """Talk in many conversations until `quiet`, then wait for the end of all turns."""
    journal, rng = Journal(), random.Random(plan.seed)
    errors = Errors(journal)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: journal.defects.append(_words(context)))

    async def slot(number: int, rng: random.Random) -> None:
        count, client = 0, clients[number % len(clients)]
        while not quiet.is_set():
            chat = Chat(conversation=f"{plan.prefix}-{number}-{count}")
            journal.chats.append(chat)
            count += 1
            try:
                talk = _Talk(client, chat, rng, quiet, errors, plan)
                await talk.run(plan)
            except Exception as error:  # noqa: BLE001  whatever a client raises is a finding
                journal.defects.append(_words({"exception": error}))

    async with AsyncExitStack() as exits:
        clients = [
            await exits.enter_async_context(
                TurnClient.connect(
                    plan.redis_url,
                    shards=shards,
                    patience_s=plan.client_patience_s,
                    wait_replicas=plan.wait_replicas,
                )
            )
            for shards in plan.shards
        ]
        print("talking", flush=True)
        seeds = [rng.getrandbits(64) for _ in range(plan.conversations)]
        await asyncio.gather(*(slot(n, random.Random(seed)) for n, seed in enumerate(seeds)))
    return journal


def _words(context: dict[str, Any]) -> str:
    error = context.get("exception")
    if not isinstance(error, BaseException):
        return str(context.get("message"))
    return "".join(traceback.format_exception(error)[-3:])


async def _main(plan: TrafficPlan) -> None:
    quiet = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), quiet.set)
    waiting = asyncio.create_task(quiet.wait())
    waiting.add_done_callback(lambda _: loop.remove_reader(sys.stdin.fileno()))
    journal = await run(plan, quiet)
    await asyncio.to_thread(Path(plan.journal).write_bytes, encode_journal(journal))


if __name__ == "__main__":
    sabotage.apply_from_environment()
    uvloop.run(_main(msgspec.json.decode(sys.argv[1], type=TrafficPlan)))
