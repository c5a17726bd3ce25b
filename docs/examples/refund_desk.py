"""A tool that runs elsewhere: a service that answers the calls no worker has a tool for.

Workers know its schema by TURNLINE_TOOL_SCHEMAS=refund.json. While a call waits, its turn holds
neither a slot nor a lease, for a day if need be. A call may come more than once; the first answer
counts.
"""

import asyncio
import os

import msgspec

from turnline.contracts import TurnClient

REDIS_URL = os.environ.get("TURNLINE_REDIS_URL", "redis://127.0.0.1:6379/0")
SMALL = 100


class Refund(msgspec.Struct):
    """The arguments of a call."""

    number: int


async def main() -> None:
    """Decide on each call, for ever."""
    async with TurnClient.connect(REDIS_URL) as client:
        async for call in client.tool_calls("desks", "desk-1", names={"refund"}):
            refund = call.arguments_as(Refund)
            if refund.number < SMALL:
                await client.answer(call, {"refunded": True})
            else:
                await client.answer(call, "The manager said no.", is_error=True)
            print("decided on order", refund.number, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
