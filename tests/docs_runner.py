"""Runs the examples of one page, each as a script of its own, in a forked child: `python docs_runner.py PAGE`.

Prints a line for each that failed, and leaves with their number. Brokers are replaced by the one in memory, so that
the examples can show URLs that readers have.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path

# Imported once, not in every child.
import django
import flask
import kombu

import kombu_pools_ext

PRELOADED = (django, flask, kombu, kombu_pools_ext)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BROKERS = re.compile(r"(?:amqps?|rediss?)://[^\"'\s]*")


def examples(page: Path) -> list[tuple[int, str]]:
    """The line and the code of each example on *page*."""
    text = page.read_text()
    return [
        (text.count("\n", 0, found.start()) + 2, found.group(1)) for found in BLOCK.finditer(text)
    ]


def run(page: Path, line: int, code: str) -> int:
    """Run one example in a child; its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        # The line numbers of the page, for the traceback.
        source = "\n" * (line - 1) + BROKERS.sub("memory://", code)
        exec(compile(source, str(page), "exec"), {"__name__": "__main__"})
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> int:
    page = Path(sys.argv[1])
    failed = [line for line, code in examples(page) if run(page, line, code)]
    for line in failed:
        print(f"{page.name}:{line}: this example failed", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
