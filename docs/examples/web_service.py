"""A web service: POST a message, get the reply as server-sent events.

`Idempotency-Key` becomes the turn id, so that a request that is sent again is the same turn.
Back-pressure becomes 429 with Retry-After; where Redis is away for longer than a browser should
wait, 503. One client serves all requests. Any web framework will do; this one is aiohttp's.
"""

import json
import os
from collections.abc import AsyncGenerator

from aiohttp import web

from turnline.contracts import (
    InvalidMessage,
    Refused,
    StoreUnavailable,
    TurnClient,
    UserMessage,
)
from turnline.contracts.messages import new_turn_id

REDIS_URL = os.environ.get("TURNLINE_REDIS_URL", "redis://127.0.0.1:6379/0")
CLIENT = web.AppKey("client", TurnClient)


async def connected(app: web.Application) -> AsyncGenerator[None]:
    """Keep one client for the life of the service."""
    async with TurnClient.connect(REDIS_URL, patience_s=3) as app[CLIENT]:
        yield


async def talk(request: web.Request) -> web.StreamResponse:
    """Submit a message and stream what becomes of it."""
    client = request.app[CLIENT]
    try:
        receipt = await client.submit(
            UserMessage(
                conversation_id=request.match_info["conversation"],
                text=(await request.json())["text"],
                turn_id=request.headers.get("Idempotency-Key") or new_turn_id(),
            )
        )
    except Refused as error:
        raise web.HTTPTooManyRequests(
            headers={"Retry-After": f"{error.retry_after_s or 1:.0f}"}
        ) from error
    except StoreUnavailable as error:
        raise web.HTTPServiceUnavailable(
            headers={"Retry-After": f"{error.retry_after_s:.0f}"}
        ) from error
    except (InvalidMessage, KeyError, TypeError, ValueError) as error:
        raise web.HTTPBadRequest(text=f"no such message: {error}") from error

    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    async for text in client.text(receipt):
        await response.write(f"data: {json.dumps({'text': text})}\n\n".encode())
    end = {"end": type(await client.result(receipt)).__name__, "turn_id": receipt.turn_id}
    await response.write(f"data: {json.dumps(end)}\n\n".encode())
    return response


def service() -> web.Application:
    """Put the service together."""
    app = web.Application()
    app.cleanup_ctx.append(connected)
    app.router.add_post("/conversations/{conversation}/messages", talk)
    return app


if __name__ == "__main__":
    web.run_app(service(), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
