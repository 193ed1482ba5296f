"""HTCondor for real: the contract of every adapter, over SSH from outside, against a pool in its own namespaces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bpsd.testing.contract import AdapterContract, Bed, ExecutionContract
from bpsd_adapters.htcondor.service import HTCondorService
from tests.integration.condorbed import CondorBed

pytestmark = pytest.mark.timeout(300)


class TestOverSsh(AdapterContract, ExecutionContract):
    @pytest.fixture
    def bed(self, pool: CondorBed) -> Iterator[Bed]:
        folder = pool.folder()
        yield Bed(HTCondorService, pool.settings(), folder, patience_s=120.0)
        pool.remove([folder])
