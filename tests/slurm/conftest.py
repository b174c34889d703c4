"""A real Slurm cluster of two nodes on this machine, for as long as the tests of this folder run."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

BED = Path(__file__).parent / "bed" / "cluster.sh"
_SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name, path=_SBIN) is None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)


class Cluster:
    """Clients of the cluster, and what its operator can do to it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def operate(self, *arguments: str) -> None:
        subprocess.run([BED, *arguments], env=self.environment, check=True, timeout=60)

    def job(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        command = ["scontrol", "--oneliner", "show", "job", job]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def wait_for(self, job: str, *states: str, seconds: float = 90) -> dict[str, str]:
        """The job's fields, once it is in one of these states."""
        return wait_until(lambda: (fields := self.job(job))["JobState"] in states and fields, seconds)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> object:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return answer


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if MISSING:
        reason = f"no Slurm here ({', '.join(MISSING)} missing): apt-get install slurm-wlm munge"
        if os.environ.get("MEGATRAIN_REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    bed = tmp_path_factory.mktemp("slurm") / "bed"
    port = 20_000 + os.getpid() % 1_000 * 10  # so that two test runs do not meet
    environment = {**os.environ, "BED": str(bed), "NODES": "2", "PORT": str(port), "PREFIX": f"bed{port}n"}
    subprocess.run([BED, "start"], env=environment, check=True, timeout=120, stdout=subprocess.DEVNULL)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(bed / "etc" / "slurm.conf")
    try:
        yield Cluster({**environment, "SLURM_CONF": os.environ["SLURM_CONF"]})
    finally:
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
        subprocess.run([BED, "stop"], env=environment, check=True, timeout=120)
