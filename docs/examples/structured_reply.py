"""A reply of a type: the schema goes to the model, the value comes back checked."""

import asyncio
import os

import msgspec

from turnline.contracts import TurnClient, TurnCompleted

REDIS_URL = os.environ.get("TURNLINE_REDIS_URL", "redis://127.0.0.1:6379/0")


class Order(msgspec.Struct):
    """What the model is to find in the text."""

    number: int
    items: list[str]


async def main() -> None:
    """Take an order out of a sentence."""
    async with TurnClient.connect(REDIS_URL) as client:
        done = await client.ask("karla", "Order 7: two Assam, one Darjeeling.", response_type=Order)
        if isinstance(done, TurnCompleted):
            print(done.parsed_as(Order))
        else:
            print("no order:", done)


if __name__ == "__main__":
    asyncio.run(main())
