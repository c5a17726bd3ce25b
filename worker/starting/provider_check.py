"""Asks the provider for its models: within limits of time and size, whatever it answers."""

import logging
import ssl
import time
import zlib
from collections.abc import Sequence
from datetime import UTC, date, datetime
from functools import partial
from typing import Any, Final, NamedTuple, cast

import aiohttp
import httpx2
import msgspec

from turnline.worker.errors import StartFailed
from turnline.worker.services.grok.model_catalogue import (
    BUILT_IN,
    TABLE_DATE,
    Model,
    is_xai,
    read_list,
)
from turnline.worker.services.provider_client import ProviderClient
from turnline.worker.settings import KEY, Settings
from turnline.worker.starting.stage import WORDS_CHARS, plain, within

log = logging.getLogger("turnline.worker")

LIMIT_S: Final = 10.0
"""Time for the answers, from the connection to the last byte."""
MOST_BYTES: Final = 4 * 1024 * 1024
_MOST_OF_AN_ERROR: Final = 16_384
_MOST_NAMED: Final = 20
_NO_KEY: Final = (
    "XAI_API_KEY is not set (nor XAI_API_KEY_FILE). Get a key from https://console.x.ai, or try "
    "Turnline without one: `turnline sim` runs a simulated Grok, and any key does for it."
)
_ANYWAY: Final = "TURNLINE_CHECK_MODEL=false starts without asking."
_REFUSED: Final = frozenset({400, 401, 402, 403, 407})
_FOREIGN: Final = (httpx2.HTTPError, httpx2.InvalidURL, aiohttp.ClientError, OSError, ValueError)


class ProviderFound(NamedTuple):
    """What was found."""

    models: int | None = None
    """How many it serves; None if it was not asked, or did not say."""
    unchecked: str = ""
    """Why the model was not checked, if it was not."""
    listed: tuple[Model, ...] = ()
    """What it says of them."""


class Answer(NamedTuple):
    """What the provider answered to `GET /language-models` or `GET /models`."""

    status: int
    body: bytes
    """Up to `MOST_BYTES` and a few more."""
    content_type: str = ""
    location: str = ""


def need_key(settings: Settings) -> None:
    """Check that there is a key.

    Raises:
        StartFailed: There is none.
    """
    if not settings.api_key.value:
        raise StartFailed(_NO_KEY)


async def check_provider(settings: Settings, client: ProviderClient) -> ProviderFound:
    """Ask the provider whether it accepts the key and serves the model.

    A provider that does not answer is no reason not to start: turns wait and are tried again.

    Raises:
        StartFailed: The key is missing or refused, the answer is no list of models, the model is
            not in it, the connection can never be made as the system is set up, or nobody answers
            and xAI is known to have retired the model.
    """
    need_key(settings)
    if not settings.check_model:
        return ProviderFound(unchecked="TURNLINE_CHECK_MODEL is false")
    found = await ask_provider(settings, client)
    if found.unchecked:
        log.warning("provider.unchecked", extra={"reason": found.unchecked.partition(":")[0]})
        _refuse_retired(settings)
    else:
        need_model(settings, found.listed)
    return found


async def ask_provider(settings: Settings, client: ProviderClient) -> ProviderFound:
    """Ask the provider for its models.

    Raises:
        StartFailed: As `check_provider`, but for the model.
    """
    began_s = time.monotonic()
    try:
        what = f"GET {settings.base_url}/models"
        answer = await within(LIMIT_S, what, _ask_for_models(client))
    except TimeoutError:
        waited_s = time.monotonic() - began_s
        return ProviderFound(unchecked=f"no whole answer within {waited_s:.0f} s")
    except _FOREIGN as error:
        _judge_connection(settings, error)
        words = plain(str(error), WORDS_CHARS, [settings.api_key.value])
        kind = type(error).__name__
        return ProviderFound(unchecked=f"{kind}: {words}" if words else kind)
    return judge_answer(settings, answer)


def judge_answer(settings: Settings, answer: Answer) -> ProviderFound:
    """Judge a provider's answer, whatever it is.

    Raises:
        StartFailed: As `ask_provider`.
    """
    where, status = settings.base_url, answer.status
    shown = partial(plain, secrets=[settings.api_key.value])
    if 300 <= status < 400:
        to = shown(answer.location.partition("?")[0], WORDS_CHARS)
        raise StartFailed(
            f"{where} redirects to {to or 'nowhere'} (HTTP {status}): the key is not sent on. Set "
            "TURNLINE_BASE_URL to the address that answers."
        )
    if status in _REFUSED:
        words = shown(words_of(answer.body), WORDS_CHARS)
        raise StartFailed(
            f"{where} refuses the key in {KEY} (HTTP {status}{': ' if words else ''}{words}). "
            "Check it at https://console.x.ai."
        )
    if not 200 <= status < 300:
        return ProviderFound(unchecked=f"HTTP {status}")
    if len(answer.body) > MOST_BYTES:
        raise StartFailed(
            f"{where} answers GET /models with more than {MOST_BYTES:,} bytes, which is no list of "
            f"models. Is TURNLINE_BASE_URL right? {_ANYWAY}"
        )
    listed = read_list(answer.body)
    if listed is None:
        kind = shown(answer.content_type.partition(";")[0], 60) or "something"
        raise StartFailed(
            f"{where} answers GET /models with {kind} that is no list of models. Is "
            f"TURNLINE_BASE_URL right? {_ANYWAY}"
        )
    return ProviderFound(len(listed), listed=listed)


