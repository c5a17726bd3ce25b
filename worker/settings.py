"""What an operator can set: one frozen struct, read from the environment once."""

import os
import re
import socket
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PREFIX = "TURNLINE_"
NOT_OURS = frozenset({"TURNLINE_PYTHON", "TURNLINE_SHARED_DATA"})
"""Variables with the prefix that are read by `ops/run` and the tests."""

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class Secret(msgspec.Struct, frozen=True):
    """A value that does not print itself."""

    value: str

    def __repr__(self) -> str:
        return "Secret(set)" if self.value else "Secret(not set)"

    __str__ = __repr__


class SettingsError(Exception):
    """A variable is unknown, missing or out of range; the text says what to do."""


def host_and_pid() -> str:
    """Return a name that tells this process from others."""
    return f"{socket.gethostname()}-{os.getpid()}"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each field is the variable `TURNLINE_<NAME>`; the key is `XAI_API_KEY`."""

    redis_url: str = "redis://127.0.0.1:6379/0"
    """Where Redis or Valkey (7.0 or newer) is: redis://, rediss:// or unix://PATH?db=N."""
    base_url: str = "https://api.x.ai/v1"
    """Where Grok is."""
    model: str = "grok-4.3"
    """Model of conversations that do not choose their own."""
    slots: Count = 100
    """Conversations that this worker runs at once."""
    shards: Count = 1
    """Hash tags the fleet's conversations are spread over; the same for all workers and clients."""
    serve_shards: str = "all"
    """Shards this worker serves: `all`, or numbers from 0, separated by commas."""
    lease_s: Seconds = 1.8
    """Seconds after which a dead worker's conversations go to another one."""
    heartbeat_s: Seconds = 0.45
    """Seconds between renewals of all leases; at most a third of lease_s."""
    stall_s: Seconds = 15.0
    """Seconds of a blocked event loop after which its leases are given up."""
    poll_s: Seconds = 0.5
    """Longest sleep of an idle worker, seconds: what a lost wake-up costs at most."""
    drain_s: Annotated[float, Meta(ge=0)] = 10.0
    """Seconds that running turns get on shutdown before they are handed over."""
    turn_quota: Count = 16
    """Turns after which a conversation lets others have its slot."""
    max_crashes: Count = 3
    """Workers a turn may take down before it becomes a dead letter."""
    turn_budget_s: Seconds = 600.0
    """Seconds that one attempt at a turn may take."""
    aggregation_timeout_s: Seconds = 0.5
    """Seconds that fragments of one user message may be apart."""
    speech_timeout_s: Seconds = 30.0
    """Seconds without news after which a user who began to speak no longer holds a slot."""
    coalesce_ms: Annotated[int, Meta(ge=0)] = 20
    """Milliseconds between two text events of a reply, unless coalesce_bytes come first."""
    coalesce_bytes: Count = 512
    """Bytes of text that are published without waiting for coalesce_ms."""
    first_token_timeout_s: Seconds = 120.0
    """Seconds until the model must have said something meaningful."""
    idle_timeout_s: Seconds = 60.0
    """Seconds between two meaningful pieces of a reply; keep-alive comments do not count."""
    context_cache_mb: Annotated[int, Meta(ge=0)] = 64
    """Memory for contexts that need not be fetched again, MiB."""
    retention_days: Annotated[float, Meta(gt=0)] = 30.0
    """Days that an idle conversation is kept."""
    tools: str = ""
    """Python modules whose tools the model may call, such as `my_shop.tools`, comma-separated."""
    tool_schemas: str = ""
    """JSON files of tools that run elsewhere, in the shape of OpenAI's `tools`, by commas."""
    agents: str = ""
    """TOML file of agents: a table for each, with prompt, model, parameters, tools, limits."""
    max_tool_rounds: Count = 8
    """Model calls that one turn may take; tools asked for in the last one are not run."""
    tool_result_bytes: Annotated[int, Meta(ge=256)] = 65_536
    """Bytes of one tool result that the model gets; the rest is cut, with a note."""
    tool_wait_s: Seconds = 3_600.0
    """Seconds for which a turn waits for a tool that runs elsewhere, unless its schema says."""
    check_model: bool = True
    """Ask the provider at start-up whether it serves the model."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    """Logs go to standard error, one line per event."""
    trace_store: Annotated[int, Meta(ge=0)] = 1_000
    """Newest attempts per shard whose traces are kept for `turnline trace`; 0 keeps none."""
    send_traceparent: bool = False
    """Send the trace context of each call to the provider."""
    redactor: str = ""
    """Function `module:name` that every span passes: (name, attributes) -> what leaves."""
    metrics_port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    """Loopback port on which Prometheus finds /metrics; 0 opens none."""
    worker_name: str = msgspec.field(default_factory=host_and_pid)
    """Name in events and in `turnline queue`."""
    api_key: Secret = Secret("")

    @property
    def served_shards(self) -> tuple[int, ...]:
        """Numbers of the shards to serve.

        Raises:
            SettingsError: Not numbers, or out of range.
        """
        if self.serve_shards == "all":
            return tuple(range(self.shards))
        try:
            numbers = tuple(sorted({int(word) for word in self.serve_shards.split(",")}))
        except ValueError:
            numbers = (-1,)
        if not set(numbers) <= set(range(self.shards)):
            raise SettingsError(
                f"{PREFIX}SERVE_SHARDS: `all` or numbers from 0 to {self.shards - 1}, "
                "separated by commas"
            )
        return numbers


def from_env(environ: Mapping[str, str]) -> Settings:
    """Read `TURNLINE_<FIELD>` and `XAI_API_KEY`. Unknown `TURNLINE_` names are errors: typos.

    Raises:
        SettingsError: Names the variable and what it takes, never a secret's value.
    """
    names = {
        name: name.removeprefix(PREFIX).lower()
        for name in environ
        if name.startswith(PREFIX) and name not in NOT_OURS
    }
    known = [field for field in Settings.__struct_fields__ if field != "api_key"]
    for name, field in names.items():
        if field not in known:
            raise SettingsError(f"{name} is not a setting; `python -m worker --help` lists them")
    values: dict[str, object] = {field: environ[name] for name, field in names.items()}
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        at = re.search(r"`\$\.(\w+)`", str(error))
        field = at[1] if at else "?"
        expected = str(error).split(" - at ")[0]
        raise SettingsError(f"{PREFIX}{field.upper()}: {expected}") from None
    if settings.heartbeat_s > settings.lease_s / 3:
        raise SettingsError(
            f"{PREFIX}HEARTBEAT_S: at most a third of {PREFIX}LEASE_S ({settings.lease_s:g} s)"
        )
    key = Secret(environ.get("XAI_API_KEY", "").strip())
    return msgspec.structs.replace(settings, api_key=key)


def described() -> list[tuple[str, str, str]]:
    """Return (variable, default, what it means) for every setting, in order."""
    texts = _field_texts()
    rows: list[tuple[str, str, str]] = []
    for field in msgspec.structs.fields(Settings):
        if field.name == "api_key":
            rows.append(("XAI_API_KEY", "", "Key for the provider. Never logged."))
            continue
        default = "<host>-<pid>" if field.name == "worker_name" else _shown(field.default)
        rows.append((PREFIX + field.name.upper(), default, texts.get(field.name, "")))
    return rows


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def _field_texts() -> dict[str, str]:
    """Read the docstrings below the fields."""
    import ast  # noqa: PLC0415  for --help only
    import inspect  # noqa: PLC0415  for --help only

    (body,) = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(body, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            texts[field.target.id] = inspect.cleandoc(str(text.value.value))
    texts.setdefault("log_level", "debug, info, warning or error")
    return texts
