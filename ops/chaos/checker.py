"""Compares what a run left with what was promised. Pure: data in, violations out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Literal

import msgspec

from turnline.contracts.conversation import AssistantEntry, UserEntry
from turnline.contracts.keys import shard_of
from turnline.contracts.layout import Layout
from turnline.contracts.protocol import TextAssembler
from turnline.contracts.replies import (
    TERMINAL,
    AnyTerminal,
    TextDelta,
    TurnAbsorbed,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
)
from turnline.ops.chaos.attempts import check_attempts
from turnline.ops.chaos.disturbances import CONFLICTING, TERMINAL_CODES, TWICE_CODES, Disturbance
from turnline.ops.chaos.evidence import Evidence, Left, Request
from turnline.ops.chaos.journal import Chat, Sent, Shown
from turnline.ops.chaos.places import check_places, in_order
from turnline.ops.chaos.rated_turns import check_ratings, is_unknown
from turnline.ops.chaos.spending import check_spend, check_spending
from turnline.ops.chaos.thoughts import Answered, check_thoughts
from turnline.worker.turn.commit import NO_DEAD_LETTER

Column = Literal[
    "lost", "duplicated", "reordered", "misled", "tokens", "leaked", "run twice", "broken",
    "lost reasoning", "broken prefix", "producer errors", "lost by failover", "shown, then lost",
]  # fmt: skip
COLUMNS: Final[tuple[Column, ...]] = (
    "lost", "duplicated", "reordered", "misled", "tokens", "leaked", "run twice", "broken",
    "lost reasoning", "broken prefix", "producer errors", "lost by failover", "shown, then lost",
)  # fmt: skip
PERMANENT: Final = frozenset({"queue", "wake", "idle", "token", "workers", "fleet"})
"""The shard's keys that may stay for ever, by the last part of their names. They do not grow."""


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """One promise that was broken, and where to look."""

    column: Column
    conversation: str
    turn: str = ""
    what: str
    by: str = ""
    """Kind of the failover that explains it, if one does."""


def check(
    chats: Sequence[Chat],
    evidence: Evidence,
    disturbances: Sequence[Disturbance],
) -> list[Violation]:
    """Check every promise for every conversation."""
    found = list(_check_keys(chats, evidence))
    found += _check_dead_letters(chats, evidence)
    if len(evidence.layout.every) == 1 or not any(it.failed_over for it in disturbances):
        # Else a ledger may have moved on from a server that lost what it had of the spend.
        for tenant, what in check_spend(chats, evidence):
            found.append(Violation(column="tokens", conversation=f"tenant {tenant!r}", what=what))
    for chat in chats:
        if chat.forgotten:
            continue
        found += ChatCheck(
            chat,
            evidence.left.get(chat.conversation, Left()),
            evidence.requests.get(chat.conversation, ()),
            evidence.replies,
            concerning(disturbances, chat.conversation, evidence.layout),
            evidence.turn_tokens,
        ).run()
    return found


def concerning(
    disturbances: Sequence[Disturbance], conversation: str, layout: Layout
) -> list[Disturbance]:
    """Return the disturbances that may have been felt in a conversation."""
    shards = shards_of(conversation, layout)
    return [it for it in disturbances if any(map(it.concerns, shards))]


def shards_of(conversation: str, layout: Layout) -> set[int]:
    """Return all shards in which a conversation may have been at some time."""
    return {shard_of(conversation, number) for number in layout.every}


