"""Runs pytest on gevent or eventlet: under_greenlets.py gevent|eventlet [arguments for pytest].

Everything is patched before the tests, or what they test, are imported. Left out are tests that need real threads, that
fork, and that only repeat what the run on threads has shown: slowly, or in a child process, which nobody patches.
"""

from __future__ import annotations

import sys

LEFT_OUT = "not threads and not forks and not slow and not timing"


def main(library: str, *arguments: str) -> int:
    if library == "gevent":
        import gevent.monkey

        gevent.monkey.patch_all()
    elif library == "eventlet":
        import warnings

        warnings.filterwarnings("ignore", "(?s).*Eventlet is deprecated")
        import eventlet

        eventlet.monkey_patch()
    else:
        raise SystemExit(f"gevent or eventlet, not {library!r}")
    import pytest

    print(f"on {library}:", flush=True)
    return int(pytest.main(["-m", LEFT_OUT, *arguments]))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    sys.exit(main(*sys.argv[1:]))
