"""OpenAI's client: how it is made, and all that is used of its private parts.

A test looks for each of these names in the installed SDK. Without the transport the SDK itself
makes the requests, as it does for a client of another class.
"""

from collections.abc import Mapping
from typing import Any, Final, cast

import httpx2
from httpx2 import Limits
from openai import AsyncOpenAI

from turnline.worker.services.http_connections import HttpClient

CUSTOM_HEADERS: Final = "_custom_headers"
HTTP_CLIENT: Final = "_client"
TRANSPORT_FOR_URL: Final = "_transport_for_url"
"""Of the HTTP client: which of its transports sends to an address."""


def create_client(
    api_key: str | None,
    base_url: str | None = None,
    *,
    organization: str | None = None,
    project: str | None = None,
    default_headers: Mapping[str, str] | None = None,
) -> AsyncOpenAI:
    """Make a client that never retries and takes nothing from the environment.

    It has as many connections as it is asked for: the number of turns is limited elsewhere.

    Args:
        api_key: Used as it is.
        base_url: Used as it is; OpenAI's address if None.
        organization: OpenAI's, sent with each request.
        project: OpenAI's, sent with each request.
        default_headers: Sent with each request.

    Raises:
        ValueError: `api_key` is missing or empty, or `base_url` is empty: a key goes nowhere that
            was not named for it.
    """
    if not api_key:
        raise ValueError("a client needs an api_key; none is looked up elsewhere")
    if base_url is not None and not base_url.strip():
        raise ValueError("base_url is empty")
    client = AsyncOpenAI(
        api_key=api_key,
        base_url="https://api.openai.com/v1" if base_url is None else base_url,
        max_retries=0,
        http_client=HttpClient(
            limits=Limits(max_connections=0, max_keepalive_connections=None, keepalive_expiry=30.0)
        ),
    )
    # The SDK fills these from OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_ADMIN_KEY and
    # OPENAI_CUSTOM_HEADERS, and would send them to whatever address is configured.
    client.organization = organization
    client.project = project
    client.admin_api_key = None
    setattr(client, CUSTOM_HEADERS, dict(default_headers or {}))
    return client


def transport_of(client: AsyncOpenAI, url: httpx2.URL) -> httpx2.AsyncBaseTransport:
    """Return what the client's HTTP client sends to this address with: proxies are heeded."""
    find: Any = getattr(getattr(client, HTTP_CLIENT), TRANSPORT_FOR_URL)
    return cast("httpx2.AsyncBaseTransport", find(url))


def has_transport(client: AsyncOpenAI) -> bool:
    """Tell whether requests can go straight to the transport: the client is the SDK's own."""
    http_client = getattr(client, HTTP_CLIENT, None)
    return type(client) is AsyncOpenAI and hasattr(http_client, TRANSPORT_FOR_URL)
