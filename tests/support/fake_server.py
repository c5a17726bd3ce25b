"""A Redis of Python objects behind a socket, for the quick tests of clients and scripts."""

import threading
from contextlib import ExitStack

from fakeredis import TcpFakeServer


def start_fake_server(exits: ExitStack) -> str:
    """Start one that ends with the exits; return its URL.

    fakeredis knows no MONITOR, no CONFIG RESETSTAT and no XINFO STREAM FULL: a test that asks for
    one of them is marked as `real_server`.
    """
    server = TcpFakeServer(("127.0.0.1", 0), server_type="redis", server_version=(7, 0))
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    serving.start()
    exits.callback(serving.join)
    exits.callback(server.server_close)
    exits.callback(server.shutdown)
    return f"redis://127.0.0.1:{server.server_address[1]}/0"
