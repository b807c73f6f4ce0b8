"""On a machine with at most two CPUs and no GPU, vLLM uses one of them (decision 0007)."""

import os
from pathlib import Path

import pytest
from harness.proxy.shared import Real
from harness.worker.real_vllm import START_SECONDS, cpus_of, engine_of

from worker_vllm.engine.vllm import FEW_CPUS

pytestmark = pytest.mark.timeout(START_SECONDS)


def test_the_engine_uses_one_of_few_cpus(real: Real) -> None:
    cpus = os.sched_getaffinity(0)
    has_gpu = Path("/dev/nvidiactl").exists()
    is_pinned = not has_gpu and len(cpus) <= FEW_CPUS
    for worker in real.workers:
        assert cpus_of(engine_of(worker.process.pid)) == ({min(cpus)} if is_pinned else cpus)
