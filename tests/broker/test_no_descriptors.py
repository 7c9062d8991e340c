"""No descriptor is free: an outage like any other, told by its name, and over when one is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.broker.common import PATIENCE

CHILD = """
import os, resource, sys

import kombu
from kombu_pools_ext import pools
from kombu_pools_ext.errors import BrokerUnreachable, ConnectTimeout

url, producers = sys.argv[1], sys.argv[2] == "producers"
connections = pools.ConnectionPool(kombu.Connection(url), limit=2)
pool = pools.ProducerPool(connections) if producers else connections
pool.acquire(timeout=10).release()
connections.drain()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
highest = max(int(name) for name in os.listdir("/dev/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 5, hard))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
for timeout, kind in ((None, BrokerUnreachable), (0.2, ConnectTimeout)):
    try:
        pool.acquire(timeout=timeout)
    except Exception as error:
        failed = error
    assert isinstance(failed, kind), repr(failed)
    assert "Too many open files" in str(failed), failed
for one in taken:
    os.close(one)
pool.acquire(timeout=10).release()
assert connections.stats().outage is None
connections.force_close_all()
print("again")
"""


@pytest.mark.slow
@pytest.mark.threads
@pytest.mark.parametrize("what", ["connections", "producers"])
@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param("amqp", marks=pytest.mark.broker),
        pytest.param("redis", marks=pytest.mark.redis),
    ],
)
def test_an_opening_without_a_descriptor(
    request: pytest.FixtureRequest, scheme: str, what: str
) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("how descriptors are counted is Linux's")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, request.getfixturevalue(f"{scheme}_url"), what],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "again\n"), done.stderr
