"""The API's small resources: models with their prices, and the key that asks."""

from collections.abc import Mapping
from typing import Final

from turnline.ops.simulator.model.api_errors import KEY_ID, TEAM_ID
from turnline.ops.simulator.model.models import Catalogue, Model

_CREATED: Final = 1_750_000_000


def payload(path: str, models: Catalogue) -> object:
    """Return the body of a GET of one of the resources; None if there is none at the path."""
    match path.removeprefix("/v1/").split("/"):
        case ["models"]:
            listed = [_model(found) for found in models.models.values()]
            return {"data": listed, "object": "list"}
        case ["models", name]:
            found = models.resolve(name)
            return None if found is None else _model(found)
        case ["language-models"]:
            return {"models": [_language_model(models, it) for it in models.models.values()]}
        case ["language-models", name]:
            found = models.resolve(name)
            return None if found is None else _language_model(models, found)
        case ["api-key"]:
            return _API_KEY
        case _:
            return None


def _model(found: Model) -> Mapping[str, object]:
    return {"id": found.name, "created": _CREATED, "object": "model", "owned_by": "xai"}


def _language_model(models: Catalogue, found: Model) -> Mapping[str, object]:
    # List prices are US cents per 100 million tokens: the same number as ticks per token.
    return {
        "id": found.name,
        "fingerprint": found.fingerprint,
        "created": _CREATED,
        "object": "model",
        "owned_by": "xai",
        "version": "1.0",
        "input_modalities": ["text", "image"],
        "output_modalities": ["text"],
        "prompt_text_token_price": found.input_ticks,
        "cached_prompt_text_token_price": found.cached_ticks,
        "prompt_image_token_price": found.input_ticks,
        "completion_text_token_price": found.output_ticks,
        "search_price": 0,
        "aliases": models.aliases(found.name),
    }


_API_KEY: Final = {
    "redacted_api_key": "xai-...b14o",
    "user_id": TEAM_ID,
    "name": "simulator",
    "create_time": "2026-01-01T00:00:00.000000Z",
    "modify_time": "2026-01-01T00:00:00.000000Z",
    "modified_by": TEAM_ID,
    "team_id": TEAM_ID,
    "acls": ["api-key:model:*", "api-key:endpoint:*"],
    "api_key_id": KEY_ID,
    "team_blocked": False,
    "api_key_blocked": False,
    "api_key_disabled": False,
}
