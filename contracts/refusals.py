"""What a failed command means: whether it may be sent again, and what a producer is told."""

from typing import Final

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    OutOfMemoryError,
    ResponseError,
)
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as ConnectionTimeout

from turnline.contracts.errors import StoreFull, StoreUnavailable

_PASSING: Final = frozenset(
    {"ASK", "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MOVED", "NOREPLICAS", "READONLY"}
    | {"TRYAGAIN", "UNBLOCKED"}
)
"""First words of refusals that end by themselves, as after a failover."""
_LOST: Final = (LostConnection, ConnectionTimeout, OSError)


def is_passing(error: Exception) -> bool:
    """Tell whether the same command may succeed a little later."""
    if isinstance(error, (AuthenticationError, AuthorizationError)):
        return False
    return isinstance(error, _LOST) or _word(error) in _PASSING


def told(error: Exception) -> Exception:
    """Return the error that a producer is told where Redis failed or refused a command."""
    if isinstance(error, OutOfMemoryError):
        return StoreFull("Redis has no memory left for new turns", retry_after_s=10)
    if not is_passing(error):
        return error
    said = _word(error) or "it does not answer"
    return StoreUnavailable(f"Redis cannot be used at the moment: {said}", retry_after_s=5)


def _word(error: Exception) -> str:
    """Return the word by which a server begins a refusal; redis-py takes some of them away."""
    known = {"ReadOnlyError": "READONLY", "BusyLoadingError": "LOADING"}
    first = str(error).partition(" ")[0] if isinstance(error, ResponseError) else ""
    return known.get(type(error).__name__, first)
