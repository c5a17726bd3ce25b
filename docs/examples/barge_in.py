"""A voice front end: the user talks over the reply, and the context keeps what was heard."""

import asyncio
import os

from turnline.contracts import TurnClient, TurnInterrupted, UserMessage

REDIS_URL = os.environ.get("TURNLINE_REDIS_URL", "redis://127.0.0.1:6379/0")


async def main() -> None:
    """Stop a reply after its first words."""
    async with TurnClient.connect(REDIS_URL) as client:
        receipt = await client.submit(
            UserMessage(conversation_id="emil", text="Tell me a long story.")
        )
        heard = ""
        async for text in client.text(receipt):
            heard = text
            if len(heard.split()) >= 3:
                break
        await client.interrupt("emil", heard=heard)
        result = await client.result(receipt)
        if isinstance(result, TurnInterrupted):
            print("kept:", result.text)
        else:
            print("it was over already:", result)


if __name__ == "__main__":
    asyncio.run(main())
