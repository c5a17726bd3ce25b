"""The helpers that tests lean on tell the truth themselves."""

import asyncio

import pytest

from tests.support.wait import wait_until, wait_until_sync


async def test_waiting_lets_the_loop_run_and_returns_what_came() -> None:
    """The predicate's first true value ends the wait."""
    arrived: list[str] = []
    asyncio.get_running_loop().call_soon(arrived.append, "it")

    assert await wait_until(lambda: arrived, "something arrives") == ["it"]


async def test_an_async_predicate_is_awaited() -> None:
    """A coroutine that gives nothing true does not count as true."""
    answers = iter([0, 0, 7])

    async def ask() -> int:
        return next(answers)

    assert await wait_until(ask, "a true answer") == 7


async def test_a_vain_wait_names_what_it_waited_for() -> None:
    """The failure has the description and the last value."""
    with pytest.raises(AssertionError, match=r"not within 0\.01 s: the moon; last: 0"):
        await wait_until(lambda: 0, "the moon", timeout_s=0.01)


def test_the_twin_waits_without_a_loop() -> None:
    """For tests of processes."""
    answers = iter([0, 0, 7])

    assert wait_until_sync(lambda: next(answers), "a true answer") == 7
    with pytest.raises(AssertionError, match="the moon"):
        wait_until_sync(lambda: 0, "the moon", timeout_s=0.01)
