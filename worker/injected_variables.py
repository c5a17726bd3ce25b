"""Variables that platforms put into containers, and whose names may look like settings."""

import re
from typing import Final

_INJECTED: Final = (
    (re.compile(r".*_SERVICE_HOST"), re.compile(r".*")),
    (re.compile(r".*_SERVICE_PORT(_[A-Z0-9_]+)?"), re.compile(r"\d*")),
    (re.compile(r".*_PORT"), re.compile(r"(tcp|udp|sctp)://.*")),
    (re.compile(r".*_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?"), re.compile(r".*")),
    (re.compile(r".*_NAME"), re.compile(r"(/[^/]+){2,}")),
    (re.compile(r".*_ENV_.+"), re.compile(r".*")),
)
"""(name, value) of what Kubernetes, and Docker's links, put into every container beside a service
called `turnline` or `turnline-<something>`; a setting may have such a name, but not such a value.

Source: https://kubernetes.io/docs/tutorials/services/connect-applications-service/
Source: https://docs.docker.com/engine/network/links/
"""


def is_injected(tail: str, value: str) -> bool:
    """Tell whether a platform set a variable, for a service whose name begins as ours.

    Args:
        tail: What stands behind the name of the service's first word, such as `_REDIS_PORT`.
        value: Of the variable.
    """
    return any(n.fullmatch(tail) and v.fullmatch(value) for n, v in _INJECTED)
