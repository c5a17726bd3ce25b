"""The client of a service: ours, until somebody asks for the SDK's."""

from typing import TYPE_CHECKING, Any, ClassVar

from turnline.worker.services.openai.sdk_client import Client, create_client, sdk_client_of
from turnline.worker.services.provider_client import ProviderClient

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class ClientOfService:
    """What a service knows of its client."""

    _connection: Client
    _owns_client: bool

    def create_client(
        self, api_key: str | None = None, base_url: str | None = None, **kwargs: Any
    ) -> "AsyncOpenAI":
        """Make the SDK's client. Override it to bring another one.

        An override is called once, by the constructor. This one is called where the SDK is used.

        Args:
            api_key: Used as it is.
            base_url: Used as it is; OpenAI's address if None.
            **kwargs: `organization`, `project`, `default_headers`, and what else the constructor
                was given that it does not know.

        Raises:
            ValueError: `api_key` is missing or empty.
        """
        return create_client(api_key, base_url, **kwargs)

    _own_create_client: ClassVar[Any] = create_client

    def _take_client(self, client: "Client | None", **given: Any) -> None:
        """Keep a client, or make one of what the constructor was given."""
        self._owns_client = client is None
        if client is None:
            is_own = self.create_client == self._own_create_client
            client = self._provider_client(**given) if is_own else self.create_client(**given)
        self._connection = client

    def _provider_client(self, base_url: str | None, **given: Any) -> ProviderClient:
        return ProviderClient(base_url=base_url, **given)

    @property
    def _client(self) -> Any:
        """The SDK's client, as in pipecat. From here on requests go by it."""
        if isinstance(self._connection, ProviderClient):
            self._connection = sdk_client_of(self._connection)
        return self._connection

    @_client.setter
    def _client(self, client: Client) -> None:
        self._connection = client

    async def close(self) -> None:
        """Close the client, if it was made here."""
        if self._owns_client:
            await self._connection.close()
