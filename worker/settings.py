"""What an operator can set: one frozen struct, read from the environment once."""

import difflib
import os
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from turnline.contracts.addresses import host_and_port, read_address, where
from turnline.contracts.daily_spend import SPEND_DAYS
from turnline.contracts.errors import InvalidAddress
from turnline.contracts.keys import check_prefix
from turnline.worker.files import UnusableFile, read_text
from turnline.worker.http_places import BadPlace, read_place
from turnline.worker.injected_variables import is_injected
from turnline.worker.process_count import read_count
from turnline.worker.provider_limits import LimitRules

PREFIX = "TURNLINE_"
KEY: Final = "XAI_API_KEY"
_URL: Final = f"{PREFIX}BASE_URL"
NOT_OURS = frozenset({"TURNLINE_PYTHON", "TURNLINE_SHARED_DATA"})
"""Variables with the prefix that are read by `ops/run` and the tests."""
FROM_FILES: Final = (KEY, "TURNLINE_REDIS_URL", "TURNLINE_BASE_URL")
"""Variables that may hold secrets: `<NAME>_FILE` names a file that holds the value instead."""
_MOST_OF_A_VALUE: Final = 65_536
_RENAMED: Final = {f"{PREFIX}METRICS_PORT": f"write {PREFIX}HTTP=127.0.0.1:PORT"}
MOST_LISTED: Final = 64
"""Keys and addresses that are pooled, and models in a list."""
_MOST_OF_A_NAME: Final = 200
DAY_S: Final = 86_400
Seconds = Annotated[float, Meta(gt=0, le=365 * DAY_S)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Name = Annotated[str, Meta(pattern=r"\A[!-~]{1,200}\Z")]
"""Visible ASCII without spaces."""


class Secret(msgspec.Struct, frozen=True):
    """A value that does not print itself."""

    value: str

    def __repr__(self) -> str:
        return "Secret(set)" if self.value else "Secret(not set)"

    __str__ = __repr__


class SettingsError(Exception):
    """A variable is unknown, missing or out of range; the text says what to do."""


def host_name() -> str:
    """Return the name of this host, as far as names of workers may have it."""
    return re.sub(r"[^!-~]", "_", socket.gethostname())[:100]


def host_and_pid() -> str:
    """Return a name that no other process has."""
    return f"{host_name()}-{os.getpid()}"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each field is the variable `TURNLINE_<NAME>`; the key is `XAI_API_KEY`."""

    redis_url: str = "redis://127.0.0.1:6379/0"
    """Where Redis or Valkey (7.0 or newer) is: redis://, rediss:// or unix://PATH?db=N."""
    base_url: str = "https://api.x.ai/v1"
    """Where Grok is; several, separated by commas, are pooled, with as many keys or one."""
    model: str = "grok-4.3"
    """Model of conversations that do not choose their own; several, separated by commas, where the
    next one is asked when one cannot answer."""
    wire: Literal["responses", "chat"] = "responses"
    """How the model is spoken to, where a conversation does not choose: `responses` keeps what its
    reasoning leaves behind; `chat` is what other OpenAI-compatible hosts speak."""
    slots: Annotated[int, Meta(ge=1, le=100_000)] = 100
    """Conversations that this worker runs at once."""
    shards: Annotated[int, Meta(ge=1, le=16_384)] = 1
    """Hash tags the fleet's conversations are spread over; the same for all workers and clients."""
    prefix: str = ""
    """Name of the fleet where several share a server; the same for all workers and clients."""
    wait_replicas: Annotated[int, Meta(ge=0, le=16)] = 0
    """Replicas that the end of a turn waits for, 0.2 s at most, before the worker goes on."""
    serve_shards: str = "all"
    """Shards this worker serves: `all`, or numbers from 0, separated by commas."""
    lease_s: Annotated[float, Meta(ge=0.05, le=3_600)] = 1.8
    """Seconds after which a dead worker's conversations go to another one."""
    heartbeat_s: Annotated[float, Meta(ge=0.01, le=1_200)] = 0.45
    """Seconds between renewals of all leases; at most a third of lease_s."""
    stall_s: Annotated[float, Meta(gt=0, le=DAY_S)] = 15.0
    """Seconds that the event loop may be blocked; then the worker gives up its leases and ends."""
    poll_s: Annotated[float, Meta(ge=0.001, le=3_600)] = 0.5
    """Seconds after which an idle worker looks at the queue though nobody woke it."""
    drain_s: Annotated[float, Meta(ge=0, le=7 * DAY_S)] = 10.0
    """Seconds that running turns get on shutdown before they are handed over."""
    replace_drain_s: Annotated[float, Meta(ge=0, le=7 * DAY_S)] = 300.0
    """Seconds that running turns get before they are handed over where another process has taken
    over already: on SIGHUP, and behind max_rss_mb."""
    processes: str = ""
    """Worker processes that a supervisor keeps: a number, or `auto`, one for each usable core.
    Unset: a single worker, without a supervisor."""
    max_rss_mb: Annotated[int, Meta(ge=0, le=16_777_216)] = 0
    """MiB of memory beyond which the supervisor replaces a worker process; 0: any."""
    turn_quota: Count = 16
    """Turns that one conversation runs in a row before others get its slot."""
    max_crashes: Count = 3
    """Attempts at a turn that may end in a crash before it becomes a dead letter."""
    turn_budget_s: Seconds | None = None
    """Seconds that the attempts at a turn may take, waits between them included. Unset: 1800 where
    the model thinks, else 600."""
    turn_attempts: Count = 5
    """Attempts at a turn that may fail after the provider began to answer; others do not count."""
    turn_spend_tokens: Count = 2_000_000
    """Tokens that failed attempts at a turn may use, reported or estimated."""
    provider_limits: str = ""
    """Limits of the provider by model, such as `grok-4.3=37rps+10_000_000tpm,*=5rps`: rps, rpm, tps
    and tpm, or `off`, which heeds none. Unset: those that the provider tells."""
    aggregation_timeout_s: Seconds = 0.5
    """Seconds to wait for another fragment of the same user message."""
    speech_timeout_s: Seconds = 30.0
    """Seconds that a user who began to speak may be silent before the slot is given up."""
    coalesce_ms: Annotated[int, Meta(ge=0, le=60_000)] = 20
    """Milliseconds for which the text of a reply is collected before it is published."""
    coalesce_bytes: Count = 512
    """Bytes of collected text that are published before coalesce_ms are over."""
    silence_timeout_s: Seconds = 60.0
    """Seconds in which nothing comes from the provider, not even a keep-alive comment."""
    first_token_timeout_s: Seconds | None = None
    """Seconds that the model may take to the first meaningful piece of a reply. Unset: any."""
    idle_timeout_s: Seconds | None = None
    """Seconds between two meaningful pieces of a reply; comments do not count. Unset: any."""
    context_cache_mb: Annotated[int, Meta(ge=0, le=1_048_576)] = 64
    """MiB of memory for contexts, so that they need not be fetched again."""
    reasoning_max_bytes: Annotated[int, Meta(ge=0, le=1_073_741_824)] = 524_288
    """Bytes of reasoning in a context; beyond it that of earlier turns goes; 0 keeps none."""
    retention_days: Annotated[float, Meta(ge=0.0001, le=36_500)] = 30.0
    """Days that an idle conversation is kept."""
    spend_days: Annotated[int, Meta(ge=1, le=36_500)] = SPEND_DAYS
    """Days that is kept what was spent on a day, by tenant, agent and model."""
    index: bool = True
    """Enter conversations in the index by which `turnline conversations` finds them."""
    tools: str = ""
    """Python modules whose tools the model may call, such as `my_shop.tools`, comma-separated."""
    tool_schemas: str = ""
    """JSON files of tools that run elsewhere, as OpenAI's `tools` are written, comma-separated."""
    agents: str = ""
    """TOML file of agents: a table for each, with prompt, model, parameters, tools and limits."""
    budgets: str = ""
    """TOML file of budgets: what may be spent in a turn, in a conversation, by tenants in a day."""
    max_tool_rounds: Count = 8
    """Model calls that one turn may take; tools asked for in the last one are not run."""
    tool_result_bytes: Annotated[int, Meta(ge=256, le=16_777_216)] = 65_536
    """Bytes of one tool result that the model gets; the rest is cut, with a note."""
    tool_wait_s: Seconds = 3_600.0
    """Seconds that a turn waits for a tool that runs elsewhere, unless its schema says how many."""
    check_model: bool = True
    """Ask the provider at start-up whether it serves the model."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error."""
    log_format: Literal["text", "json"] = "text"
    """text or json. Logs go to standard error, one line per event."""
    trace_store: Annotated[int, Meta(ge=0, le=10_000_000)] = 1_000
    """Newest attempts per shard whose traces are kept for `turnline trace`; 0 keeps none."""
    send_traceparent: bool = False
    """Send the trace context of each call to the provider."""
    redactor: str = ""
    """Function `module:name` that filters every span: (name, attributes) -> attributes to send."""
    http: str = ""
    """Where /livez, /readyz and /metrics are answered: HOST:PORT, PORT (of the loopback address)
    or unix:PATH. Unset: nowhere."""
    unready_s: Annotated[float, Meta(ge=0, le=3_600)] = 0.0
    """Seconds between a request to end, from when on /readyz says no, and the drain."""
    worker_name: Name = msgspec.field(default_factory=host_and_pid)
    """Name in events and in `turnline queue`."""
    api_key: Secret = Secret("")

    def __repr__(self) -> str:
        pairs = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"Settings({pairs})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return what may be shown: no password of Redis."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        return list({**shown, "redis_url": where(self.redis_url)}.items())

    @property
    def members(self) -> "tuple[Settings, ...]":
        """These settings with each of the keys and addresses that are pooled.

        Raises:
            SettingsError: One is missing, or stands there twice.
        """
        urls = _listed(_URL, self.base_url, "address", "addresses")
        keys = _listed(KEY, self.api_key.value, "key", "keys")
        count = max(len(keys), len(urls))
        if count == 1:
            return (self,)
        if not keys[0]:
            raise SettingsError(
                f"{KEY} is not set, and {_URL} has {count} addresses: set one key for all, or one "
                "for each"
            )
        if not {len(keys), len(urls)} <= {1, count}:
            raise SettingsError(
                f"{KEY} and {_URL}: {len(keys)} keys and {len(urls)} addresses: set one of either, "
                "or as many of both"
            )
        one_of = {(1, count): (_URL, "addresses"), (count, 1): (KEY, "keys")}
        named = one_of.get((len(keys), len(urls)), (f"{KEY} and {_URL}", "pairs"))
        each = (it * count if len(it) == 1 else it for it in (keys, urls))
        pairs = list(zip(*each, strict=True))
        _check_distinct(*named, [(key, _plain(url)) for key, url in pairs])
        return tuple(
            msgspec.structs.replace(self, api_key=Secret(key), base_url=url) for key, url in pairs
        )

    @property
    def end_s(self) -> float:
        """Seconds that running turns get, from a request to end on."""
        return self.unready_s + self.drain_s

    @property
    def models(self) -> tuple[str, ...]:
        """The models of conversations that do not choose their own, in order.

        Raises:
            SettingsError: A name is missing, is none, or stands there twice.
        """
        setting = f"{PREFIX}MODEL"
        names = _listed(setting, self.model, "name", "names")
        for n, name in enumerate(names, 1):
            which = f"name {n} of {len(names)}" if len(names) > 1 else "it"
            if len(name) > _MOST_OF_A_NAME:
                raise SettingsError(
                    f"{setting}: {which} has {len(name)} characters, and {_MOST_OF_A_NAME} is the "
                    "most: write the model's own name"
                )
            if not re.fullmatch(r"[!-~]+", name, re.ASCII):
                raise SettingsError(
                    f"{setting}: {which} holds a space, or a character that is not visible ASCII: "
                    "names are separated by commas alone"
                )
        _check_distinct(setting, "names", names)
        return tuple(names)

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
    """Read `TURNLINE_<FIELD>` and `XAI_API_KEY`, or the files that `<NAME>_FILE` names.

    An empty variable is an unset one. Unknown `TURNLINE_` names are errors: they are typos; what
    Kubernetes injects for services of this name is left alone.

    Raises:
        SettingsError: Names the variable and what it takes, never a secret's value.
    """
    given = {name: value.strip() for name, value in environ.items() if value.strip()}
    given = _with_files(given)
    known = [field for field in Settings.__struct_fields__ if field != "api_key"]
    values: dict[str, object] = {}
    for name, value in given.items():
        if not name.startswith(PREFIX) or name in NOT_OURS:
            continue
        if is_injected(name.removeprefix(PREFIX.rstrip("_")), value):
            continue
        field = name.removeprefix(PREFIX).lower()
        if field not in known or name != PREFIX + field.upper():
            raise SettingsError(_unknown(name, known))
        values[field] = value
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_misfit(error)) from None
    _check(settings)
    key = given.get(KEY, "")
    if not re.fullmatch(r"[!-~]*", key, re.ASCII):
        raise SettingsError(
            f"{KEY} holds a space, or a character that is not visible ASCII: it is no key; several "
            "are separated by commas alone"
        )
    settings = msgspec.structs.replace(settings, api_key=Secret(key))
    _ = settings.members
    return settings


