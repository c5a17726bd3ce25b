"""Waits until a deployment is as it should be."""

import time
from collections.abc import Callable, Sequence
from typing import Final

from turnline.ops.deployments.errors import NotSettled

_PAUSE_S: Final = 0.02


def wait_settled(obstacles: Callable[[], Sequence[str]], what: str, timeout_s: float) -> None:
    """Wait until nothing is in the way.

    Args:
        obstacles: Names what is in the way now; asked again and again.
        what: What is waited for.
        timeout_s: When to give up.

    Raises:
        NotSettled: Something still is; the text names it.
    """
    deadline = time.monotonic() + timeout_s
    while found := obstacles():
        if time.monotonic() > deadline:
            raise NotSettled(f"Not within {timeout_s:g} s: {what}. {'; '.join(found)}.")
        time.sleep(_PAUSE_S)
