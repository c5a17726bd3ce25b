"""Agents: a conversation has one by default, and a message may ask another; see agents.toml."""

import asyncio
import os

from turnline.contracts import TurnClient, UserMessage

REDIS_URL = os.environ.get("TURNLINE_REDIS_URL", "redis://127.0.0.1:6379/0")


async def main() -> None:
    """Ask the conversation's agent, then the poet."""
    async with TurnClient.connect(REDIS_URL) as client:
        await client.configure("gustav", agent="support")
        for agent in (None, "poet"):
            message = UserMessage(conversation_id="gustav", text="Is my tea here?", agent=agent)
            result = await client.result(await client.submit(message))
            print(agent or "support", type(result).__name__)


if __name__ == "__main__":
    asyncio.run(main())
