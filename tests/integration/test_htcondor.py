"""HTCondor for real: the contract of every adapter against pools in their own namespaces, by each way to reach them."""

from __future__ import annotations

from typing import Any

import pytest

from bpsd.testing.contract import AdapterContract, Bed, ExecutionContract
from bpsd_adapters.htcondor.service import HTCondorService
from tests.integration.condorbed import FIRST_SCHEDD, SECOND_SCHEDD, CondorBed
from tests.integration.together import Outcomes, Rows

pytestmark = pytest.mark.timeout(1200)  # of the rows together: each waits until its runs are over


class Contract(AdapterContract, ExecutionContract):
    """All of it."""


class Pools:
    """Both pools. Their schedds have the same names."""

    def __init__(self, pool: CondorBed, twin: CondorBed) -> None:
        self.pool = pool
        self.twin = twin

    def settings(self, way: str, bed: CondorBed, folder: Any) -> dict[str, Any]:
        """Of a backend that reaches a pool in that way."""
        if way == "inside":
            return bed.inside(folder)
        if way == "second schedd":
            return bed.settings(schedd=SECOND_SCHEDD, schedds=[FIRST_SCHEDD])
        return bed.settings()


WAYS = ("over ssh", "inside", "second schedd", "twin pool")


def rows() -> Rows:
    """The tests of the contract, once for each way."""
    rows = Rows()
    for name in [name for name in dir(Contract) if name.startswith("test_")]:
        for way in WAYS:
            rows.add(f"{way}-{name}", in_way(way, name))
    return rows


def in_way(way: str, name: str) -> Any:
    async def row(pools: Pools) -> None:
        pool = pools.twin if way == "twin pool" else pools.pool
        folder = pool.folder()
        try:
            bed = Bed(HTCondorService, pools.settings(way, pool, folder), folder, patience_s=480.0)
            await getattr(Contract(), name)(bed)
        finally:
            pool.remove([folder])

    return row


ROWS = rows()


@pytest.fixture(scope="module")
def outcomes(pool: CondorBed, twin: CondorBed) -> Outcomes:
    return ROWS.run(Pools(pool, twin), at_once=12, pause_s=1.0)


@pytest.mark.parametrize("name", ROWS.names)
def test_the_contract(outcomes: Outcomes, name: str) -> None:
    outcomes.check(name)
