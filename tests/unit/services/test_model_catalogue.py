"""What is known of models: by the built-in table, and by what providers list."""

import json
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnline.worker.services.grok.model_catalogue import (
    BUILT_IN,
    Catalogue,
    Model,
    is_xai,
    read_list,
)
from turnline.worker.settings import Settings

THE_DAY = date(2026, 11, 19)


def listed(*rows: Any, key: str = "models") -> tuple[Model, ...]:
    """The models of a list with these entries."""
    found = read_list(json.dumps({key: rows}).encode())
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("grok-4.3", "grok-4.3", True),
        ("grok-4", "grok-4.3", True),
        ("grok-4-1-fast-reasoning", "grok-4.3", True),
        ("grok-4-0709", "grok-3", True),
        ("grok-4.20", "grok-4.20-0309-reasoning", True),
        ("grok-4.20-0309-reasoning", "grok-4.20-0309-non-reasoning", False),
        ("grok-4.20", "grok-4.20-multi-agent", False),
        ("grok-4.7", "grok-4.7-20260921", True),
        ("grok-4.7-latest", "grok-4.7-2026-09-21", True),
        ("grok-4.7", "grok-4.6", False),
        ("grok-9", "grok-9-0101", True),
        ("grok-9", "grok-9-mini", False),
        ("grok-9", "grok-8", False),
        ("gpt-5", "gpt-5", True),
    ],
)
def test_names_of_the_same_model(one: str, other: str, same: bool) -> None:
    """Aliases, redirects and dates; another size or another number is another model."""
    assert BUILT_IN.is_same(one, other) is same
    assert BUILT_IN.is_same(other, one) is same


def test_each_name_of_the_table_leads_to_one_model() -> None:
    """No name is listed twice, and each leads to its model."""
    names = [name for model in BUILT_IN.models for name in (model.name, *model.aliases)]

    assert len(names) == len(set(names))
    for model in BUILT_IN.models:
        assert {BUILT_IN.find(name) for name in (model.name, *model.aliases)} == {model}
        assert model.default_effort is None or model.default_effort in (model.efforts or ())
        assert not model.replaced_by or BUILT_IN.find(model.replaced_by) is not None


def test_the_model_that_workers_use_unasked_is_served() -> None:
    """And nobody knows of an end of it."""
    model = BUILT_IN.find(Settings().model)

    assert model is not None
    assert model.retired_on is None


def test_a_model_is_retired_from_its_day_on() -> None:
    """Unless the provider lists it."""
    model = BUILT_IN.find("grok-code-fast-1")
    assert model is not None

    assert [model.is_retired(THE_DAY.replace(day=day)) for day in (18, 19, 20)] == [
        False,
        True,
        True,
    ]
    assert model.replaced_by == "grok-4.7"
    still = BUILT_IN.updated(listed({"id": "grok-build-0.1"})).find("grok-code-fast-1")
    assert still is not None
    assert not still.is_retired(THE_DAY)


def test_what_the_provider_says_wins() -> None:
    """Prices, length and names; the table fills the gaps, and gives up names to others."""
    found = BUILT_IN.updated(
        listed(
            {
                "id": "grok-4.3",
                "prompt_text_token_price": 10_000,
                "cached_prompt_text_token_price": 1_000,
                "completion_text_token_price": 25_000.5,
                "context_length": 2_000_000,
                "aliases": ["grok-latest", 7, ""],
            },
            {"id": "grok-4", "capabilities": {"reasoning_effort": ["low", "max"]}},
            {"id": "grok-9", "max_prompt_length": 9},
        )
    )

    assert [model.name for model in found.served] == ["grok-4.3", "grok-4", "grok-9"]
    known = found.find("grok-latest")
    assert known is not None
    assert known.name == "grok-4.3"
    assert (known.input_usd, known.cached_usd, known.output_usd) == (1.0, 0.1, 2.50005)
    assert (known.context_tokens, known.efforts) == (2_000_000, ("none", "low", "medium", "high"))
    assert not found.is_same("grok-4", "grok-4.3")
    assert found.is_same("grok-3", "grok-latest")
    assert found.nearest("grok-4-0101").efforts == ("low", "max")
    assert found.nearest("grok-9").context_tokens == 9
    assert found.find("grok-4.7") == BUILT_IN.find("grok-4.7")


def test_what_is_odd_in_an_entry_is_left_out() -> None:
    """The name counts, whatever stands beside it."""
    (model,) = listed(
        {
            "id": "m",
            "prompt_text_token_price": True,
            "cached_prompt_text_token_price": -1,
            "completion_text_token_price": 1e300,
            "context_length": "long",
            "aliases": "none",
            "capabilities": [],
        },
        None,
        {"id": "m", "context_length": 1},
        {"id": 3},
        key="data",
    )

    assert model == Model(name="m", from_provider=True)


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["models", "data", "id", "aliases", "capabilities", "context_length"]
                ),
                inner,
                max_size=4,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_answer_is_read_or_refused(body: bytes) -> None:
    """Never an error; what is read can be merged."""
    found = read_list(body)

    if found is not None:
        assert {model.name for model in BUILT_IN.updated(found).served} == {it.name for it in found}


def test_of_two_models_with_a_name_the_first_counts() -> None:
    """A name beats an alias."""
    one, other = Model(name="a", aliases=("b",)), Model(name="b", aliases=("a", "c"))

    found = Catalogue([one, other])

    assert [found.find(name) for name in "abc"] == [one, other, other]


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("https://api.x.ai/v1", True),
        ("https://us.api.x.ai/v1", True),
        ("https://API.X.AI", True),
        ("https://api.x.ai:443/v1", True),
        ("https://api.max.ai/v1", False),
        ("https://api-x.ai/v1", False),
        ("https://api.x.ai.example.com/v1", False),
        ("http://127.0.0.1:8000/v1", False),
    ],
)
def test_addresses_of_xai(url: str, own: bool) -> None:
    """Its own hosts only: elsewhere its table says nothing of what is served."""
    assert is_xai(url) is own
