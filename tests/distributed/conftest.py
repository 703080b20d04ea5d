"""Clusters of one, two and three processes, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep these tests in one of several pytest processes: each would start clusters of its own."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("cluster"))


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
