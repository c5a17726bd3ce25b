"""Structured logs on standard error: constant event names, facts in fields, no user text.

The texts of exceptions stay out: their types and the places of their stacks are logged. Of the
messages of libraries only the constant part is. A line is one record, of at most 8 KiB.
"""

import asyncio
import json
import logging
import math
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO, cast

from turnline.contracts.conversation import INVISIBLE

_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_HEAD: Final = frozenset({"at", "level", "logger", "event"})
_LINE_BYTES: Final = 8_192
_TEXT_CHARS: Final = 1_024
_KEY_CHARS: Final = 64
_ITEMS: Final = 32
_DEPTH: Final = 3
_PLACES: Final = 24
_INT_BITS: Final = 64
_OURS: Final = "turnline"
_BUILD_THEIR_TEXTS: Final = frozenset(
    {"aiohttp", "arq", "asyncio", "concurrent", "httpcore", "httpx", "openai", "opentelemetry"}
    | {"py", "redis", "urllib3", "uvloop"}
)
"""Libraries whose messages hold what was raised, or what a call was given."""
_NAME: Final = re.compile(r"\w{1,80}")
_KEY: Final = re.compile(r"[^\w.-]")
_UNSEEN: Final = re.compile(f"[{INVISIBLE}\ud800-\udfff]")
_PLAIN_TEXT: Final = re.compile(r'[^\s"=\\{}\[\]]+')
_NOWHERE: Mapping[str, object] = {}
_running: ContextVar[Mapping[str, object]] = ContextVar("running", default=_NOWHERE)
"""Ids of what this task runs."""

log = logging.getLogger("turnline.process")


def bind_log_context(**ids: object) -> None:
    """Put these ids into all lines of this task, and of those that it starts from here on."""
    _running.set({**_running.get(), **ids})


class WithIds(logging.Filter):
    """Adds the ids of the conversation, turn, attempt and trace that a line is about."""

    def __init__(self, **always: object) -> None:
        """Add these to every line too, behind its own."""
        super().__init__()
        self._always = always

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything pass; ids of the line itself stay."""
        for name, value in {**_running.get(), **self._always}.items():
            if name not in vars(record):
                setattr(record, name, value)
        return True


# -- what may be logged -------------------------------------------------------------------------


def type_name(error: object) -> str:
    """Return the name of something's type; a made-up name that could hold words is not repeated."""
    name = (error if isinstance(error, type) else type(error)).__name__
    return name if _NAME.fullmatch(name) else "object"


def places(traceback: TracebackType | None) -> list[str]:
    """Return where a traceback went, the innermost last: `file:line function`, no source lines."""
    found: list[str] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        found.append(f"{code.co_filename}:{traceback.tb_lineno} {code.co_qualname}")
        traceback = traceback.tb_next
    return found[-_PLACES:]


def facts_of(error: BaseException | None) -> dict[str, object]:
    """Return what is logged of an exception: its type, the types behind it, its places."""
    if error is None:
        return {}
    causes: list[str] = []
    behind = error.__cause__ or error.__context__
    while behind is not None and len(causes) < _DEPTH:
        causes.append(type_name(behind))
        behind = behind.__cause__ or behind.__context__
    facts: dict[str, object] = {"error": type_name(error), "stack": places(error.__traceback__)}
    return {**facts, "causes": causes} if causes else facts


def _plain(value: object, depth: int = 0) -> object:  # noqa: PLR0911  one for each type
    """Return a value that JSON has, bounded; of anything else its type's name."""
    kind = type(value)
    if value is None or kind is bool:
        return value
    if issubclass(kind, str):
        return _cut(str.__str__(cast("str", value)), _TEXT_CHARS)
    if issubclass(kind, int):
        number = int.__int__(cast("int", value))
        return number if number.bit_length() <= _INT_BITS else f"<{type_name(value)}>"
    if issubclass(kind, float):
        real = float.__float__(cast("float", value))
        return real if math.isfinite(real) else repr(real)
    if depth < _DEPTH and kind in {list, tuple}:
        items = cast("list[object]", value)
        return [_plain(item, depth + 1) for item in items[-_ITEMS:]]
    if depth < _DEPTH and kind is dict:
        pairs = [*cast("dict[object, object]", value).items()][:_ITEMS]
        return {_key(key): _plain(item, depth + 1) for key, item in pairs}
    return f"<{type_name(value)}>"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…[{len(text)} characters]"


def _key(name: object) -> str:
    return _KEY.sub("_", name[:_KEY_CHARS] if isinstance(name, str) else type_name(name))


def _visible(text: str) -> str:
    """Escape what does not show, breaks lines or turns the writing round; JSON stays JSON."""
    return _UNSEEN.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[n : n + 4]}" for n in range(0, len(units), 4))


