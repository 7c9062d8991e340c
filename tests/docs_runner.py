"""Runs the examples of one page, each as a script of its own, in a forked child: `python docs_runner.py PAGE BROKER`.

Prints a line for each that failed, and leaves with their number. BROKER is the URL of a RabbitMQ that ends with `/`: an
example's AMQP URLs are replaced by its virtual host :func:`vhost_of`, which is empty, as a reader's broker is. Redis
and TLS are replaced by the broker in memory. What an example defines and does not call itself is called as its reader
does: each view is asked once, and each test is run. Examples of Django's own tasks are left out before Django 6.0,
which has them. Where an example leaves a time-out at its default, it has more: :data:`UNHURRIED`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import os
import re
import subprocess
import sys
import traceback
import unittest
from pathlib import Path
from typing import Any

# Imported once, not in every child.
import django
import flask
import kombu

import kombu_pools_ext
from kombu_pools_ext.aliases import replace_settings
from kombu_pools_ext.settings import PoolSettings

PRELOADED = (django, flask, kombu, kombu_pools_ext)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: Seconds that an example has where it names no time of its own, because the machine may be busy with other tests. Two
#: of them are less than the lease of the outbox.
UNHURRIED = 25.0
#: The settings for which it has them.
TIMES = ("acquire_timeout", "connect_timeout", "confirm_timeout")
#: No masked ones, which an example expects to be shown.
REST = r"://(?![^\"'\s]*\*\*)[^\"'\s]*"
AMQP = re.compile(f"amqp{REST}")
OTHERS = re.compile(f"(?:amqps|rediss?){REST}")


def examples(page: Path) -> list[tuple[int, str]]:
    """The line and the code of each example on *page*."""
    text = page.read_text()
    return [
        (text.count("\n", 0, found.start()) + 2, found.group(1)) for found in BLOCK.finditer(text)
    ]


def vhost_of(page: Path, line: int) -> str:
    """The virtual host of the example that begins at *line*."""
    return f"{page.parent.name}-{page.stem}-{line}"


def is_for(code: str) -> bool:
    """Whether an example is for this Django: its own tasks came with 6.0."""
    return "from django.tasks" not in code or django.VERSION >= (6,)


def with_time(settings: dict[str, PoolSettings]) -> dict[str, PoolSettings]:
    """The same *settings*, with more time where they have the default."""
    defaults = {one.name: one.default for one in dataclasses.fields(PoolSettings)}

    def more(one: PoolSettings) -> PoolSettings:
        names = [name for name in TIMES if getattr(one, name) == defaults[name]]
        return dataclasses.replace(one, **dict.fromkeys(names, UNHURRIED))

    return {alias: more(one) for alias, one in settings.items()}


def run(page: Path, line: int, code: str, broker: str) -> int:
    """Run one example in a child; its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        replace_settings(with_time)
        # The line numbers of the page, for the traceback.
        code = AMQP.sub(f"{broker}{vhost_of(page, line)}", code)
        source = "\n" * (line - 1) + OTHERS.sub("memory://", code)
        namespace: dict[str, Any] = {"__name__": "__main__"}
        if "import multiprocessing" in code:
            # Children that are not forked begin with the program's file.
            file = Path(f"{page.stem}_{line}.py")
            file.write_text(source)
            subprocess.run([sys.executable, "-P", file], check=True)
        else:
            exec(compile(source, str(page), "exec"), namespace)
        use_fixtures(namespace)
        if "django_app" in code:
            use_django(namespace, f"{broker}{vhost_of(page, line)}")
        if "flask_ext" in code:
            use_flask(namespace)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def use_fixtures(namespace: dict[str, Any]) -> None:
    """Run each test that an example defines for pytest, with the fixtures that it asks for."""
    from kombu_pools_ext.testing import swapped_brokers

    for name, one in list(namespace.items()):
        asked_for = list(inspect.signature(one).parameters) if inspect.isfunction(one) else []
        if name.startswith("test_") and asked_for:
            with swapped_brokers() as brokers:
                fixtures = {"published": brokers.published, "broker": brokers["default"]}
                one(**{name: fixtures[name] for name in asked_for})


def use_django(namespace: dict[str, Any], url: str) -> None:
    """Ask each view that an example defines, and run its tests, in a project if it has none of its own."""
    from django.conf import settings

    if not settings.configured:
        settings.configure(
            INSTALLED_APPS=["django_app"],
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
            KOMBU_POOLS={"default": url},
        )
        django.setup()
    from django.test import RequestFactory

    own = [one for one in namespace.values() if getattr(one, "__module__", "") == "__main__"]
    for one in own:
        if inspect.isfunction(one):
            asked_for = list(inspect.signature(one).parameters)
            if asked_for[:1] == ["request"]:
                others = [name for name in asked_for[1:] if name != "producer"]
                response = one(RequestFactory().post("/"), **dict.fromkeys(others, 3))
                if inspect.iscoroutine(response):
                    response = asyncio.run(response)
                assert response.status_code < 400, response
        elif isinstance(one, type) and issubclass(one, unittest.TestCase):
            result = unittest.TestResult()
            unittest.defaultTestLoader.loadTestsFromTestCase(one).run(result)
            assert result.wasSuccessful(), result.errors + result.failures
            assert result.testsRun


def use_flask(namespace: dict[str, Any]) -> None:
    """Ask each view of each application that an example makes, or has a function for that takes nothing."""
    apps = [one for one in namespace.values() if isinstance(one, flask.Flask)]
    make = namespace.get("create_app")
    if make is not None and not inspect.signature(make).parameters:
        apps.append(make())
    for app in apps:
        for rule in app.url_map.iter_rules():
            # Those of a blueprint of ours have tests of their own.
            if rule.endpoint != "static" and not rule.endpoint.startswith("kombu_pools"):
                path = re.sub(r"<[^>]*>", "3", rule.rule)
                method = "POST" if "POST" in rule.methods else "GET"
                response = app.test_client().open(path, method=method)
                assert response.status_code < 400, (path, response.text)


def main() -> int:
    page, broker = Path(sys.argv[1]), sys.argv[2]
    failed = [
        line for line, code in examples(page) if is_for(code) and run(page, line, code, broker)
    ]
    for line in failed:
        print(f"{page.name}:{line}: this example failed", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
