"""The API's small resources: models with their prices, and the key that asks."""

from collections.abc import Mapping
from typing import Final

from turnline.ops.simulator.model.error_bodies import KEY_ID, TEAM_ID
from turnline.ops.simulator.model.models import Catalogue, Model

_CREATED: Final = 1_750_000_000


def model_list(models: Catalogue) -> Mapping[str, object]:
    """Body of `GET /v1/models`."""
    return {"data": [model(found) for found in models.models.values()], "object": "list"}


def model(found: Model) -> Mapping[str, object]:
    """One model, as `GET /v1/models/{id}` has it."""
    return {"id": found.name, "created": _CREATED, "object": "model", "owned_by": "xai"}


def language_model_list(models: Catalogue) -> Mapping[str, object]:
    """Body of `GET /v1/language-models`."""
    return {"models": [_language_model(models, found) for found in models.models.values()]}


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
        "completion_text_token_price": found.output_ticks,
        "aliases": models.aliases(found.name),
    }


def api_key() -> Mapping[str, object]:
    """Body of `GET /v1/api-key`."""
    return {
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
