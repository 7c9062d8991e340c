"""Packages that another thread is in the middle of importing: our threads must not import them as well.

Python, asked by two threads for parts of one package, gives one of them half a module rather than have them wait for
each other without end. So a green package that is imported while pools work is broken for whoever imports it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.broker.common import PATIENCE

#: A package that stops half-way, until it is told to go on; then it uses a part of its own.
PACKAGE = {
    "eventlet": (
        "patcher",
        "def original(name): raise AssertionError(name)\ndef is_monkey_patched(name): return False\n",
    ),
    "gevent": (
        "monkey",
        "def get_original(*names): raise AssertionError(names)\ndef is_module_patched(name): return False\n",
    ),
}

CHILD = """
import builtins, sys, threading

builtins.half_way, builtins.go_on = threading.Event(), threading.Event()
import kombu
from kombu_pools_ext import pools
from kombu_pools_ext.engine import PoolOptions
from kombu_pools_ext.engine.shutdown import others_run

package, url, part = sys.argv[1:]
failed = []

def import_it():
    try:
        __import__(package)
    except BaseException as error:
        failed.append(error)

# Somebody has used a pool by now, so kombu has loaded its transport.
options = PoolOptions(check_after=0.0)
before = pools.ConnectionPool(kombu.Connection(url, heartbeat=1), limit=2, options=options)
before.acquire(timeout=5).release()
importer = threading.Thread(target=import_it, daemon=True)
importer.start()
half_way.wait()
held = [before.acquire(timeout=5) for _ in range(2)]
before.drain()
assert others_run()
for one in held:
    one.release()
before.acquire(timeout=5).release()
before.force_close_all()
assert package + "." + part not in sys.modules, "a thread of ours, or a caller's, has imported it"
go_on.set()
importer.join()
assert not failed, failed
print("imported")
"""


@pytest.fixture
def half_imported(tmp_path: Path) -> Path:
    """A folder with both packages."""
    for package, (part, words) in PACKAGE.items():
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").write_text(
            textwrap.dedent(f"""
            import builtins
            builtins.half_way.set()
            builtins.go_on.wait()
            from {package} import {part}
            """)
        )
        (folder / f"{part}.py").write_text(words)
    return tmp_path


@pytest.mark.threads
@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGE)
@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param("amqp", marks=pytest.mark.broker),
        pytest.param("redis", marks=pytest.mark.redis),
    ],
)
def test_a_green_package_is_imported_while_pools_work(
    request: pytest.FixtureRequest, half_imported: Path, package: str, scheme: str
) -> None:
    url = request.getfixturevalue(f"{scheme}_url")
    path = os.pathsep.join([str(half_imported), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, package, url, PACKAGE[package][0]],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "imported\n"), done.stderr
