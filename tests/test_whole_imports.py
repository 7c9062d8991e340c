"""A fork waits for an import of ours that another thread is at."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kombu_pools_ext import whole_imports
from kombu_pools_ext.whole_imports import import_whole

pytestmark = [pytest.mark.threads, pytest.mark.forks]

#: The name of a module whose import lasts as long as the test wants.
SLOW = "imported_slowly"
#: Seconds.
PATIENCE = 30.0


class Slow:
    """What the module tells the test, and waits for."""

    began = threading.Event()
    goes_on = threading.Event()


@contextmanager
def being_imported(folder: Path) -> Iterator[None]:
    """Within, another thread is in the middle of the import; at the end it goes on."""
    (folder / f"{SLOW}.py").write_text(
        f"from {__name__} import PATIENCE, Slow\n"
        "Slow.began.set()\nassert Slow.goes_on.wait(PATIENCE)\nWHOLE = True\n"
    )
    thread = threading.Thread(target=import_whole, args=(SLOW,))
    thread.start()
    try:
        assert Slow.began.wait(PATIENCE)
        yield
    finally:
        Slow.goes_on.set()
        thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    Slow.began.clear()
    Slow.goes_on.clear()
    yield tmp_path
    sys.modules.pop(SLOW, None)
    whole_imports._imported.discard(SLOW)


def exit_code_of_child(imported: str) -> int:
    """The exit code of a forked child that imports a module too."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            # What another thread was importing could never be imported.
            signal.alarm(10)
            import_whole(imported)
            code = 0 if imported != SLOW or sys.modules[SLOW].WHOLE else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_has_the_whole_module(folder: Path) -> None:
    with being_imported(folder):
        timer = threading.Timer(0.2, Slow.goes_on.set)
        timer.start()
        assert exit_code_of_child(SLOW) == 0
        timer.join()
    assert whole_imports._forking == []


def test_a_fork_does_not_wait_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_imports, "FORK_WAITS", 0.05)
    with being_imported(folder):
        assert exit_code_of_child("colorsys") == 0
        assert not Slow.goes_on.is_set()
    assert sys.modules[SLOW].WHOLE
    assert whole_imports._forking == []


def test_an_import_may_fork(folder: Path) -> None:
    """As a signal handler in the middle of one does; the child goes on with it."""
    (folder / f"{SLOW}.py").write_text("import os\nCHILD = os.fork()\nWHOLE = True\n")
    import_whole(SLOW)
    child: int = sys.modules[SLOW].CHILD
    if not child:
        os._exit(0 if sys.modules[SLOW].WHOLE else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_is_not_there_is_an_error_each_time() -> None:
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            import_whole("no_such_module")