def _event(record: logging.LogRecord) -> str:
    """Return what a line is about, without anything that was put into a message."""
    if not isinstance(record.msg, str):
        return f"<{type_name(record.msg)}>"
    library = record.name.partition(".")[0]
    if library == _OURS:
        try:
            return record.getMessage()
        except (TypeError, ValueError):
            return record.msg
    if record.args or library not in _BUILD_THEIR_TEXTS:
        return record.msg
    return "library.message"


def _facts(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    """Yield the fields of a line behind its first four. Those are never replaced."""
    if isinstance(record.exc_info, tuple):
        for name, value in facts_of(record.exc_info[1]).items():
            yield name, _plain(value)
    if record.name.partition(".")[0] != _OURS:
        yield "where", _plain(f"{record.pathname}:{record.lineno} {record.funcName}")
    for name, value in vars(record).items():
        if name not in _PLAIN:
            key = _key(name)
            yield f"{key}_" if key in _HEAD else key, _plain(value)


def _bounded(pairs: Iterator[tuple[str, object]], used: int) -> tuple[dict[str, str], bool]:
    """Return the fields, encoded, that one line has room for; and whether some have none."""
    kept: dict[str, str] = {}
    for name, value in pairs:
        text = _visible(json.dumps(value, ensure_ascii=False))
        used += len(f', "{name}": {text}'.encode())
        if used > _LINE_BYTES:
            return kept, True
        kept[name] = text
    return kept, False


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time (ISO 8601, UTC), level, logger, event and fields."""
        head = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": _cut(record.name, _KEY_CHARS),
            "event": _cut(_event(record), _TEXT_CHARS),
        }
        line = _visible(json.dumps(head, ensure_ascii=False))[:-1]
        fields, is_cut = _bounded(_facts(record), len(line.encode()) + 32)
        more = "".join(f', "{name}": {value}' for name, value in fields.items())
        cut = ', "cut": true' if is_cut else ""
        return f"{line}{more}{cut}}}"


class TextFormatter(logging.Formatter):
    """The same for people: time, level, event, `key=value` pairs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        event = _visible(_cut(_event(record), _TEXT_CHARS)).replace("\\u000a", "\\n")
        line = f"{at} {record.levelname.lower():<7} {event}"
        fields, is_cut = _bounded(_facts(record), len(line.encode()) + 32)
        pairs = "".join(f" {name}={_unquoted(value)}" for name, value in fields.items())
        return f"{line}{pairs}{' cut=true' if is_cut else ''}"


def _unquoted(value: str) -> str:
    """Take the quotes off a text that cannot be taken for anything else."""
    inner = value[1:-1]
    return inner if value[:1] == '"' and _PLAIN_TEXT.fullmatch(inner) else value


# -- where it goes ------------------------------------------------------------------------------


class _Handler(logging.StreamHandler[TextIO]):
    """Writes of a record that cannot be formatted only that there was one."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's
        """The standard one prints what the message was made of."""
        try:
            self.stream.write(f"log.unwritable logger={_key(record.name)}\n")
            self.stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads any more


def set_up(level: str, form: str, **always: object) -> None:
    """Send the logs of this process to standard error, and what nobody caught.

    Each line says `always`, as of several processes which one speaks.

    ARQ's own logs are kept to warnings: it logs the arguments of jobs at INFO; they are ids here,
    but plain jobs beside them may carry anything.
    """
    handler = _Handler(sys.stderr)
    handler.addFilter(WithIds(**always))
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("turnline").setLevel(level.upper())
    logging.getLogger("arq.worker").setLevel(logging.WARNING)
    sys.excepthook = _on_crash
    threading.excepthook = _on_thread_crash
    sys.unraisablehook = _on_unraisable
    warnings.showwarning = _on_warning


def on_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody in an event loop caught; asyncio's own handler prints its text."""
    of = next((it for it in ("task", "future", "handle", "transport") if it in context), "loop")
    log.error("loop.uncaught", extra={"of": of, **facts_of(context.get("exception"))})


def _on_crash(
    _kind: type[BaseException], error: BaseException, _traceback: TracebackType | None
) -> None:
    log.critical("process.crashed", extra=facts_of(error))


def _on_thread_crash(args: threading.ExceptHookArgs) -> None:
    if not issubclass(args.exc_type, SystemExit):
        log.error("thread.crashed", extra=facts_of(args.exc_value))


def _on_unraisable(args: "sys.UnraisableHookArgs") -> None:
    log.error("process.unraisable", extra=facts_of(args.exc_value))


def _on_warning(  # noqa: PLR0917  the parameters of `warnings.showwarning`
    message: Warning | str,  # noqa: ARG001  may hold anything
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001  this is where it would go
    line: str | None = None,  # noqa: ARG001  of source
) -> None:
    log.warning(
        "python.warning", extra={"category": type_name(category), "place": f"{filename}:{lineno}"}
    )
