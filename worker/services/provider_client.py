"""What requests to a provider are sent with: its address, the key, headers and connections."""

from collections.abc import Mapping
from importlib import metadata
from typing import Final

import httpx2

from turnline.worker.services.http_connections import HttpClient

OPENAI_BASE_URL: Final = "https://api.openai.com/v1"


class ProviderClient:
    """A provider's address and key, and the connections to it.

    It never retries and takes neither key nor headers from the environment. What the attributes
    hold is named as in the SDK's client, and may be handed in its place.
    """

    def __init__(
        self,
        api_key: str | None,
        base_url: str | None = None,
        *,
        organization: str | None = None,
        project: str | None = None,
        default_headers: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            api_key: Used as it is.
            base_url: Used as it is; OpenAI's address if None.
            organization: OpenAI's, sent with each request.
            project: OpenAI's, sent with each request.
            default_headers: Sent with each request.

        Raises:
            ValueError: `api_key` is missing or empty, or `base_url` is empty: a key goes nowhere
                that was not named for it.
            OSError: Certificates that the environment names cannot be used.
        """
        if not api_key:
            raise ValueError("a client needs an api_key; none is looked up elsewhere")
        if base_url is not None and not base_url.strip():
            raise ValueError("base_url is empty")
        self.use_key(api_key)
        self.organization = organization
        self.project = project
        self.own_headers = dict(default_headers or {})
        self.base_url = httpx2.URL(OPENAI_BASE_URL if base_url is None else base_url)
        self.default_query: Mapping[str, object] = {}
        headers = {
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": _user_agent(),
            "OpenAI-Organization": organization,
            "OpenAI-Project": project,
            **self.own_headers,
        }
        self.default_headers: Mapping[str, str] = {
            name: value for name, value in headers.items() if value is not None
        }
        self.http = HttpClient()
        if self.base_url.scheme == "https":
            _ = self.http.tls  # certificates that cannot be used are found out now

    def use_key(self, api_key: str) -> None:
        """Send this key with the requests that come from now on."""
        self.api_key = api_key
        self.auth_headers: Mapping[str, str] = {"Authorization": f"Bearer {api_key}"}

    def is_closed(self) -> bool:
        """Tell whether it was closed."""
        return self.http.is_closed

    async def close(self) -> None:
        """Close the connections."""
        await self.http.aclose()


def _user_agent() -> str:
    try:
        return f"turnline/{metadata.version('turnline')}"
    except metadata.PackageNotFoundError:
        return "turnline"
