"""A producer: one message, the reply as it grows, the totals.

The same message may be submitted again, from anywhere: its turn id makes it the same turn.
"""

import asyncio
import os

from turnline.contracts import TurnClient, TurnCompleted, UserMessage

REDIS_URL = os.environ.get("TURNLINE_REDIS_URL", "redis://127.0.0.1:6379/0")


async def main() -> None:
    """Ask, show, count."""
    async with TurnClient.connect(REDIS_URL) as client:
        message = UserMessage(conversation_id="anna", text="What is a lease?", turn_id="anna-1")
        receipt = await client.submit(message)
        async for text in client.text(receipt):  # the whole reply so far, each time it changed
            print(text)
        result = await client.result(receipt)  # at once: the turn is over
        if isinstance(result, TurnCompleted):
            print("tokens:", result.usage.total_tokens)
        else:
            print("not answered:", result)
        again = await client.submit(message)
        print("accepted again:", again.accepted)


if __name__ == "__main__":
    asyncio.run(main())
