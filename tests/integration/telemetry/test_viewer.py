"""`turnline traces up`, with a small program in the viewer's place."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from ops.cli.failures import Failed
from ops.cli.traces import Viewer, default_directory, program, settings
from tests.support.recordings import REPOSITORY
from tests.support.wait import wait_until_sync

FAKE = """#!{python}
import http.server, sys
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(repr(given).encode())
http.server.HTTPServer((given["--host"], int(given["--port"])), Answers).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory in which the viewer is installed already."""
    path = program(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(FAKE.format(python=sys.executable))
    path.chmod(0o755)
    return tmp_path


def test_the_viewer_listens_on_loopback_and_ends_with_the_block(installed: Path) -> None:
    """It keeps its traces in its directory, and nobody else can reach it."""
    port = free_port()

    with Viewer(installed, port) as viewer, urllib.request.urlopen(viewer.url) as answer:
        given = answer.read().decode()
    assert "'--host': '127.0.0.1'" in given
    assert str(installed / "traces.db") in given
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_the_command_says_how_to_point_workers_at_it(installed: Path) -> None:
    """Two lines for a shell, and the page; Ctrl-C ends it quietly."""
    port = free_port()
    arguments = ["traces", "up", "--port", str(port), "--directory", str(installed)]
    code = "from ops.cli.traces import traces; traces(prog_name='turnline')"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments[1:]],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    lines = [process.stdout.readline().strip() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    process.stdout.close()

    assert process.wait(15) == 0
    assert lines[:2] == [f"export {name}={value}" for name, value in settings(port).items()]
    assert f"http://127.0.0.1:{port}/" in lines[2]
    with socket.socket() as probe:
        wait_until_sync(lambda: probe.connect_ex(("127.0.0.1", port)) != 0, "it is gone")


def test_a_viewer_that_ends_is_told(installed: Path) -> None:
    """With the name of its log."""
    program(installed).write_text("#!/bin/sh\nexit 3\n")

    with pytest.raises(Failed, match=r"viewer\.log"), Viewer(installed, free_port()):
        raise AssertionError("it did not start")


def test_it_is_installed_in_the_cache() -> None:
    """Of the user, by version, so that an upgrade is a new environment."""
    assert default_directory({"XDG_CACHE_HOME": "/c"}).parts[:3] == ("/", "c", "turnline")
