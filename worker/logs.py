"""Structured logs on standard error: constant event names, facts in fields, no user text."""

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_NOWHERE: Mapping[str, object] = {}
_running: ContextVar[Mapping[str, object]] = ContextVar("running", default=_NOWHERE)
"""Ids of what this task runs."""


def say_with(**ids: object) -> None:
    """Put these ids into all that this task, and those it starts from here on, logs."""
    _running.set({**_running.get(), **ids})


class WithIds(logging.Filter):
    """Adds the ids of the conversation, turn, attempt and trace that a line is about."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything pass; what a line says itself stands."""
        for name, value in _running.get().items():
            if name not in vars(record):
                setattr(record, name, value)
        return True


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _PLAIN}


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time (ISO 8601, UTC), level, logger, event and fields."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        return json.dumps(line, ensure_ascii=False, default=repr)


class TextFormatter(logging.Formatter):
    """The same for people: time, level, event, `key=value` pairs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        pairs = "".join(f" {key}={value}" for key, value in _fields(record).items())
        return f"{at} {record.levelname.lower():<7} {record.getMessage()}{pairs}"


def set_up(level: str, form: str) -> None:
    """Send this process's logs to standard error. ARQ's own are kept to warnings.

    ARQ logs the arguments of jobs at INFO; they are ids here, but plain jobs beside them may carry
    anything.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(WithIds())
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("turnline").setLevel(level.upper())
    logging.getLogger("worker").setLevel(level.upper())
    logging.getLogger("arq.worker").setLevel(logging.WARNING)
