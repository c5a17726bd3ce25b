"""Settings: the environment and its files; what is refused, by name and without secrets."""

import math
import os
from pathlib import Path

import pytest

from turnline.worker.settings import FROM_FILES, Settings, SettingsError, from_env
from turnline.worker.settings_help import described

SECRET = "xai-s3cret"
VARIABLES = [name for name, _, _ in described()]


@pytest.mark.parametrize("value", ["", " ", "\t\n"])
@pytest.mark.parametrize("name", VARIABLES)
def test_an_empty_variable_is_an_unset_one(name: str, value: str) -> None:
    """As compose files and shells write them: each setting keeps its default."""
    settings = from_env({name: value, "TURNLINE_WORKER_NAME": "" if "NAME" in name else "w"})

    for field in Settings.__struct_fields__:
        if field != "worker_name":
            assert getattr(settings, field) == getattr(from_env({}), field)
    assert settings.base_url == "https://api.x.ai/v1"


def services(name: str) -> dict[str, str]:
    """What Kubernetes puts into every container of a namespace that has such a service."""
    up = name.upper().replace("-", "_")
    return {
        f"{up}_SERVICE_HOST": "10.0.0.7",
        f"{up}_SERVICE_PORT": "6379",
        f"{up}_SERVICE_PORT_HTTP": "6379",
        f"{up}_PORT": "tcp://10.0.0.7:6379",
        f"{up}_PORT_6379_TCP": "tcp://10.0.0.7:6379",
        f"{up}_PORT_6379_TCP_PROTO": "tcp",
        f"{up}_PORT_6379_TCP_PORT": "6379",
        f"{up}_PORT_6379_TCP_ADDR": "10.0.0.7",
        f"{up}_PORT_53_UDP": "udp://10.0.0.7:53",
    }


@pytest.mark.parametrize(
    "service",
    [
        "turnline",
        "turnline-redis",
        "turnline-http",
        "turnline-worker",
        "turnline-2-web",
        "turnlines",
    ],
)
def test_variables_of_services_are_left_alone(service: str) -> None:
    """Also those that are called like a setting: TURNLINE_HTTP_PORT is no address."""
    links = {"TURNLINE_REDIS_NAME": "/worker/turnline_redis", "TURNLINE_REDIS_ENV_HOME": "/root"}
    settings = from_env({**services(service), **links, "TURNLINE_WORKER_NAME": "w"})

    assert settings == from_env({"TURNLINE_WORKER_NAME": "w"})


def test_a_docker_link_named_as_a_setting_is_no_setting() -> None:
    """A container linked as `turnline_worker` is not this worker's name."""
    assert "/" not in from_env({"TURNLINE_WORKER_NAME": "/web/turnline_worker"}).worker_name


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("TURNLINE_SLOT", "TURNLINE_SLOTS"),
        ("TURNLINE_UNREADYS", "TURNLINE_UNREADY_S"),
        ("TURNLINE_REDIS", "TURNLINE_REDIS_URL"),
        ("TURNLINE_REDISURL", "TURNLINE_REDIS_URL"),
        ("TURNLINE_slots", "TURNLINE_SLOTS"),
        ("TURNLINE_API_KEY", "XAI_API_KEY"),
        ("TURNLINE_REDIS_URL_FIL", "TURNLINE_REDIS_URL_FILE"),
        ("TURNLINE_BASEURL", "TURNLINE_BASE_URL"),
    ],
)
def test_a_typo_is_refused_with_the_nearest_name(name: str, near: str) -> None:
    """Whatever else is ignored."""
    with pytest.raises(SettingsError) as error:
        from_env({name: "1", **services("turnline")})

    assert str(error.value).startswith(f"{name} is not a setting; did you mean {near}?")


@pytest.mark.parametrize("value", ["9100", "x"])
def test_only_what_is_injected_is_ignored(value: str) -> None:
    """A name that services have, with a value that they do not have, is a typo."""
    with pytest.raises(SettingsError, match="TURNLINE_PORT is not a setting"):
        from_env({"TURNLINE_PORT": value})


