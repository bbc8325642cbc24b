"""A user, a daemon, real trees."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import trees
from tests.support.cli import Punie


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Punie]:
    """One user for the module's tests; the first command starts the daemon."""
    punie = Punie(tmp_path_factory.mktemp("u"))
    yield punie
    punie.close()


@pytest.fixture(params=["process", "interpreter"])
def isolation(request: pytest.FixtureRequest) -> str:
    """Both isolation levels."""
    return request.param


@pytest.fixture(scope="session")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all trees."""
    folder = tmp_path_factory.mktemp("projects")
    trees.json_tree(folder)
    trees.asyncio_tree(folder)
    trees.third_party_tree(folder)
    return folder