def need_model(settings: Settings, listed: tuple[Model, ...]) -> None:
    """Check that a model is served; xAI also serves names that redirect to one in its list.

    Raises:
        StartFailed: None of those in the settings is.
    """
    where, models = settings.base_url, settings.models
    known = BUILT_IN.updated(listed).served if is_xai(where) else listed
    served = {name for it in known for name in (it.name, *it.aliases)}
    missing = [name for name in models if name not in served]
    if len(missing) < len(models):
        for name in missing:
            log.warning("model.not_served", extra={"model": name, "base_url": where})
        return
    names = sorted({plain(it.name, 80, [settings.api_key.value]) for it in listed})
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    serves = f"It serves {', '.join(names[:_MOST_NAMED])}{more}. Set TURNLINE_MODEL to one of them"
    if not names:
        serves = "It lists no models. Set TURNLINE_BASE_URL to a provider that does"
    raise StartFailed(
        f"{where} does not serve the model {_fates(missing)}. {serves}, or "
        "TURNLINE_CHECK_MODEL=false if you know better."
    )


def _refuse_retired(settings: Settings) -> None:
    """Refuse models of which it is known without asking that xAI has ceased to serve them.

    Raises:
        StartFailed: All in the settings are such.
    """
    if is_xai(settings.base_url) and all(map(_fate, settings.models)):
        today = _today()
        names = ", ".join(it.name for it in BUILT_IN.models if not it.is_retired(today))
        raise StartFailed(
            f"xAI does not serve the model {_fates(settings.models)}; on {TABLE_DATE} it served "
            f"{names}. Set TURNLINE_MODEL to one of them, or TURNLINE_CHECK_MODEL=false if you "
            "know better."
        )


def _fates(names: Sequence[str]) -> str:
    return ", nor ".join(f"{name}{_fate(name)}" for name in names)


def _fate(name: str) -> str:
    """Say what became of a model that xAI has retired; "" of any other."""
    model = BUILT_IN.find(name)
    if model is None or not model.is_retired(_today()):
        return ""
    return f", retired on {model.retired_on}" + (
        f" and replaced by {model.replaced_by}" if model.replaced_by else ""
    )


def _today() -> date:
    return datetime.now(UTC).date()


def words_of(body: bytes) -> str:
    """Return what an error's body says to people; "" where it is no JSON, or says nothing."""
    try:
        node: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    for _ in range(3):
        if not isinstance(node, dict):
            break
        fields = cast("dict[str, Any]", node)
        names = (it for it in ("error", "message", "detail") if it in fields)
        node = fields.get(next(names, ""))
    return node if isinstance(node, str) else ""


async def _ask_for_models(client: ProviderClient) -> Answer:
    """Ask for the list that says more, which few hosts have, then for the one that all have."""
    answer = await _ask(client, "language-models")
    if 200 <= answer.status < 300 and len(answer.body) <= MOST_BYTES and read_list(answer.body):
        return answer
    return await _ask(client, "models")


async def _ask(client: ProviderClient, path: str) -> Answer:
    """Send one request through the client's own transport, and read so much of the answer."""
    headers = {**client.auth_headers, **client.default_headers, "Accept-Encoding": "identity"}
    request = httpx2.Request(
        "GET",
        f"{str(client.base_url).rstrip('/')}/{path}",
        headers=headers,
    )
    response = await client.http.send(request, stream=True, follow_redirects=False)
    body = bytearray()
    try:
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        most = MOST_BYTES if response.is_success else _MOST_OF_AN_ERROR
        inflate = zlib.decompressobj(47) if encoding in {"gzip", "x-gzip", "deflate"} else None
        async for part in response.aiter_raw():
            body += part if inflate is None else inflate.decompress(part, most + 1 - len(body))
            if len(body) > most:
                break
    except zlib.error:
        body.clear()
    finally:
        await response.aclose()
    return Answer(
        response.status_code,
        bytes(body),
        response.headers.get("content-type", ""),
        response.headers.get("location", ""),
    )


def _judge_connection(settings: Settings, error: BaseException) -> None:
    """Refuse what will not mend itself: a certificate that is not trusted, a file that is missing.

    Raises:
        StartFailed: Says which.
    """
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    if any(isinstance(it, ssl.SSLError | ssl.CertificateError) for it in chain) or any(
        isinstance(it, aiohttp.ClientSSLError) for it in chain
    ):
        words = plain(str(chain[-1]), WORDS_CHARS, [settings.api_key.value])
        raise StartFailed(
            f"{settings.base_url}: no connection with TLS can be made ({words}). SSL_CERT_FILE "
            "names the certificates to trust."
        ) from None
    if isinstance(error, aiohttp.ClientResponseError) and not isinstance(
        error, aiohttp.ClientHttpProxyError
    ):
        raise StartFailed(
            f"{settings.base_url} answers GET /models in something that is not HTTP. Is "
            f"TURNLINE_BASE_URL right? {_ANYWAY}"
        ) from None
    if isinstance(error, OSError) and error.filename is not None:
        raise StartFailed(cannot_connect(error)) from None


def cannot_connect(error: Exception) -> str:
    """Say why no client for the provider can be made: a proxy or a certificate of the environment.

    The text of a wrong proxy address is not repeated: it may hold a password.
    """
    if isinstance(error, OSError):
        words = plain(f"{error.strerror or error}", WORDS_CHARS)
        return f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be used: {words}."
    return (
        "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or NO_PROXY is set to something that is no address of "
        f"a proxy ({type(error).__name__})."
    )
