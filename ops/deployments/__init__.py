"""Real Redis and Valkey deployments on this machine, for drills and tests of what happens in them.

A cluster, a primary with replicas and sentinels, and a TCP proxy: processes on 127.0.0.1 with
directories of their own, which end with their starter, also when it is killed. All of it is for
synchronous code. Nothing here knows what Turnline keeps in them.
"""

from turnline.ops.deployments.cluster import Cluster, Role
from turnline.ops.deployments.errors import DeploymentError, NotSettled
from turnline.ops.deployments.node import Node
from turnline.ops.deployments.proxy import Proxy
from turnline.ops.deployments.sentinels import Sentinels

__all__ = ["Cluster", "DeploymentError", "Node", "NotSettled", "Proxy", "Role", "Sentinels"]
