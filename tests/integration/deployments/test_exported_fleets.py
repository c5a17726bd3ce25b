"""How a fleet stands is told whatever Redis consists of."""

import asyncio
import json

from click.testing import CliRunner

from tests.support.driving import fleet
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, UserMessage
from turnline.ops.cli.app import turnline
from turnline.ops.deployments import Cluster, Sentinels
from turnline.ops.simulator import Simulator

SHARDS = 12


async def status(url: str, *words: str) -> dict[str, int]:
    command = ["exporter", "--once", "--json", "--redis", url, *words]
    result = await asyncio.to_thread(CliRunner().invoke, turnline, command)
    assert result.exit_code == 0, result.output
    found: dict[str, int] = json.loads(result.stdout)
    return found


async def test_a_cluster_is_looked_at_as_a_whole(cluster: Cluster, sim: Simulator) -> None:
    """What waits on each of its primaries counts, and a worker once."""
    async with TurnClient.connect(cluster.address, shards=SHARDS, prefix="seen") as client:
        for n in range(20):
            await client.submit(UserMessage(conversation_id=f"c{n}", text="Hello"))
        words = ("--shards", str(SHARDS), "--prefix", "seen")
        found = await status(cluster.address, *words)
        assert (found["waiting"], found["workers"]) == (20, 0)
        async with fleet(cluster.address, sim, shards=str(SHARDS), prefix="seen", slots="5"):

            async def is_done() -> bool:
                found = await status(cluster.address, "--prefix", "seen")
                return (found["waiting"], found["workers"], found["slots"]) == (0, 1, 5)

            await wait_until(is_done, "all were answered")


async def test_behind_sentinels_the_primary_is_looked_at(sentinels: Sentinels) -> None:
    """It is found by its name."""
    async with TurnClient.connect(sentinels.address) as client:
        await client.submit(UserMessage(conversation_id="c", text="Hello"))
        assert (await status(sentinels.address))["waiting"] == 1
