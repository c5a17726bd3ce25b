"""What each kind of party may do in Redis: the rules of its user, no more than its code calls."""

from typing import Final, Literal

from turnline.contracts.keys import shard_keys
from turnline.worker.starting.redis_rights import rights

Role = Literal["worker", "producer", "operator"]

_PRODUCER: Final = (
    "del eval evalsha get hdel hget hgetall hmget hset lpush lrange lrem ltrim pexpire "
    "publish rpush script|load set spublish ssubscribe sunsubscribe time wait xack xadd xautoclaim "
    "xdel xgroup|create xlen xrange xread xreadgroup xrevrange zadd zcard zcount zmscore "
    "zlexcount zpopmin zrange zrangebyscore zrem zscore"
)
_OPERATOR: Final = "dump exists lindex mget pttl restore scan"
"""Beside what producers call."""
_ANYBODY: Final = "cluster|slots ping role select"
"""To find the primary, to see whether it is there, and to reach a database other than 0."""


def commands(role: Role) -> frozenset[str]:
    """Return the commands that a party calls, in lower case; `a|b` is a subcommand."""
    match role:
        case "worker":
            called = {str(it.words[0]).lower() for it in rights(shard_keys(0))} | {"wait"}
        case "producer":
            called = {*_PRODUCER.split()}
        case "operator":
            called = {*_PRODUCER.split(), *_OPERATOR.split()}
    return frozenset(called | {*_ANYBODY.split()})


def rules(role: Role, prefix: str = "") -> str:
    """Return the rules of a user, as `ACL SETUSER` takes them behind its password.

    Args:
        role: What the user is for.
        prefix: The name of the only fleet that it may touch; "" is the one without a name.
    """
    tag = shard_keys(0, prefix).tag.replace("s0", "s[0-9]*")
    keys = f"resetkeys ~turnline:{tag}:* ~arq:job:{tag}:* ~arq:in-progress:{tag}:*"
    called = " ".join(f"+{it}" for it in sorted(commands(role)))
    return f"{keys} resetchannels &turnline:{tag}:* -@all {called}"
