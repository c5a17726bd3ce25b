"""The deployments that most of these tests use, one of each for a file of tests."""

from collections.abc import Iterator

import pytest

from turnline.ops.deployments import Cluster, Sentinels


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three primaries, three replicas."""
    with Cluster() as deployment:
        yield deployment


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    """A primary, two replicas, three sentinels."""
    with Sentinels() as deployment:
        yield deployment
