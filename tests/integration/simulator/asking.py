"""Asks by the SDK."""

from typing import Any

from openai import AsyncOpenAI


async def ask(client: AsyncOpenAI, model: str = "grok-4.3", text: str = "hi", **more: Any) -> Any:
    """Ask a model, in a conversation of one message."""
    return await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], **more
    )
