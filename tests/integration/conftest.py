"""What the tests of servers share."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import PrivateRabbitMQ
from tests.conftest import _private
from tests.integration.steering import Steering, steering
from tests.wanted import without


@pytest.fixture(scope="session")
def node() -> Iterator[PrivateRabbitMQ]:
    """A RabbitMQ node whose log tells of these tests alone."""
    yield from _private(PrivateRabbitMQ, "RabbitMQ")


@pytest.fixture
def queue() -> str:
    """The name of a queue that nobody else uses."""
    return f"served-{uuid.uuid4().hex}"


@pytest.fixture
def directory() -> Iterator[Path]:
    """For sockets, whose paths must be short: those of pytest's folders are not."""
    with tempfile.TemporaryDirectory(prefix="kp-") as folder:
        yield Path(folder)


@pytest.fixture
def steered(directory: Path) -> Steering:
    """Somebody who steers what listens there."""
    return steering(directory)


@pytest.fixture(scope="session")
def uwsgi() -> list[str]:
    """The program of the environment that the tests run in, and what it has to be told."""
    found = shutil.which("uwsgi", path=str(Path(sys.executable).parent))
    if found is None:
        without("uWSGI", "pip has no wheel of pyuwsgi for this system, and uwsgi was not built")
    # What it starts anew on a reload; as a module of Python's it would take the Python outside the environment.
    own = importlib.util.find_spec("pyuwsgi") is None
    return [found, *([] if own else ["--binary-path", sys.executable])]