@pytest.mark.parametrize("name", FROM_FILES)
def test_what_may_be_secret_can_stand_in_a_file(name: str, tmp_path: Path) -> None:
    """The line's end, spaces around and a byte order mark are no part of it."""
    value = {
        "XAI_API_KEY": SECRET,
        "TURNLINE_REDIS_URL": "redis://:p@h",
        "TURNLINE_BASE_URL": "http://h/v1",
    }[name]
    path = tmp_path / "secret"
    path.write_bytes(b"\xef\xbb\xbf " + value.encode() + b" \r\n")

    assert from_env({f"{name}_FILE": str(path), "TURNLINE_WORKER_NAME": "w"}) == from_env(
        {name: value, "TURNLINE_WORKER_NAME": "w"}
    )
    with pytest.raises(SettingsError, match=f"{name} and {name}_FILE are both set"):
        from_env({name: value, f"{name}_FILE": str(path)})
    assert from_env({name: " ", f"{name}_FILE": str(path)})
    assert from_env({name: value, f"{name}_FILE": ""})


def test_a_file_of_a_secret_is_refused_without_its_words(tmp_path: Path) -> None:
    """Missing, empty, several lines; and where the secret itself stands in place of the path."""
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "lines").write_text(f"{SECRET}\n{SECRET}\n")
    (tmp_path / "binary").write_bytes(SECRET.encode() + b"\xff\x00")
    (tmp_path / "control").write_bytes(SECRET.encode() + b"\x1b[2J")
    for path in ("missing", "empty", "lines", "binary", "control", ".", SECRET):
        with pytest.raises(SettingsError, match="XAI_API_KEY") as error:
            from_env({"XAI_API_KEY_FILE": str(tmp_path / path)})
        assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "key",
    ["xai-schl\u00fcssel", "xai-a\nb", "xai-a b", "xai-a\x00", "xai-\u201cx\u201d", "xai-\x7f"],
)
def test_a_key_that_no_header_carries_is_refused(key: str) -> None:
    """By the variable's name, never its value."""
    with pytest.raises(SettingsError, match="XAI_API_KEY holds") as error:
        from_env({"XAI_API_KEY": key})

    assert "xai" not in str(error.value)


@pytest.mark.parametrize("field", Settings.__struct_fields__)
@pytest.mark.parametrize(
    "value", ["inf", "-inf", "nan", "1e400", "1e300", "-1", "9" * 400, "1e-300"]
)
def test_numbers_have_bounds(field: str, value: str) -> None:
    """Nothing infinite, no number that another part turns into nothing or too much of memory."""
    if not isinstance(getattr(from_env({}), field), int | float) or field == "check_model":
        return
    name = f"TURNLINE_{field.upper()}"
    try:
        number = getattr(from_env({name: value}), field)
    except SettingsError as error:
        refusal, number = str(error), 1
    else:
        refusal = name
    assert refusal.startswith("TURNLINE_")
    assert len(refusal) < 200
    assert math.isfinite(number)
    assert 0 <= number < 1e9


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"TURNLINE_HEARTBEAT_S": "1"}, "TURNLINE_HEARTBEAT_S: at most a third"),
        ({"TURNLINE_STALL_S": "0.1"}, "TURNLINE_STALL_S: more than TURNLINE_HEARTBEAT_S"),
        ({"TURNLINE_SERVE_SHARDS": "1"}, "TURNLINE_SERVE_SHARDS"),
        ({"TURNLINE_SERVE_SHARDS": "0,,1"}, "TURNLINE_SERVE_SHARDS"),
        ({"TURNLINE_SERVE_SHARDS": "9" * 5_000}, "TURNLINE_SERVE_SHARDS"),
        ({"TURNLINE_WORKER_NAME": "my worker"}, "TURNLINE_WORKER_NAME: Expected 1 to 200 visible"),
        ({"TURNLINE_WORKER_NAME": "w\x1b[31m"}, "TURNLINE_WORKER_NAME"),
        ({"TURNLINE_MODEL": "grok\x07"}, "TURNLINE_MODEL"),
        ({"TURNLINE_REDIS_URL": "redis://h:notaport"}, "TURNLINE_REDIS_URL: the port"),
    ],
)
def test_contradictions_and_impossible_values_are_refused(
    environ: dict[str, str], words: str
) -> None:
    """At the start, by the variable's name."""
    with pytest.raises(SettingsError) as error:
        from_env(environ)

    assert str(error.value).startswith(words)


