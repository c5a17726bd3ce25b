"""A pool says which of its members a conversation's calls go to."""

import logging

import pytest

from turnline.worker.pool import Member, Pool, ident_of


def pool_of(count: int, now_s: list[float] | None = None) -> Pool:
    """So many keys at one address."""
    clock = now_s if now_s is not None else [0.0]
    members = [
        Member("http://x/v1", n, f"http://x/v1 (key {n + 1})", ident_of("http://x/v1", f"key{n}"))
        for n in range(count)
    ]
    return Pool(members, clock=lambda: clock[0])


def firsts(pool: Pool, count: int = 1_000) -> list[int]:
    """Whom each of so many conversations prefers."""
    return [pool.order(f"c{n}")[0].number for n in range(count)]


def test_conversations_are_spread_and_stay() -> None:
    """Each member gets its share; the order of a conversation is always the same, and whole."""
    preferred = firsts(pool_of(4))

    assert preferred == firsts(pool_of(4))
    assert all(200 < preferred.count(n) < 300 for n in range(4))
    assert sorted(it.number for it in pool_of(4).order("c")) == [0, 1, 2, 3]


def test_a_new_member_moves_few() -> None:
    """Only those that go to it."""
    moved = [b for a, b in zip(firsts(pool_of(4)), firsts(pool_of(5)), strict=True) if a != b]

    assert set(moved) == {4}
    assert 120 < len(moved) < 280


def test_who_fails_is_left_out_for_a_while_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its conversations go to the next ones; then it is tried again."""
    caplog.set_level(logging.INFO)
    now_s = [0.0]
    pool = pool_of(3, now_s)
    first, second, _ = pool.order("c")
    pool.leave_out(first, "credits")
    pool.leave_out(first, "credits")
    assert pool.order("c")[0] == second
    assert len(pool.order("c")) == 2

    now_s[0] = 61.0
    assert pool.order("c")[0] == first
    pool.works(first)
    pool.works(first)

    said = [(it.message, vars(it)["provider"]) for it in caplog.records]
    assert said == [("provider.left_out", first.name), ("provider.back", first.name)]
    assert "key0" not in caplog.text


def test_if_all_are_left_out_all_are_tried() -> None:
    """Somebody has to find out that they are back; a turn asks none of them twice."""
    pool = pool_of(2)
    first, second = pool.order("c")
    for it in (first, second):
        pool.leave_out(it, "auth")

    assert pool.order("c") == [first, second]
    assert pool.order("c", failed=[first.ident]) == [second]
    assert pool.order("c", failed=[second.ident, first.ident]) == [second, first]


def test_those_that_failed_are_asked_in_turn_when_nobody_else_is_left() -> None:
    """The one whose failure is the longest ago first; not whoever would fail again."""
    pool = pool_of(4)
    a, b, c, d = pool.order("c")
    failed = [it.ident for it in (a, b, c, d)]

    assert pool.order("c", failed=failed[:3], first=a.owner) == [d]
    assert pool.order("c", failed=failed) == [a, b, c, d]
    assert pool.order("c", failed=[*failed, a.ident], first=a.owner) == [b, c, d, a]
    assert pool.order("c", failed=failed, out={a.ident, c.ident}) == [b, d]
    pool.leave_out(b, "credits")
    assert pool.order("c", failed=failed, out={a.ident, c.ident}) == [d]
    assert pool.order("c", failed=failed, out=failed) == [a, b, c, d]


def test_a_turn_goes_on_with_the_owner_of_its_thoughts() -> None:
    """The key by which it began comes first, whichever the conversation prefers."""
    pool = pool_of(3)

    assert [pool.order("c", first=it.owner)[0] for it in pool.members] == list(pool.members)


def test_one_member_is_never_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """There is nobody else."""
    pool = pool_of(1)
    pool.leave_out(pool.members[0], "auth")

    assert pool.order("c") == pool.members
    assert not caplog.records


def test_a_member_with_a_new_key_is_not_left_out() -> None:
    """What its key had done is forgotten; others that are left out stay so."""
    pool = pool_of(3)
    for member in pool.members[:2]:
        pool.leave_out(member, "auth")
    fresh = pool.members[0]._replace(ident=ident_of("http://x/v1", "new"))
    pool.replace([fresh, *pool.members[1:]])

    assert not pool.is_left_out(pool.members[0])
    assert pool.is_left_out(pool.members[1])
    assert {it.number for it in pool.order("c")} == {0, 2}