class ChatCheck:
    """Compares one conversation's producers and readers with what Redis holds of it."""

    def __init__(  # noqa: PLR0917  both sides
        self,
        chat: Chat,
        left: Left,
        requests: Sequence[Request],
        replies: Mapping[str, int],
        disturbances: Sequence[Disturbance],
        turn_tokens: int | None = None,
    ) -> None:
        """Take both sides."""
        self._chat = chat
        self._left = left
        self._requests = requests
        self._replies = replies
        self._disturbances = disturbances
        self._turn_tokens = turn_tokens
        self._sent = {sent.turn: sent for sent in chat.sent}
        self._accepted = [sent for sent in chat.sent if sent.outcome == "accepted"]
        self._order = in_order(left, self._sent)
        self._ends: dict[str, AnyTerminal] = {}
        self._ids: dict[str, list[str]] = {}
        for event in left.events:
            self._ids.setdefault(event.turn_id, []).append(event.event_id)
            if isinstance(event, TERMINAL):
                self._ends.setdefault(event.turn_id, event)
        for turn, record in left.records.items():  # a missing event is reported once, elsewhere
            end = record.terminal()
            if end is not None:
                self._ends.setdefault(turn, end)

    def run(self) -> Iterator[Violation]:
        """Check everything."""
        yield from self._check_acceptance()
        yield from self._check_ends()
        yield from self._check_endings()
        yield from self._check_context()
        yield from self._check_requests()
        yield from self._check_streams()
        yield from self._check_readers()
        for turn, what in check_attempts(self._left, self._disturbances):
            yield self._violation("run twice", turn, what)
        for turn, what in check_spending(self._left, self._requests, self._turn_tokens):
            yield self._violation("tokens", turn, what)
        for turn, what in check_ratings(self._left, self._sent, self._ends):
            yield self._violation("lost", turn, what)
        for column, turn, what in check_thoughts(self._left, list(self._answered())):
            yield self._violation(column, turn, what)
        for turn, what in check_places(self._left, self._sent):
            yield self._violation("reordered", turn, what)
        for what in self._left.unfinished:
            yield self._violation("leaked", "", f"{what} of a turn that is over")
        for what in self._left.strays:
            yield self._violation("leaked", "", f"it is elsewhere, and still there is {what}")

    def _violation(self, column: Column, turn: str, what: str) -> Violation:
        met = [f"{it.outcome} {'|'.join(it.faults)}".strip() for it in self._asked_for(turn)]
        what += f" (requests: {', '.join(met)})" if met else ""
        return Violation(column=column, conversation=self._chat.conversation, turn=turn, what=what)

    def _asked_for(self, turn: str) -> list[Request]:
        """Return the requests whose last message is a turn's."""
        words = self._sent[turn].text if turn in self._sent else ""
        return [
            it for it in self._requests if words and it.messages and words in it.messages[-1][1]
        ]

    # -- acceptance -----------------------------------------------------------------------------

    def _check_acceptance(self) -> Iterator[Violation]:
        """Each message is in the log once. The order is that of the answers to producers."""
        times = Counter(self._left.log)
        for sent in self._accepted:
            if not times[sent.turn]:
                yield self._violation("lost", sent.turn, "accepted, and not in the log")
        for sent in self._chat.sent:
            if times[sent.turn] > 1 or sent.accepts > 1:
                yield self._violation("duplicated", sent.turn, "the same message was let in twice")
            if sent.outcome == "refused" and times[sent.turn]:
                yield self._violation("duplicated", sent.turn, "refused, and in the log")
        place = {turn: n for n, turn in enumerate(self._left.log)}
        answered = [it for it in self._accepted if it.turn in place]
        for before, after in pairwise(answered):
            if before.answered_ms < after.begun_ms and place[before.turn] > place[after.turn]:
                yield self._violation("reordered", after.turn, "let in before an earlier message")

    def _check_ends(self) -> Iterator[Violation]:
        """Each accepted message has one end, the same everywhere."""
        ends = Counter(e.turn_id for e in self._left.events if isinstance(e, TERMINAL))
        for sent in self._accepted:
            turn = sent.turn
            record = self._left.records.get(turn)
            end = record.terminal() if record is not None else None
            if end is None:
                yield self._violation("lost", turn, "accepted, and never ended")
                continue
            if ends[turn] == 0 and not self._left.is_trimmed:
                yield self._violation("lost", turn, "no terminal event")
            if ends[turn] > 1:
                yield self._violation("duplicated", turn, f"{ends[turn]} terminal events")
            shown = self._ends.get(turn)
            if shown is not None and _bare(shown) != _bare(end):
                yield self._violation("misled", turn, "the terminal event is not the record's")
            copies = self._replies.get(turn, 0)
            if sent.replies and copies != 1:
                column: Column = "duplicated" if copies else "lost"
                yield self._violation(column, turn, f"{copies} entries in the reply stream")
        if self._left.inbox:
            yield self._violation("lost", "", f"{self._left.inbox} messages still in the inbox")

    def _check_endings(self) -> Iterator[Violation]:
        """Each end of a turn has a cause in what was sent or what was disturbed."""
        later_acts: set[str] = set()
        for turn in reversed(self._order):
            sent, end = self._sent.get(turn), self._ends.get(turn)
            if sent is None:
                yield self._violation("duplicated", turn, "nobody sent this")
                continue
            match end:
                case TurnInterrupted() if "interrupt" not in later_acts:
                    yield self._violation("broken", turn, "interrupted by nobody")
                case TurnFailed() if not (
                    self._is_explained(end) or is_unknown(end, self._left, sent)
                ):
                    yield self._violation("broken", turn, f"failed: {end.code}: {end.message}")
                case TurnAbsorbed() if sent.kind == "user" and "rollback" not in later_acts:
                    yield self._violation("broken", turn, "absorbed for no reason")
                case TurnAbsorbed() if end.into is not None and (
                    end.into not in self._left.records
                    or isinstance(self._ends.get(end.into), TurnAbsorbed)
                ):
                    yield self._violation("lost", turn, f"absorbed into {end.into}, which is none")
                case _:
                    pass
            later_acts.add(sent.act)

    # -- context --------------------------------------------------------------------------------

    def _expected(self) -> list[tuple[str, str, str]]:
        """Return the (role, text, turn) that the records say the context consists of."""
        said: dict[str, list[str]] = {}
        expected: list[tuple[str, str, str]] = []
        for turn in self._order:
            sent, end = self._sent.get(turn), self._ends.get(turn)
            if sent is None or end is None:
                continue
            match end:
                case TurnAbsorbed():
                    if sent.text and end.into is not None:
                        said.setdefault(end.into, []).append(sent.text)
                case TurnCompleted() | TurnInterrupted() if sent.text:
                    words = [*said.pop(turn, ()), sent.text]
                    expected.append(("user", " ".join(words), turn))
                    if end.text:
                        expected.append(("assistant", end.text, turn))
                case _:
                    pass
        return expected

    def _is_explained(self, end: TurnFailed) -> bool:
        """Whether the faults of the model explain this failure."""
        if end.code in TERMINAL_CODES:
            return True
        if end.code == "budget_exceeded":  # that it was is checked with the spending
            return self._turn_tokens is not None
        own = self._asked_for(end.turn_id)
        if end.code in {"bad_request", "permission"}:
            # Another fault lost the sentence that says why, or its place.
            return any(
                (CONFLICTING & {*it.faults} and len(it.faults) > 1)
                or (it.faults and it.outcome == "error")  # it cut the sentence off
                for it in own
            )
        struck = sum(bool(it.faults) for it in own)
        return (end.code in TWICE_CODES and struck >= 2) or (
            end.code == "attempts_exhausted" and struck >= 5
        )

    def _check_context(self) -> Iterator[Violation]:
        expected = self._expected()
        actual = [
            (_role(entry), entry.content if isinstance(entry.content, str) else "")
            for entry in self._left.context
        ]
        if actual == [(role, words) for role, words, _ in expected]:
            return
        known = {(role, words): turn for role, words, turn in expected}
        missing = Counter((role, words) for role, words, _ in expected)
        missing.subtract(actual)
        clean = True
        for (role, words), n in missing.items():
            turn = known.get((role, words), "")
            if n > 0:
                yield self._violation("lost", turn, f"its {role} message is not in the context")
            elif n < 0:
                what = f"a {role} message stands {1 - n} times" if turn else "an unknown message"
                yield self._violation("duplicated", turn, f"{what} in the context: {words[:30]!r}")
            clean = clean and n == 0
        if clean:
            at = next(n for n, pair in enumerate(expected) if actual[n] != (pair[0], pair[1]))
            yield self._violation(
                "reordered", expected[at][2], f"message {at} of the context is another one's"
            )

    def _check_requests(self) -> Iterator[Violation]:
        """The model was shown the context as it stood, and answered what was asked last."""
        place = {(role, words): n for n, (role, words, _) in enumerate(self._expected())}
        for role, words, turn in self._expected():
            end = self._ends[turn]
            if role != "user" or not isinstance(end, TurnCompleted) or end.finish_reason is None:
                continue
            is_cut = end.finish_reason == "length"
            if " ".join(words.split()[:12]) not in end.text and not is_cut:
                yield self._violation("misled", turn, "the reply answers another message")
            shown = [it for it in self._requests if it.messages[-1:] == ((role, words),)]
            before = place[role, words]
            actual = tuple(
                (_role(entry), entry.content) for entry in self._left.context[: before + 1]
            )
            if not shown:
                yield self._violation("tokens", turn, "answered without a call of the model")
            elif shown[-1].messages != actual:
                yield self._violation("reordered", turn, "the model was shown another context")

    def _answered(self) -> Iterator[Answered]:
        """Yield the turns whose words and answers are committed, with their requests."""
        for n, (role, words, turn) in enumerate(self._expected()):
            shown = [it for it in self._requests if it.messages[-1:] == ((role, words),)]
            if role == "user" and shown:
                yield Answered(turn, self._ends[turn], shown[-1], n + 1)

    # -- readers --------------------------------------------------------------------------------

    def _check_streams(self) -> Iterator[Violation]:
        """A reader of a turn's whole stream is never misled."""
        screens: dict[str, tuple[TextAssembler, int]] = {}
        workers: dict[tuple[str, int], str] = {}
        over: set[str] = set()
        for event in self._left.events:
            turn = event.turn_id
            if turn in over:
                if not isinstance(event, TERMINAL):
                    yield self._violation("misled", turn, "an event behind the terminal one")
                continue
            screen, attempt = screens.get(turn, (TextAssembler(), 0))
            if isinstance(event, TERMINAL):
                over.add(turn)
                if attempt == event.attempt and not _agrees(screen.text, event):
                    yield self._violation("misled", turn, "shown text is not the committed one")
                continue
            if event.attempt < attempt:
                yield self._violation("misled", turn, "an earlier attempt spoke behind a later one")
            if isinstance(event, TurnStarted):
                other = workers.setdefault((turn, event.attempt), event.worker)
                if other != event.worker:
                    yield self._violation(
                        "misled", turn, f"attempt {event.attempt} by {other} and {event.worker}"
                    )
            if isinstance(event, TextDelta) and _contradicts(screen, attempt, event):
                yield self._violation("misled", turn, "two texts for the same place")
            screen.feed(event)
            screens[turn] = (screen, max(attempt, event.attempt))

    def _check_readers(self) -> Iterator[Violation]:
        """Every reader saw every event of its turn once, and the committed text in the end."""
        for shown in self._chat.shown:
            if shown.turn in self._ends:
                yield from self._check_reader(shown)
        ids = [event.event_id for event in self._left.events]
        followed = self._chat.followed
        if len(set(followed)) != len(followed):
            yield self._violation("misled", "", "a follower was shown an event twice")
        elif not self._left.is_trimmed and followed != ids[: len(followed)]:
            yield self._violation("misled", "", "a follower missed an event")
        elif self._chat.followed_to_end is False:
            yield self._violation("lost", "", "a follower waited for an end in vain")

    def _check_reader(self, shown: Shown) -> Iterator[Violation]:
        turn, end = shown.turn, self._ends[shown.turn]
        if not shown.ended:
            yield self._violation("misled", turn, f"a reader by {shown.by} never saw the end")
            return
        if shown.text != getattr(end, "text", ""):
            yield self._violation("misled", turn, f"a reader by {shown.by} kept another text")
        if shown.by == "events" and not self._left.is_trimmed:
            if len(set(shown.ids)) != len(shown.ids):
                yield self._violation("misled", turn, "a reader was shown an event twice")
            elif shown.ids != self._ids.get(turn, [])[: len(shown.ids)]:
                yield self._violation("misled", turn, "a reader missed an event")

    # -- running --------------------------------------------------------------------------------