SEVERAL = "http://a,http://b"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"XAI_API_KEY": "k1,k2,k1"}, "XAI_API_KEY: keys 1 and 3 are the same: remove one of them"),
        (
            {"XAI_API_KEY": "k1,k2", "TURNLINE_BASE_URL": f"{SEVERAL},http://c"},
            (
                "XAI_API_KEY and TURNLINE_BASE_URL: 2 keys and 3 addresses: set one of either, "
                "or as many of both"
            ),
        ),
        (
            {"TURNLINE_BASE_URL": SEVERAL},
            (
                "XAI_API_KEY is not set, and TURNLINE_BASE_URL has 2 addresses: set one key "
                "for all, or one for each"
            ),
        ),
        (
            {"XAI_API_KEY": "k1,,k2"},
            "XAI_API_KEY: key 2 of 3 is missing: write it between the commas, or remove a comma",
        ),
        (
            {"XAI_API_KEY": "k1,"},
            "XAI_API_KEY: key 2 of 2 is missing: write it behind the comma, or remove the comma",
        ),
        ({"XAI_API_KEY": ",k1"}, "XAI_API_KEY: key 1 of 2 is missing: write it before the comma"),
        (
            {"XAI_API_KEY": ",".join(f"k{n}" for n in range(65))},
            "XAI_API_KEY: 65 keys, and 64 is the most: remove 1",
        ),
        (
            {"XAI_API_KEY": "k1, k2"},
            (
                "XAI_API_KEY holds a space, or a character that is not visible ASCII: it is no "
                "key; several are separated by commas alone"
            ),
        ),
        (
            {"TURNLINE_BASE_URL": "http://a,b"},
            "TURNLINE_BASE_URL: address 2 of 2: it begins with https:// (or http://)",
        ),
        (
            {"TURNLINE_BASE_URL": "x,"},
            "TURNLINE_BASE_URL: address 2 of 2 is missing: write it behind the comma, or remove",
        ),
        (
            {"TURNLINE_BASE_URL": ",".join(f"http://a{n}" for n in range(66))},
            "TURNLINE_BASE_URL: 66 addresses, and 64 is the most: remove 2",
        ),
        *(
            (
                {"XAI_API_KEY": "k1", "TURNLINE_BASE_URL": f"http://a/v1,http://b,{other}"},
                "TURNLINE_BASE_URL: addresses 1 and 3 are the same: remove one of them",
            )
            for other in ("http://a/v1", "http://a/v1/", "http://A/v1", "HTTP://a:80/v1//")
        ),
        (
            {"XAI_API_KEY": "k1,k1", "TURNLINE_BASE_URL": "http://a,http://a/"},
            "XAI_API_KEY and TURNLINE_BASE_URL: pairs 1 and 2 are the same: remove one of them",
        ),
        (
            {"TURNLINE_MODEL": "grok-4.7,"},
            "TURNLINE_MODEL: name 2 of 2 is missing: write it behind the comma, or remove the",
        ),
        (
            {"TURNLINE_MODEL": "grok-4.7,grok-4.3,grok-4.7"},
            "TURNLINE_MODEL: names 1 and 3 are the same: remove one of them",
        ),
        (
            {"TURNLINE_MODEL": "grok-4.7, grok-4.3"},
            (
                "TURNLINE_MODEL: name 2 of 2 holds a space, or a character that is not visible "
                "ASCII: names are separated by commas alone"
            ),
        ),
        ({"TURNLINE_MODEL": "my grok"}, "TURNLINE_MODEL: it holds a space, or a character that"),
        (
            {"TURNLINE_MODEL": ",".join(f"grok-{n}" for n in range(500))},
            "TURNLINE_MODEL: 500 names, and 64 is the most: remove 436",
        ),
        ({"TURNLINE_MODEL": "g" * 201}, "TURNLINE_MODEL: it has 201 characters, and 200 is the"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(environ: dict[str, str], words: str) -> None:
    """By the setting's name, with what to do; never a key, and nothing of a value."""
    with pytest.raises(SettingsError) as error:
        from_env(environ)

    assert str(error.value).startswith(words)
    assert len(str(error.value)) < 200
    for value in environ.values():
        assert not any(it and it in str(error.value) for it in value.split(",") if len(it) > 1)


def test_a_list_of_models_may_be_long() -> None:
    """Each name has its own length."""
    names = tuple(f"grok-{'x' * 100}-{n}" for n in range(64))

    assert from_env({"TURNLINE_MODEL": ",".join(names)}).models == names


@pytest.mark.parametrize(
    "url",
    [
        "api.x.ai/v1",
        "//api.x.ai/v1",
        "ftp://api.x.ai",
        "file:///etc/passwd",
        "https:api.x.ai",
        "https:///v1",
        "https://",
        "https://me:pw@api.x.ai/v1",
        "https://api.x.ai@elsewhere.example/v1",
        "https://api.x.ai\\@elsewhere.example/v1",
        "https://api.x.ai/v1?key=s3cret",
        "https://api.x.ai/v1?",
        "https://api.x.ai/v1#s3cret",
        "https://api.x.ai:0/v1",
        "https://api.x.ai:65536/v1",
        "https://api.x.ai:https/v1",
        "https://api.x.ai /v1",
        "https://api.x.ai\t/v1",
        "https://api.x.ai\n.elsewhere.example/v1",
        "https://ap\u0131.x.ai/v1",
        "https://api%2ex.ai/v1",
        "https://api..ai/v1",
        "https://[::1/v1",
        "https://[x]/v1",
        "https://a,b/v1",
        "https://" + "a" * 3_000,
    ],
)
def test_an_address_that_can_be_read_in_two_ways_gets_no_key(url: str) -> None:
    """Refused by the variable's name; nothing of it is repeated, since it may hold a secret."""
    with pytest.raises(SettingsError) as error:
        from_env({"TURNLINE_BASE_URL": url})

    assert str(error.value).startswith("TURNLINE_BASE_URL: ")
    assert "s3cret" not in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "url",
    ["https://api.x.ai/v1", "http://127.0.0.1:8080/v1/", "https://[::1]:8/a/b", "HTTP://llm_proxy"],
)
def test_plain_addresses_are_taken(url: str) -> None:
    """As they are."""
    assert from_env({"TURNLINE_BASE_URL": url}).base_url == url


