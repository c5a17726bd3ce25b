"""Where HTTP is answered, as an operator writes it."""

import pytest

from turnline.worker.http_places import BadPlace, Place, read_place
from turnline.worker.settings import SettingsError, from_env


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("9464", Place("127.0.0.1", 9464)),
        ("127.0.0.1:9464", Place("127.0.0.1", 9464)),
        ("0.0.0.0:80", Place("0.0.0.0", 80)),
        ("worker-1.internal:80", Place("worker-1.internal", 80)),
        ("[::1]:9464", Place("::1", 9464)),
        ("localhost:0", Place("localhost", 0)),
        ("unix:/run/turnline/w.sock", Place(path="/run/turnline/w.sock")),
    ],
)
def test_a_place_is_read(text: str, place: Place) -> None:
    """A port alone is one of the loopback address; it is written back as it is read."""
    assert read_place(text) == place
    assert read_place(str(place)) == place


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (":9464", "0.0.0.0 for all networks"),
        ("localhost", "expected HOST:PORT"),
        ("http://localhost:80", "the host is"),
        ("::1:9464", "in brackets"),
        ("h:65536", "at most 65535"),
        ("99999", "at most 65535"),
        ("unix:w.sock", "a whole path"),
        ("unix:/" + "x" * 100, "a whole path"),
        ("h:80\n", "expected HOST:PORT"),
        ("h:٨٠", "expected HOST:PORT"),
    ],
)
def test_what_is_no_place_is_refused(text: str, says: str) -> None:
    """With what belongs there."""
    with pytest.raises(BadPlace, match=says):
        read_place(text)


def test_everywhere_is_asked_at_the_loopback_address() -> None:
    """Nobody can connect to 0.0.0.0 everywhere."""
    assert read_place("0.0.0.0:1").to_ask == Place("127.0.0.1", 1)
    assert read_place("[::]:1").to_ask == Place("::1", 1)
    assert read_place("h:1").to_ask == Place("h", 1)


def test_the_setting_is_checked_before_anything_starts() -> None:
    """And the name that it had says what it is now."""
    assert from_env({"TURNLINE_HTTP": "9464"}).http == "9464"
    with pytest.raises(SettingsError, match="TURNLINE_HTTP: expected HOST:PORT"):
        from_env({"TURNLINE_HTTP": "localhost"})
    with pytest.raises(SettingsError, match=r"write TURNLINE_HTTP=127\.0\.0\.1:PORT"):
        from_env({"TURNLINE_METRICS_PORT": "9464"})
