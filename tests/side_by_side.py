"""How `pytest -n` spreads tests over its processes: the rooms that take longest first, each in one process; then files.

tests/slurm mostly waits for its one cluster, tests/distributed has one pool of ranks that takes every core.
"""

import pytest
from xdist.scheduler import LoadScopeScheduling

LONGEST_FIRST = ("tests/slurm/", "tests/distributed/", "tests/extension/", "tests/faults/", "tests/browser/")
ONE_PROCESS = ("tests/slurm/", "tests/distributed/")


class RoomsThenFiles(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        """The unit of work that a test belongs to."""
        return next((room for room in ONE_PROCESS if nodeid.startswith(room)), nodeid.split("::", 1)[0])


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> RoomsThenFiles:
    config.option.loadscopereorder = False  # by length, not by number of tests
    return RoomsThenFiles(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: rank_of(item.nodeid))


def rank_of(nodeid: str) -> int:
    """The place of a test's room among the longest."""
    return next((i for i, room in enumerate(LONGEST_FIRST) if nodeid.startswith(room)), len(LONGEST_FIRST))
