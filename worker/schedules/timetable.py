"""A schedule, and the ticks of its cron line.

A cron line means what Debian's cron makes of it, in the schedule's time zone.

Source: docs/adr/0040-schedules-stand-on-the-queue.md
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError
from msgspec import Meta

from turnline.contracts.errors import InvalidMessage
from turnline.contracts.messages import UserMessage, check_ids, validated

MISSED_S: Final = 300
"""Seconds that a tick may be late and is not a missed one."""
FUTURE_MS: Final = 600_000
"""Beyond which a tick that was seen to cannot lie ahead: the clock of another server may."""
MOST: Final = 1_000
"""Schedules of a fleet: each look reads all of them."""
_EXPECTED: Final = (
    "expected minute, hour, day of the month, month and day of the week, such as 0 9 * * mon-fri"
)
_NOTE: Final = re.compile(rb"(since )?([0-9]{1,15})")
Missed = Literal["last", "none"]
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


class InvalidSchedule(ValueError):
    """A schedule cannot be kept. The text says what is expected."""


class Schedule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Says when which message is submitted. New fields get defaults; unknown ones are ignored."""

    cron: Annotated[str, Meta(max_length=200)]
    """Five fields: minute, hour, day of the month, month, day of the week."""
    message: UserMessage
    """What is submitted; its turn id is made from the tick."""
    timezone: Annotated[str, Meta(max_length=64)] = "UTC"
    """Of the IANA database, such as `Europe/Berlin`."""
    missed: Missed = "last"
    """Whether the last one of the ticks that nobody could look after is caught up."""
    is_paused: bool = False


class Ticks(NamedTuple):
    """Where a moment stands among the ticks of a schedule; ms since the Unix epoch."""

    last_ms: int | None
    """The latest tick that is not behind the moment."""
    next_ms: int


class Note(NamedTuple):
    """What is known of a schedule's ticks."""

    at_ms: int
    is_tick: bool
    """Whether that is the last tick that was seen to; else since when there is the schedule."""


class DueTurn(NamedTuple):
    """A tick that is due."""

    name: str
    tick_ms: int
    message: UserMessage | None
    """What to submit; None if the tick is let go."""


class Plan(NamedTuple):
    """What is to be done at a moment."""

    due: list[DueTurn]
    next_ms: int | None
    """When there is more; None if there are no schedules that run."""
    unusable: list[str]
    """Names of schedules that nobody can read here."""


_decode = msgspec.json.Decoder(Schedule).decode
encode_schedule = msgspec.json.Encoder().encode


def read_schedule(value: bytes) -> Schedule:
    """Read the value of one.

    Raises:
        InvalidSchedule: Others wrote it, or a later version.
    """
    try:
        return _decode(value)
    except (msgspec.DecodeError, InvalidMessage, UnicodeError, RecursionError):
        raise InvalidSchedule("it is not the JSON of a schedule") from None


def check_schedule(name: str, schedule: Schedule) -> None:
    """Check what a worker could not make good any more.

    Raises:
        InvalidSchedule: The name, the cron line or the time zone is none.
        InvalidMessage: The message breaks the contract.
    """
    if not _NAME.fullmatch(name):
        raise InvalidSchedule(
            "name: expected up to 64 letters, digits, `.`, `_` and `-` of ASCII, beginning with a "
            "letter or a digit"
        )
    ticks_at(schedule, 0)
    message = turn_of(name, schedule, 0)
    check_ids(message)
    validated(message)


def ticks_at(schedule: Schedule, now_ms: int) -> Ticks:
    """Return the ticks on both sides of a moment.

    A tick in an hour that daylight saving leaves out is moved behind it; one in an hour that comes
    twice is the first of the two, unless its line has `*` for minute or hour.

    Raises:
        InvalidSchedule: The cron line or the time zone is none, or there is never a tick.
    """
    if (fields := len(schedule.cron.split())) != 5:
        raise InvalidSchedule(f"cron line: it has {fields} fields; {_EXPECTED}")
    zone = _zone(schedule.timezone)
    now = datetime.fromtimestamp(now_ms // 1000, UTC)
    try:
        # Behind the moment, for the tick at the moment itself.
        before = CronSim(schedule.cron, _local(now_ms // 1000 + 1, zone), reverse=True)
        last = next((tick for tick in before if tick.astimezone(UTC) <= now), None)
        # From there on: where the clock was put back, the first look may not reach it.
        for tick in CronSim(schedule.cron, last or _local(now_ms // 1000, zone)):
            if tick.astimezone(UTC) > now:
                return Ticks(None if last is None else _ms(last), _ms(tick))
            last = tick
    except CronSimError as error:
        raise InvalidSchedule(f"cron line: {str(error).lower()}; {_EXPECTED}") from None
    raise InvalidSchedule("cron line: no day ever fits it")


def plan(values: Mapping[str, bytes], notes: Mapping[str, Note], now_ms: int) -> Plan:
    """Return what is due at a moment: of each schedule its latest tick, if that was not yet.

    Args:
        values: Name to the value of a schedule.
        notes: Name to what is known of its ticks; one without begins now.
        now_ms: The moment, by the server's clock.
    """
    due: list[DueTurn] = []
    coming: list[int] = []
    unusable: list[str] = []
    for name, value in sorted(values.items()):
        try:
            schedule = read_schedule(value)
            ticks = ticks_at(schedule, now_ms)
        except InvalidSchedule:
            unusable.append(name)
            continue
        if schedule.is_paused:
            continue
        coming.append(ticks.next_ms)
        note = notes.get(name)
        if note is None or note.at_ms > now_ms + FUTURE_MS:  # it was lost: from now on
            due.append(DueTurn(name, now_ms if ticks.last_ms is None else ticks.last_ms, None))
        elif ticks.last_ms is not None and ticks.last_ms > note.at_ms:
            is_missed = schedule.missed == "none" and now_ms - ticks.last_ms > MISSED_S * 1000
            message = None if is_missed else turn_of(name, schedule, ticks.last_ms)
            due.append(DueTurn(name, ticks.last_ms, message))
    return Plan(due, min(coming, default=None), unusable)


def turn_of(name: str, schedule: Schedule, tick_ms: int) -> UserMessage:
    """Return the message of one tick: the same from whoever submits it.

    Raises:
        InvalidMessage: Others wrote that.
    """
    at = datetime.fromtimestamp(tick_ms / 1000, UTC)
    return msgspec.structs.replace(
        schedule.message, turn_id=f"schedule/{name}/{at:%Y-%m-%dT%H:%MZ}", sent_at_ms=tick_ms
    )


def notes_of(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, Note]:
    """Read what stands of each schedule's ticks; what others wrote is left out."""
    notes: dict[str, Note] = {}
    for name, words in pairs:
        if (found := _NOTE.fullmatch(words)) is not None:
            notes[name.decode(errors="replace")] = Note(int(found[2]), is_tick=not found[1])
    return notes


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise InvalidSchedule(
            f"time zone: {name!r} is not known here; expected a name of the IANA database, such as "
            "Europe/Berlin (the Python package tzdata has them where the system has none)"
        ) from None


def _local(seconds: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(seconds, UTC if zone.key == "UTC" else zone)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
