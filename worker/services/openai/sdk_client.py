"""OpenAI's client: how it is made, and all that is used of its private parts.

A test looks for each of these names in the installed SDK. Without the transport the SDK itself
makes the requests, as it does for a client of another class. The SDK takes a second of processor
time to import, so nothing here does before a client of it is asked for.
"""

import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import httpx2

from turnline.worker.services.provider_client import ProviderClient

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Client: TypeAlias = "AsyncOpenAI | ProviderClient"

CUSTOM_HEADERS: Final = "_custom_headers"
HTTP_CLIENT: Final = "_client"
TRANSPORT_FOR_URL: Final = "_transport_for_url"
"""Of the HTTP client: which of its transports sends to an address."""


def create_client(api_key: str | None, base_url: str | None = None, **more: Any) -> "AsyncOpenAI":
    """Make a client that never retries and takes nothing from the environment.

    It has as many connections as it is asked for: the number of turns is limited elsewhere.

    Args:
        api_key: Used as it is.
        base_url: Used as it is; OpenAI's address if None.
        **more: `organization`, `project` and `default_headers`, sent with each request.

    Raises:
        ValueError: `api_key` is missing or empty, or `base_url` is empty.
    """
    return sdk_client_of(ProviderClient(api_key, base_url, **more))


def sdk_client_of(provider: ProviderClient) -> "AsyncOpenAI":
    """Make the SDK's client for a provider. It uses the provider's connections, and closes them."""
    from openai import AsyncOpenAI  # noqa: PLC0415  see above

    client = AsyncOpenAI(
        api_key=provider.api_key,
        base_url=provider.base_url,
        max_retries=0,
        http_client=provider.http,
    )
    # The SDK fills these from OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_ADMIN_KEY and
    # OPENAI_CUSTOM_HEADERS, and would send them to whatever address is configured.
    client.organization = provider.organization
    client.project = provider.project
    client.admin_api_key = None
    setattr(client, CUSTOM_HEADERS, dict(provider.own_headers))
    return client


def transport_of(client: Client, url: httpx2.URL) -> httpx2.AsyncBaseTransport:
    """Return what the client's HTTP client sends to this address with: proxies are heeded."""
    find: Any = getattr(_http_of(client), TRANSPORT_FOR_URL)
    return cast("httpx2.AsyncBaseTransport", find(url))


def has_transport(client: object) -> bool:
    """Tell whether requests can go straight to the transport: the client is ours or the SDK's."""
    return type(client) in {ProviderClient, of_sdk("AsyncOpenAI")} and hasattr(
        _http_of(client), TRANSPORT_FOR_URL
    )


def of_sdk(name: str, default: Any = None) -> Any:
    """Return what the SDK calls so; `default` where nobody has imported it."""
    return getattr(sys.modules.get("openai"), name, default)


def _http_of(client: object) -> Any:
    return client.http if isinstance(client, ProviderClient) else getattr(client, HTTP_CLIENT, None)
