"""The index of conversations goes with them to other shards."""

import pytest

from tests.integration.deployments.test_resharding import MANY, address, begin, sim
from tests.support.processes import worker_process
from turnline.contracts import ConversationPage, TurnClient, TurnCompleted, UserMessage
from turnline.contracts.keys import conversation_keys, shard_keys, shard_of
from turnline.contracts.opening import open_async
from turnline.ops.fleet.resharding import reshard
from turnline.ops.simulator import Simulator

__all__ = ["address", "sim"]  # the fixtures
COUNT = 30


def ids(page: ConversationPage) -> list[str]:
    return [it.conversation_id for it in page.conversations]


@pytest.mark.promise("P8")
async def test_conversations_are_found_in_their_new_shards(address: str, sim: Simulator) -> None:
    """Each once, in the same order, by the same filters, and nothing is left in the old shard."""
    redis = open_async(address)
    await begin(redis)
    try:
        with worker_process(address, sim.base_url, shards=str(MANY)):
            async with TurnClient.connect(address) as client:
                for n in range(COUNT):
                    message = UserMessage(
                        conversation_id=f"c{n}",
                        text="Hello",
                        tenant="acme",
                        metadata={"odd": str(n % 2)},
                    )
                    receipt = await client.submit(message)
                    assert isinstance(await client.result(receipt, timeout_s=30), TurnCompleted)
                before = await client.conversations()
                odd = await client.conversations(tenant="acme", metadata={"odd": "1"})
                assert len(before.conversations) == COUNT

                done = await reshard(address, MANY)

                moved = [f"c{n}" for n in range(COUNT) if shard_of(f"c{n}", MANY)]
                assert done.moved == len(moved) > COUNT / 2
                assert await client.conversations() == before
                assert await client.conversations(tenant="acme", metadata={"odd": "1"}) == odd
                assert ids(await client.conversations(limit=5)) == ids(before)[:5]
                old = shard_keys(0).tag
                for name in moved:
                    page = (
                        await redis.execute_command("GET", conversation_keys(old, name).page) or b""
                    )
                    assert f" {name}\n" not in f"{page.decode()}\n"
                    here = shard_keys(shard_of(name, MANY))
                    assert await redis.execute_command("PTTL", here.pages) > 0
                    assert (
                        await redis.execute_command("PTTL", conversation_keys(here.tag, name).page)
                        > 0
                    )

                assert await client.forget(moved[0])
                assert moved[0] not in ids(await client.conversations())
    finally:
        await redis.aclose()
