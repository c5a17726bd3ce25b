"""What can go wrong with a deployment, beside what goes wrong with one server of it.

DeploymentError        it cannot be used in this way: the text says why
└── NotSettled         it did not get there in time: the text says what is missing

A server that does not start raises an error of `turnline.ops.embedded.errors`. A server that is
away, or refuses a command, raises the error of redis-py.
"""


class DeploymentError(Exception):
    """The deployment cannot do what was asked of it."""


class NotSettled(DeploymentError):
    """The deployment did not come to rest, or did not carry out an order, in time."""
