from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.ranks import RankPool
from tests.distributed.runs import make_project


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, tokenizer and pairs to train runs on; each test gives its runs names of their own."""
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project