def _agrees(screen: str, end: AnyTerminal) -> bool:
    """Whether the text on a reader's screen is a beginning of the committed text."""
    shown = screen.strip()
    match end:
        case TurnCompleted():
            return end.text.startswith(shown)
        case TurnInterrupted():  # it may have been cut to what was heard
            return shown.startswith(end.text) or end.text.startswith(shown)
        case _:
            return True


def _contradicts(screen: TextAssembler, attempt: int, delta: TextDelta) -> bool:
    if delta.attempt != attempt:
        return False
    known = screen.text[delta.offset : delta.offset + len(delta.text)]
    return not delta.text.startswith(known)


def _bare(event: AnyTerminal) -> AnyTerminal:
    bare: AnyTerminal = msgspec.structs.replace(event, event_id="")
    return bare


def _role(entry: Any) -> str:
    match entry:
        case UserEntry():
            return "user"
        case AssistantEntry():
            return "assistant"
        case _:
            return "other"


def _check_keys(chats: Sequence[Chat], evidence: Evidence) -> Iterator[Violation]:
    """Every key expires, and a forgotten conversation has no key left."""
    for key, life_ms in evidence.lives.items():
        if life_ms == -1 and key.rpartition(":")[2] not in PERMANENT:
            yield Violation(column="leaked", conversation=key, what="a key without expiry")
    for chat in chats:
        if not chat.forgotten:
            continue
        name = chat.conversation
        for key in evidence.lives:
            if f":{name}:" in f"{key}:":
                yield Violation(column="leaked", conversation=name, what=f"forgotten: {key}")
        turns = {sent.turn for sent in chat.sent}
        if turns & evidence.replies.keys():
            what = "forgotten, and still in the reply stream"
            yield Violation(column="leaked", conversation=name, what=what)


