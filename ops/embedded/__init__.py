"""Finds and runs a private Redis or Valkey when none is given.

Nothing here knows what Turnline keeps in it.
"""

from turnline.ops.embedded.embedded_redis import EmbeddedRedis, given_url, redis_url
from turnline.ops.embedded.errors import (
    DirectoryInUse,
    EmbeddedRedisError,
    ServerMissing,
    ServerNotReady,
)
from turnline.ops.embedded.finding import ServerProgram, find_server

__all__ = [
    "DirectoryInUse",
    "EmbeddedRedis",
    "EmbeddedRedisError",
    "ServerMissing",
    "ServerNotReady",
    "ServerProgram",
    "find_server",
    "given_url",
    "redis_url",
]
