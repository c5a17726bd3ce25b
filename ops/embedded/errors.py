"""What can go wrong with the embedded server, each with what to do about it.

EmbeddedRedisError
├── ServerMissing      no server program was found: install one, or give a running one's URL
├── ServerNotReady     it ended at once, or did not answer in time: read its last words
└── DirectoryInUse     another server writes into that directory: stop it, or choose another
"""


class EmbeddedRedisError(Exception):
    """The embedded server cannot be had."""


class ServerMissing(EmbeddedRedisError):
    """No Redis or Valkey server program can be started here."""


class ServerNotReady(EmbeddedRedisError):
    """The server ended, or did not answer, before it was ready for commands."""


class DirectoryInUse(EmbeddedRedisError):
    """Another embedded server is writing into the data directory."""
