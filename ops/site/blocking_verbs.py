"""Extension of griffe: shows the verbs of `SyncTurnClient` as those of `TurnClient`.

They are made from those when the module is imported. Griffe reads the source alone, which has
`submit = _returning(TurnClient.submit)`.
"""

import re
from typing import Any

import griffe

_MADE = re.compile(r"_(?:returning|yielding)\(TurnClient\.(\w+)\)")


class BlockingVerbs(griffe.Extension):
    """Puts functions in the place of what is made from the verbs of `TurnClient`."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Look for them once everything is read."""
        if pkg.name != "turnline":
            return
        client = pkg["contracts.client.TurnClient"]
        blocking = pkg["contracts.blocking_client.SyncTurnClient"]
        verbs = {
            name: made[1]
            for name, member in blocking.members.items()
            if (made := _MADE.fullmatch(str(getattr(member, "value", ""))))
        }
        if not verbs:
            raise LookupError("SyncTurnClient has no verbs that are made as this file expects")
        for name, verb in verbs.items():
            blocking.set_member(name, _blocking(client.all_members[verb], blocking.members[name]))


def _blocking(verb: Any, made: griffe.Object) -> griffe.Function:
    """Return a verb as it is without an event loop."""
    returns = re.sub(
        r"AsyncGenerator\[(.*), None\]", r"Generator[\1, None, None]", str(verb.returns)
    )
    found = griffe.Function(
        verb.name,
        parameters=verb.parameters,
        returns=returns,
        lineno=made.lineno,
        endlineno=made.endlineno,
        parent=made.parent,
    )
    found.docstring = verb.docstring
    return found
