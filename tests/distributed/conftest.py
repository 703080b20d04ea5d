"""Clusters of one, two and three processes, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from cluster import Cluster


@pytest.fixture(scope="session")
def cluster_of() -> Iterator[Callable[[int], Cluster]]:
    """Return the cluster of so many processes."""
    clusters = {world: Cluster(world) for world in (1, 2, 3)}
    yield clusters.__getitem__
    for cluster in clusters.values():
        cluster.stop()


@pytest.fixture
def pair(cluster_of: Callable[[int], Cluster]) -> Cluster:
    """Return two processes."""
    return cluster_of(2)
