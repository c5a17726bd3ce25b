"""A producer without asyncio: many messages in one round trip, then each result."""

import os

from turnline.contracts import Receipt, Refused, SyncTurnClient, UserMessage

REDIS_URL = os.environ.get("TURNLINE_REDIS_URL", "redis://127.0.0.1:6379/0")


def main() -> None:
    """Greet three people."""
    messages = [
        UserMessage(conversation_id=name, text=f"Say hello to {name}.")
        for name in ("berta", "carl", "dora")
    ]
    with SyncTurnClient.connect(REDIS_URL) as client:
        for outcome in client.submit_many(messages):
            if isinstance(outcome, Receipt):
                result = client.result(outcome, timeout_s=60)
                print(outcome.conversation_id, type(result).__name__)
            elif isinstance(outcome, Refused):  # too much waits already: later, perhaps
                print("refused, again in", outcome.retry_after_s, "s")
            else:
                raise outcome


if __name__ == "__main__":
    main()
