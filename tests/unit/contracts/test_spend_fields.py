"""What a day's hash holds: fields that no name can bend, and nothing that is zero."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.contracts.generated import IDS, TEXTS
from turnline.contracts.conversation import CallEntry, Usage
from turnline.contracts.daily_spend import COUNTERS, day_of, read_fields, spent_by

NAMES = IDS | TEXTS | st.sampled_from(["", '"', "a|b", '","', "[", "calls", "\\", "a,b", "%7C"])
USAGES = st.builds(Usage, **{name: st.integers(0, 2**40) for name in Usage.__struct_fields__})


def call(tenant: str, agent: str, model: str, usage: Usage) -> CallEntry:
    return CallEntry(
        call_id="t/1/1",
        turn_id="t",
        attempt=1,
        model=model,
        state="reported",
        usage=usage,
        tenant=tenant,
        agent=agent,
    )


@given(st.lists(st.tuples(NAMES, NAMES, NAMES, USAGES), max_size=6))
def test_what_is_written_is_read_whatever_the_names(
    calls: list[tuple[str, str, str, Usage]],
) -> None:
    """Each of tenant, agent and model gets what its calls used, and no other one."""
    grown = spent_by(call(*it) for it in calls)

    sums: dict[tuple[str, str, str], Usage] = {}
    counts: dict[tuple[str, str, str], int] = {}
    for *names, usage in calls:
        whose = (names[0], names[1], names[2])
        sums[whose] = sums.get(whose, Usage()) + usage
        counts[whose] = counts.get(whose, 0) + 1
    read: dict[tuple[str, str, str], dict[str, int]] = {}
    for whose, counter, amount in read_fields({it: b"%d" % n for it, n in grown}):
        read.setdefault(whose, {})[counter] = amount
    assert {whose: it.pop("calls") for whose, it in read.items()} == counts
    assert {whose: Usage(**it) for whose, it in read.items()} == sums
    assert all(amount for _, amount in grown)


def test_what_others_wrote_is_left_out() -> None:
    """Fields and values that are none are no error."""
    good = b'["a","","m","calls"]'
    fields = {b"x": b"1", b"[]": b"1", b'["a","","m","tips"]': b"1", b"\xff": b"1"}
    for n, odd in enumerate((b"9" * 400, b"-5", b"1_000", b" 5 ")):
        fields[b'["a%d","","m","calls"]' % n] = odd

    assert [*read_fields({**fields, b'["a","","m","total_tokens"]': b"much", good: b"2"})] == [
        (("a", "", "m"), "calls", 2)
    ]


def test_the_counters_are_the_fields_of_a_ledgers_usage() -> None:
    """Whoever adds one to the usage has it counted."""
    assert {"calls", *Usage.__struct_fields__} == {*COUNTERS}


def test_days_are_those_of_utc() -> None:
    """To the millisecond."""
    assert day_of(1_796_083_199_999) == "2026-11-30"
    assert day_of(1_796_083_200_000) == "2026-12-01"
