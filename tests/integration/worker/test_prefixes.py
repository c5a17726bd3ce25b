"""Fleets that share a server: each has its own name, and sees nothing of the others."""

import asyncio
import re

import pytest
from click.testing import CliRunner
from redis.asyncio import Redis

from tests.support.driving import ended, fleet, user
from turnline.contracts import TurnClient, TurnCompleted
from turnline.ops.cli.app import turnline
from turnline.ops.simulator import Simulator
from turnline.worker.settings import SettingsError, from_env

FLEETS = ("", "a", "a-s", "B_2")


@pytest.mark.promise("P1", "P2")
async def test_fleets_share_a_server(redis_url: str, redis: Redis, sim: Simulator) -> None:
    """The same conversation is another one in each; a message that was accepted stays there."""
    for prefix in FLEETS:
        async with TurnClient.connect(redis_url, shards=2, prefix=prefix) as client:
            receipts = [await client.submit(user(conversation=it)) for it in ("c", "d")]
            async with fleet(redis_url, sim, shards="2", prefix=prefix):
                for receipt in receipts:
                    await ended(client, receipt, TurnCompleted)
            totals = await client.usage("c")
        assert totals.turns == 1

    names = [key.decode() async for key in redis.scan_iter()]
    tags = [re.findall(r"\{(.+?)\}", name) for name in names]
    assert all(len(found) == 1 for found in tags)
    expected = {f"{prefix}-s{n}".removeprefix("-") for prefix in FLEETS for n in (0, 1)}
    assert {found[0] for found in tags} == expected
    words = ["usage", "c", "--redis", redis_url, "--shards", "2", "--json"]
    for prefix, code in [*((it, 0) for it in FLEETS), ("other", 1)]:
        shown = await asyncio.to_thread(CliRunner().invoke, turnline, [*words, "--prefix", prefix])
        assert shown.exit_code == code, shown.output


@pytest.mark.parametrize("prefix", ["{x}", "s1", "a-s1-b", "a b", "a:b", "x" * 33, "ä"])
def test_a_name_that_cannot_be_one_is_refused(prefix: str) -> None:
    """By workers, clients and commands alike; the text says what may be."""
    with pytest.raises(SettingsError, match="TURNLINE_PREFIX"):
        from_env({"TURNLINE_PREFIX": prefix, "XAI_API_KEY": "k"})
    with pytest.raises(ValueError, match="up to 32 letters"):
        TurnClient(None, prefix=prefix)  # type: ignore[arg-type]
    shown = CliRunner().invoke(turnline, ["usage", "c", "--prefix", prefix])
    assert shown.exit_code != 0
    assert "up to 32 letters" in shown.output
