"""OpenAI's SDK is imported for those who use it, and looks to them as if it had been all along."""

import subprocess
import sys

import pytest
from openai import AsyncOpenAI

from tests.support.recordings import REPOSITORY
from turnline.worker.services.grok.llm import GrokLLMService
from turnline.worker.services.openai.sdk_client import create_client
from turnline.worker.services.provider_client import ProviderClient

MAKING = """
import sys
import turnline.worker.command, turnline.worker.main
from turnline.worker.services.grok.llm import GrokLLMService
from turnline.worker.services.provider_client import ProviderClient

given = {"api_key": "k", "base_url": "http://127.0.0.1:9/v1"}
plain = GrokLLMService(**given, params=GrokLLMService.InputParams(temperature=1))
assert not {"openai", "pydantic", "anyio"} & sys.modules.keys()
"""
ASKING = """
client = plain._client
assert type(client) is sys.modules["openai"].AsyncOpenAI
assert client is plain._client
"""
OVERRIDING = """
class Mine(GrokLLMService):
    def build_chat_completion_params(self, params_from_context):
        return {}

for client in None, ProviderClient(**given):
    mine = Mine(**given, client=client)
    assert mine._settings["top_p"] is sys.modules["openai"].NOT_GIVEN
    assert type(mine._client) is sys.modules["openai"].AsyncOpenAI
"""
IMPORTING = """
import openai

assert GrokLLMService.InputParams().top_p is openai.NOT_GIVEN
assert GrokLLMService(**given)._settings["top_p"] is openai.NOT_GIVEN
"""


@pytest.mark.parametrize("using", [ASKING, OVERRIDING, IMPORTING])
def test_the_sdk_is_there_for_who_uses_it_and_nobody_else_imports_it(using: str) -> None:
    """Asking for its client, overriding a hook, or comparing with its constant."""
    subprocess.run([sys.executable, "-c", MAKING + using], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize("first", [False, True])
async def test_both_clients_of_a_service_are_closed_with_it(first: bool) -> None:
    """The SDK's uses the same connections."""
    service = GrokLLMService(api_key="k")
    ours = service._connection
    assert isinstance(ours, ProviderClient)
    client = service._client
    assert isinstance(client, AsyncOpenAI)

    await (client if first else service).close()

    assert ours.is_closed()
    assert client.is_closed()


async def test_a_client_that_is_set_later_is_used() -> None:
    """As in pipecat, where it is an attribute."""
    service = GrokLLMService(api_key="k")
    await service.close()
    mine = create_client("xai-mine", "http://127.0.0.1:9/v1")

    service._client = mine

    assert service._client is service._connection is mine
    await mine.close()


@pytest.mark.parametrize("base_url", ["", " "])
def test_an_empty_address_is_refused(base_url: str) -> None:
    """The key goes nowhere that was not named for it."""
    with pytest.raises(ValueError, match="base_url is empty"):
        ProviderClient("k", base_url)