def value_or_file(environ: Mapping[str, str], name: str) -> str:
    """Return a variable's value, or what the file holds that `<NAME>_FILE` names; "" for neither.

    Raises:
        SettingsError: Both are set, or the file cannot be used.
    """
    value, path = (environ.get(it, "").strip() for it in (name, f"{name}_FILE"))
    if not path:
        return value
    if value:
        raise SettingsError(f"{name} and {name}_FILE are both set: unset one of them")
    try:  # the path is not repeated: by mistake it may be the secret itself
        value = read_text(path, most_bytes=_MOST_OF_A_VALUE).strip()
    except UnusableFile as error:
        raise SettingsError(f"{name}_FILE: {error}") from None
    if not value:
        raise SettingsError(f"{name}_FILE: it is empty")
    if len(value.splitlines()) > 1:
        raise SettingsError(f"{name}_FILE: it has several lines; one value is expected")
    return value


def _with_files(given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with the values of those that stand in files."""
    found = {name: value_or_file(given, name) for name in FROM_FILES}
    of_files = {f"{name}_FILE" for name in FROM_FILES}
    rest = {name: value for name, value in given.items() if name not in of_files}
    return rest | {name: value for name, value in found.items() if value}


def _unknown(name: str, known: list[str]) -> str:
    if name in _RENAMED:
        return f"{name} is no setting any more: {_RENAMED[name]}"
    names = [PREFIX + field.upper() for field in known]
    names += [*FROM_FILES, *(f"{it}_FILE" for it in FROM_FILES)]
    near = difflib.get_close_matches(name.upper(), names, 1, 0.6)
    if name.upper().endswith("_KEY"):
        near = [KEY]
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"{name[:100]} is not a setting{meant} (`turnline worker --help` lists them)"


def _misfit(error: msgspec.ValidationError) -> str:
    at = re.search(r"`\$\.(\w+)`", str(error))
    expected = str(error).split(" - at ")[0]
    if "enum value" in expected:  # it would be repeated
        expected = "Expected one of the values that `turnline worker --help` lists"
    if "matching regex" in expected:
        expected = "Expected 1 to 200 visible ASCII characters without spaces"
    return f"{PREFIX}{(at[1] if at else '?').upper()}: {expected}"


def _check(settings: Settings) -> None:
    """Check what concerns more than a type.

    Raises:
        SettingsError: Settings contradict each other, or an address is none.
    """
    if settings.heartbeat_s > settings.lease_s / 3:
        raise SettingsError(
            f"{PREFIX}HEARTBEAT_S: at most a third of {PREFIX}LEASE_S ({settings.lease_s:g} s)"
        )
    if settings.stall_s <= settings.heartbeat_s:
        raise SettingsError(
            f"{PREFIX}STALL_S: more than {PREFIX}HEARTBEAT_S ({settings.heartbeat_s:g} s)"
        )
    _ = settings.served_shards, settings.models
    _check_processes(settings)
    try:
        LimitRules.read(settings.provider_limits)
    except ValueError as error:
        raise SettingsError(f"{PREFIX}PROVIDER_LIMITS: {error}") from None
    try:
        check_prefix(settings.prefix)
    except ValueError as error:
        raise SettingsError(f"{PREFIX}PREFIX: {error}") from None
    try:
        _ = settings.http and read_place(settings.http)
    except BadPlace as error:
        raise SettingsError(f"{PREFIX}HTTP: {error}") from None
    try:
        read_address(settings.redis_url)
    except InvalidAddress as error:
        raise SettingsError(f"{PREFIX}REDIS_URL: {error}") from None
    urls = _listed(_URL, settings.base_url, "address", "addresses")
    for n, url in enumerate(urls, 1):
        try:
            check_base_url(url)
        except InvalidAddress as error:
            which = f"address {n} of {len(urls)}: " if len(urls) > 1 else ""
            raise SettingsError(f"{_URL}: {which}{error}") from None


def _check_processes(settings: Settings) -> None:
    """Check what a supervisor is told.

    Raises:
        SettingsError: It is no number, or there is no supervisor whom it concerns.
    """
    if settings.processes:
        try:
            read_count(settings.processes)
        except ValueError as error:
            raise SettingsError(f"{PREFIX}PROCESSES: {error}") from None
    elif settings.max_rss_mb:
        raise SettingsError(
            f"{PREFIX}MAX_RSS_MB: only a supervisor replaces processes: set {PREFIX}PROCESSES too"
        )


def _listed(setting: str, value: str, one: str, many: str) -> list[str]:
    """Split the value of a setting: `one` is what each is called, `many` what several are.

    Raises:
        SettingsError: One is missing, or there are too many.
    """
    items = value.split(",")
    count = len(items)
    if (over := count - MOST_LISTED) > 0:
        raise SettingsError(
            f"{setting}: {count} {many}, and {MOST_LISTED} is the most: remove {over}"
        )
    if count > 1 and "" in items:
        n = items.index("") + 1
        do = "write it between the commas, or remove a comma"
        if n in {1, count}:
            place = "before" if n == 1 else "behind"
            do = f"write it {place} the comma, or remove the comma"
        raise SettingsError(f"{setting}: {one} {n} of {count} is missing: {do}")
    return items


def _check_distinct(setting: str, many: str, items: Sequence[object]) -> None:
    """Check that nothing stands in a list twice.

    Raises:
        SettingsError: It does; the text says where.
    """
    for n, item in enumerate(items, 1):
        if (first := items.index(item) + 1) < n:
            raise SettingsError(
                f"{setting}: {many} {first} and {n} are the same: remove one of them"
            )


def _plain(url: str) -> tuple[str, str | None, int | None, str]:
    """Return what is the same for all ways to write an address."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port, parts.path.rstrip("/")


def check_base_url(url: str) -> None:
    """Check that an address of a provider can be read in one way only: the key goes there.

    Raises:
        InvalidAddress: Says what belongs there; repeats nothing of it.
    """
    if len(url) > 2_048 or not re.fullmatch(r"[!-~]+", url, re.ASCII) or "\\" in url:
        raise InvalidAddress(
            "up to 2048 visible ASCII characters without spaces and backslashes; write a host of "
            "other letters in its xn-- form"
        )
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidAddress("brackets stand only around an IPv6 address") from None
    if not re.match(r"https?://", url, re.IGNORECASE):
        raise InvalidAddress("it begins with https:// (or http://), as in https://api.x.ai/v1")
    if "@" in parts.netloc:
        raise InvalidAddress(f"no user and password before the host: the key stands in {KEY}")
    if "?" in url or "#" in url:
        raise InvalidAddress("no ? and no #: paths such as /chat/completions are put behind it")
    host_and_port(parts.netloc, 443)