def test_settings_print_no_secret() -> None:
    """Neither key nor the password of Redis, wherever it stands."""
    for url in ("redis://:s3cret@h", "redis://h?password=s3cret"):
        settings = from_env({"XAI_API_KEY": SECRET, "TURNLINE_REDIS_URL": url})
        shown = f"{settings!r} {settings} {dict(settings.__rich_repr__())}"
        assert "s3cret" not in shown
        assert "redis_url='h:6379/0'" in shown


def test_a_hostname_of_any_letters_makes_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's name is what scripts and channels are called by."""
    monkeypatch.setattr("socket.gethostname", lambda: "meine b\u00fcchse")

    assert from_env({}).worker_name == f"meine_b_chse-{os.getpid()}"


@pytest.mark.parametrize("name", ["TURNLINE_LOG_LEVEL", "TURNLINE_LOG_FORMAT"])
def test_a_value_that_is_no_choice_is_not_repeated(name: str) -> None:
    """It may be what belongs into another variable."""
    with pytest.raises(SettingsError, match=f"{name}: Expected one of") as raised:
        from_env({name: "wombat"})

    assert "wombat" not in str(raised.value)


@pytest.mark.parametrize(
    ("keys", "urls", "pairs"),
    [
        ("a", "http://x", [("a", "http://x")]),
        ("a,b", "http://x", [("a", "http://x"), ("b", "http://x")]),
        ("a", "http://x,http://y", [("a", "http://x"), ("a", "http://y")]),
        ("a,b", "http://x,http://y", [("a", "http://x"), ("b", "http://y")]),
    ],
)
def test_keys_and_addresses_are_paired(keys: str, urls: str, pairs: list[tuple[str, str]]) -> None:
    """Several of one go with one of the other; as many of both go together."""
    settings = from_env({"XAI_API_KEY": keys, "TURNLINE_BASE_URL": urls})

    assert [(it.api_key.value, it.base_url) for it in settings.members] == pairs
