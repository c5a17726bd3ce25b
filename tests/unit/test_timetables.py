"""When schedules are due: cron lines, time zones, daylight saving, what was missed."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnline.contracts import InvalidMessage, UserMessage
from turnline.worker.schedules.timetable import (
    MISSED_S,
    InvalidSchedule,
    Note,
    Schedule,
    check_schedule,
    encode_schedule,
    notes_of,
    plan,
    read_schedule,
    ticks_at,
    turn_of,
)

MINUTE = 60_000
HOUR = 60 * MINUTE


def schedule(cron: str, timezone: str = "UTC", **more) -> Schedule:
    message = UserMessage(conversation_id="c", text="Hello")
    return Schedule(cron=cron, message=message, timezone=timezone, **more)


def ms(words: str) -> int:
    """A moment of UTC."""
    return int(datetime.fromisoformat(words).replace(tzinfo=UTC).timestamp() * 1000)


def utc(at_ms: int | None) -> str:
    return "" if at_ms is None else f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%dT%H:%M}"


def around(line: str, timezone: str, now: str) -> tuple[str, str]:
    """The ticks on both sides of a moment, in UTC."""
    ticks = ticks_at(schedule(line, timezone), ms(now))
    return utc(ticks.last_ms), utc(ticks.next_ms)


def test_a_tick_at_the_moment_itself_is_the_last_one() -> None:
    """And a millisecond earlier it is the next one."""
    at = ms("2026-12-01T09:00")
    line = schedule("0 9 * * mon-fri")

    assert ticks_at(line, at) == (at, ms("2026-12-02T09:00"))
    assert ticks_at(line, at - 1) == (ms("2026-11-30T09:00"), at)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-06-01T06:59", ("2026-05-29T07:00", "2026-06-01T07:00")),
        ("2026-12-01T07:59", ("2026-11-30T08:00", "2026-12-01T08:00")),
    ],
)
def test_a_line_means_its_time_zone(now: str, expected: tuple[str, str]) -> None:
    """Nine in Berlin is seven of UTC in summer, eight in winter."""
    assert around("0 9 * * mon-fri", "Europe/Berlin", now) == expected


def test_a_tick_in_an_hour_that_is_left_out_comes_behind_it() -> None:
    """2:30 of the day in March on which the clock goes from 2 to 3."""
    assert around("30 2 * * *", "Europe/Berlin", "2026-03-29T00:59")[1] == "2026-03-29T01:00"
    assert around("30 2 * * *", "Europe/Berlin", "2026-03-29T01:00") == (
        "2026-03-29T01:00",
        "2026-03-30T00:30",
    )


@pytest.mark.parametrize("now", ["2026-10-25T00:30", "2026-10-25T01:10", "2026-10-25T01:40"])
def test_a_tick_in_an_hour_that_comes_twice_is_one(now: str) -> None:
    """2:30 of the day in October on which the clock goes from 3 to 2: the first of the two."""
    expected = ("2026-10-25T00:30", "2026-10-26T01:30")
    assert around("30 2 * * *", "Europe/Berlin", now) == expected


def test_a_line_for_all_hours_runs_in_both() -> None:
    """Each hour is one of the clock on the wall or not: an hour passes."""
    for now, expected in [
        ("2026-10-25T00:10", ("2026-10-25T00:00", "2026-10-25T01:00")),
        ("2026-10-25T01:10", ("2026-10-25T01:00", "2026-10-25T02:00")),
    ]:
        assert around("0 * * * *", "Europe/Berlin", now) == expected


@given(
    st.sampled_from(
        ["* * * * *", "*/7 3 * * *", "30 2 * * *", "15 1,2,3 * * *", "0 9 1 * *", "5 */2 * * sun"]
    ),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    st.integers(ms("2026-01-01"), ms("2027-01-01")),
)
def test_ticks_follow_each_other(line: str, timezone: str, now_ms: int) -> None:
    """Whoever looks at any moment sees the same ticks: none is between the last and the next."""
    it = schedule(line, timezone)
    last_ms, next_ms = ticks_at(it, now_ms)

    assert last_ms is not None
    assert last_ms <= now_ms < next_ms
    assert ticks_at(it, next_ms).last_ms == next_ms
    assert ticks_at(it, next_ms - 1) == (last_ms, next_ms)
    assert ticks_at(it, last_ms).next_ms == next_ms


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cron": "0 9 * *"}, "cron line: it has 4 fields; expected minute, hour, "),
        ({"cron": "0 0 9 * * *"}, "cron line: it has 6 fields; expected minute, hour, "),
        ({"cron": "0 25 * * *"}, "cron line: bad hour; expected minute, hour, "),
        ({"cron": "0 9 31 2 *"}, "cron line: bad day-of-month; "),
        ({"cron": "@daily"}, "such as 0 9 * * mon-fri"),
        ({"cron": ""}, "cron line: it has 0 fields"),
        ({"timezone": "Mars/Olympus"}, "time zone: 'Mars/Olympus' is not known here; expected "),
        ({"timezone": "../../etc/passwd"}, "time zone: "),
        ({"timezone": ""}, "time zone: "),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, str], words: str) -> None:
    """Together with what is expected."""
    with pytest.raises(InvalidSchedule) as error:
        check_schedule("n", schedule(**{"cron": "0 9 * * *", **change}))
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "é", "a" * 65])
def test_a_name_has_the_letters_of_ids(name: str) -> None:
    """It is a part of turn ids."""
    with pytest.raises(InvalidSchedule, match="name: expected up to 64 letters"):
        check_schedule(name, schedule("0 9 * * *"))


def test_a_message_is_checked_as_when_it_is_sent() -> None:
    """An id that no conversation has is refused at once, not at the first tick."""
    message = UserMessage(conversation_id="a b", text="Hello")
    with pytest.raises(InvalidMessage, match="conversation_id"):
        check_schedule("n", Schedule(cron="0 9 * * *", message=message))


def test_the_turn_of_a_tick_has_its_name() -> None:
    """All who submit it say the same."""
    message = turn_of("standup", schedule("0 9 * * *"), ms("2026-12-01T09:00"))

    assert message.turn_id == "schedule/standup/2026-12-01T09:00Z"
    assert message.sent_at_ms == ms("2026-12-01T09:00")
    assert message.text == "Hello"


def planned(line: Schedule, since: Note, now_ms: int):
    return plan({"n": encode_schedule(line)}, {"n": since}, now_ms)


def test_only_the_last_of_many_missed_ticks_is_due() -> None:
    """A fleet that was away for a day does not catch up 1,440 turns."""
    now_ms = ms("2026-12-02T10:00") + 1
    found = planned(schedule("* * * * *"), Note(now_ms - 24 * HOUR, is_tick=True), now_ms)

    assert [(it.name, utc(it.tick_ms)) for it in found.due] == [("n", "2026-12-02T10:00")]
    assert found.next_ms == ms("2026-12-02T10:01")


@pytest.mark.parametrize(("late_s", "is_let_go"), [(MISSED_S, False), (MISSED_S + 1, True)])
def test_a_missed_tick_may_be_let_go(late_s: int, is_let_go: bool) -> None:
    """It is noted all the same; one that is late by minutes only is not a missed one."""
    tick_ms = ms("2026-12-01T09:00")
    line = schedule("0 9 * * *", missed="none")
    found = planned(line, Note(tick_ms - HOUR, is_tick=False), tick_ms + late_s * 1000)

    assert [(it.tick_ms, it.message is None) for it in found.due] == [(tick_ms, is_let_go)]


def test_a_tick_from_before_there_was_the_schedule_is_not_due() -> None:
    """Nor one that was seen to."""
    tick_ms = ms("2026-12-01T09:00")
    line = schedule("0 9 * * *")

    for note in (Note(tick_ms + 1, is_tick=False), Note(tick_ms, is_tick=True)):
        assert planned(line, note, tick_ms + MINUTE).due == []


@pytest.mark.parametrize("note", [None, Note(9 * 10**14, is_tick=True)])
def test_a_schedule_whose_note_is_lost_goes_on_from_now(note: Note | None) -> None:
    """The tick before is let go and noted; the next one is due. So it is if that lies far ahead."""
    tick_ms = ms("2026-12-01T09:00")
    notes = {} if note is None else {"n": note}

    (due,) = plan({"n": encode_schedule(schedule("0 9 * * *"))}, notes, tick_ms + MINUTE).due

    assert (due.tick_ms, due.message) == (tick_ms, None)


def test_a_paused_schedule_has_no_ticks() -> None:
    """If all are, there is nothing to look for."""
    line = schedule("* * * * *", is_paused=True)
    assert planned(line, Note(0, is_tick=True), ms("2026-12-01")) == ([], None, [])


def test_what_others_wrote_holds_up_nobody() -> None:
    """It is named, and the others are looked after."""
    values = {
        "broken": b"{",
        "empty": b'{"cron":"* * * * *","message":{"type":"user_message","conversation_id":"c"}}',
        "later": encode_schedule(schedule("@reboot")),
        "ours": encode_schedule(schedule("* * * * *")),
    }
    notes = notes_of([(name.encode(), b"since 5") for name in values] + [(b"x", b"\xff")])
    found = plan(values, notes, ms("2026-12-01"))

    assert found.unusable == ["broken", "empty", "later"]
    assert [it.name for it in found.due] == ["ours"]
    assert notes["ours"] == Note(5, is_tick=False)
    assert notes_of([(b"n", b"17")]) == {"n": Note(17, is_tick=True)}


def test_the_stored_form_stays() -> None:
    """Fields that a later version adds are ignored."""
    value = (
        b'{"cron":"0 9 * * *","message":{"type":"user_message","conversation_id":"c","turn_id":"t",'
        b'"text":"Hello"},"timezone":"Europe/Berlin","missed":"none","is_paused":true,"new":1}'
    )
    found = read_schedule(value)

    assert encode_schedule(found) == value.replace(b',"new":1', b"")