def _check_dead_letters(chats: Sequence[Chat], evidence: Evidence) -> Iterator[Violation]:
    """Each failed turn, and each that it absorbed, is one dead letter; no other is."""
    letters = Counter((conversation, turn) for conversation, turn, _ in evidence.dead)
    for chat in chats:
        name = chat.conversation
        left = evidence.left.get(name, Left())
        ends = {turn: record.terminal() for turn, record in left.records.items()}
        failed = {
            turn
            for turn, end in ends.items()
            if isinstance(end, TurnFailed) and end.code not in NO_DEAD_LETTER
        }
        failed |= {
            turn
            for turn, end in ends.items()
            if isinstance(end, TurnAbsorbed) and end.into in failed
        }
        for sent in chat.sent:
            count = letters.get((name, sent.turn), 0)
            if chat.forgotten and count:
                what = "forgotten, and still a dead letter"
                yield Violation(column="leaked", conversation=name, turn=sent.turn, what=what)
            elif not chat.forgotten and count != (sent.turn in failed):
                column: Column = "duplicated" if count else "lost"
                what = f"{count} dead letters for a turn that {_ended(sent, failed)}"
                yield Violation(column=column, conversation=name, turn=sent.turn, what=what)


def _ended(sent: Sent, failed: set[str]) -> str:
    return "failed" if sent.turn in failed else "did not fail"
