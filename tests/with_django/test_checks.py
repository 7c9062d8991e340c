from __future__ import annotations

import gc
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings
from django.core.checks import CheckMessage, run_checks
from django.core.management import CommandError, call_command
from django.test import override_settings
from django.urls import clear_url_caches

import kombu_pools_ext
from django_app import checks, conf, decorators, servers, with_producer
from kombu_pools_ext import PoolSettings

ROOT = Path(__file__).parent.parent.parent
SECRET = "s3cr3t-word"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a check speaks")

    # This process may listen for commands since an earlier test, and rings its own bell when it ends that.
    with override_settings(SECRET_KEY="of nobody"):
        pass
    # So do the applications that earlier tests left for the collector.
    gc.collect()
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)
    monkeypatch.chdir(tmp_path)


def found(deploy: bool = False) -> dict[str, list[CheckMessage]]:
    """Return what the checks find, by the id of the check, and assert that each message is well-formed."""
    by_id: dict[str, list[CheckMessage]] = {}
    for one in run_checks(tags=[checks.TAG], include_deployment_checks=deploy):
        assert len(one.msg) < 80, one.msg
        assert one.hint
        assert SECRET not in str(one)
        assert one.id is not None
        by_id.setdefault(one.id.removeprefix("kombu_pools."), []).append(one)
    return by_id


def only(by_id: dict[str, list[CheckMessage]]) -> tuple[str, CheckMessage]:
    [(name, [message])] = by_id.items()
    return name, message


def test_valid_settings_have_no_messages(configure: Callable[..., None]) -> None:
    broker = {"HOST": "broker.example", "USER": "shop", "PASSWORD": SECRET, "VHOST": "shop"}
    configure({"default": {**broker, "TRANSPORT": "amqps", "LIMIT": 20}})
    assert found(deploy=True) == {}


def test_each_problem_of_the_settings_is_a_message(configure: Callable[..., None]) -> None:
    configure(
        {
            "default": {"URL": f"amqp://u:{SECRET}@h//", "LIMT": 5, "CONFIRM": "yes"},
            "au'dit": {},
            "a" * 90: {"URL": "memory://", "LIMIT": -1},
            "long": {"URL": f"amqp://u:{SECRET}@{'h' * 200}:port//"},
        }
    )
    problems = found(deploy=True)
    assert set(problems) == {"E001"}
    told = {one.msg: one.hint for one in problems["E001"]}
    assert (
        told["KOMBU_POOLS['default']['LIMT']: 'LIMT' is not a setting"] == "did you mean 'LIMIT'?"
    )
    assert told["""KOMBU_POOLS["au'dit"]['URL']: missing"""]
    assert "KOMBU_POOLS['default']['CONFIRM']: expected True or False, got 'yes'" in told
    assert "has a port" in (told["KOMBU_POOLS['long']['URL'] is wrong."] or "")
    assert f"KOMBU_POOLS['{'a' * 90}']['LIMIT']" in (
        told["A setting in KOMBU_POOLS is wrong."] or ""
    )
    assert len(told) == 5


@pytest.mark.parametrize("value", [5, [], "amqp://localhost//"])
def test_a_setting_that_is_not_a_dict_is_e001(value: Any) -> None:
    with override_settings(KOMBU_POOLS=value):
        name, message = only(found())
    assert name == "E001"
    assert message.msg.startswith("KOMBU_POOLS")


def test_a_missing_setting() -> None:
    with override_settings():
        del settings.KOMBU_POOLS
        conf.pools.forget_settings()
        name, message = only(found())
        assert (name, message.msg) == (
            "E002",
            "The setting KOMBU_POOLS is missing, and DEBUG is off.",
        )
        with override_settings(DEBUG=True):
            assert found() == {}
    conf.pools.forget_settings()


def test_each_problem_of_the_control_setting_is_a_message(configure: Callable[..., None]) -> None:
    configure()
    wrong = {"DIRECTORY": "run/shop", "DIR": 1, "KEY": SECRET, "BROADCAST": "defualt"}
    with override_settings(KOMBU_POOLS_CONTROL=wrong):
        problems = found(deploy=True)
        assert set(problems) == {"E005", "W004"}
        told = {one.msg: one.hint for one in problems["E005"]}
    assert any("'DIR' is not a setting" in one for one in told)
    assert any("did you mean 'default'?" in str(hint) for hint in told.values())
    assert len(told) == 4


def test_the_alias_of_broadcast_is_not_checked_if_no_alias_is_known() -> None:
    with override_settings(KOMBU_POOLS={"default": "nope://"}):
        with override_settings(KOMBU_POOLS_CONTROL={"BROADCAST": "default"}):
            assert set(found()) == {"E001"}


def test_broadcasts_need_a_secret(configure: Callable[..., None]) -> None:
    configure(URL="amqp://localhost//")
    with override_settings(KOMBU_POOLS_CONTROL={"BROADCAST": "default"}):
        assert found() == {}
        for secret, there_is in (
            ("", "there is none"),
            ("x" * 15, "there is one of 15 characters"),
        ):
            with override_settings(SECRET_KEY=secret):
                name, message = only(found())
            assert name == "E005"
            assert message.msg == "KOMBU_POOLS_CONTROL['BROADCAST'] is wrong."
            assert there_is in (message.hint or "")


def test_broadcasts_need_a_broker_that_carries_them(configure: Callable[..., None]) -> None:
    configure()
    with override_settings(KOMBU_POOLS_CONTROL={"BROADCAST": "default"}):
        name, message = only(found())
    assert name == "E005"
    assert "cannot carry commands to other machines" in (message.hint or "")


@pytest.mark.parametrize("value", [5, [], "default"])
def test_a_control_setting_that_is_not_a_dict_is_e005(
    configure: Callable[..., None], value: Any
) -> None:
    configure()
    with override_settings(KOMBU_POOLS_CONTROL=value):
        name, message = only(found())
    assert name == "E005"
    assert message.msg.startswith("KOMBU_POOLS_CONTROL")


@pytest.mark.parametrize("value", [None, False, {}, {"DIRECTORY": "/run/shop"}])
def test_a_valid_control_setting_has_no_messages(
    configure: Callable[..., None], value: Any
) -> None:
    configure()
    with override_settings(KOMBU_POOLS_CONTROL=value):
        assert found() == {}


def test_a_view_with_an_unknown_alias_is_e003(configure: Callable[..., None]) -> None:
    def view(request: Any, producer: Any) -> None: ...

    configure({"default": "memory://", "audit": "memory://"})
    with_producer("audit")(view)
    assert found() == {}
    with_producer("nope")(view)
    name, message = only(found())
    assert name == "E003"
    assert "Configure 'nope', or correct " in (message.hint or "")
    assert "test_a_view_with_an_unknown_alias_is_e003.<locals>.view" in (message.hint or "")
    assert "configured: 'default', 'audit'." in (message.hint or "")
    configure({"other": "memory://"})
    assert len(found()["E003"]) == 3
    # Wrong settings come first: nobody knows their aliases.
    configure({"default": -1})
    assert set(found()) == {"E001"}


def test_views_of_the_urlconf_are_checked() -> None:
    name = "tests.with_django.urls_of_a_typo"
    sys.modules.pop(name, None)
    with override_settings(ROOT_URLCONF=name):
        clear_url_caches()
        check, message = only(found())
        assert check == "E003"
        assert "'defautl'" in (message.hint or "")
    decorators.used_aliases.pop("defautl")
    for broken in (None, "tests.with_django.no_such_urls"):
        with override_settings(ROOT_URLCONF=broken):
            clear_url_caches()
            assert found() == {}
    clear_url_caches()


NAMED = {
    "nope-function": "function",
    "nope-async": "asynchronous",
    "nope-wrapped": "wrapped",
    "nope-partial": "plain",
    "nope-method": "Methods.get",
    "nope-direct": "Methods.post",
    "nope-async-method": "Async.get",
    "nope-named": "Named.get",
    "nope-dispatch": "Dispatched.dispatch",
    "nope-whole": "Whole",
    "nope-called": "Called",
}


def test_the_message_names_the_view_however_it_was_decorated() -> None:
    urlconf = "tests.with_django.urls_of_many_typos"
    sys.modules.pop(urlconf, None)
    try:
        with override_settings(ROOT_URLCONF=urlconf):
            clear_url_caches()
            hints = [message.hint or "" for message in found()["E003"]]
    finally:
        clear_url_caches()
        for alias in NAMED:
            decorators.used_aliases.pop(alias, None)
    told = {hint.split("'")[1]: hint.split("or correct ")[1].split(";")[0] for hint in hints}
    assert told == {alias: f"{urlconf}.{name}" for alias, name in NAMED.items()}


def test_a_driver_that_is_not_installed(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(URL=f"redis://:{SECRET}@localhost/0")
    monkeypatch.setattr(PoolSettings, "missing_driver", lambda self: 'pip install "that"')
    name, message = only(found())
    assert (name, message.msg) == ("E004", "The driver for redis:// is not installed.")
    assert message.hint == """KOMBU_POOLS['default']: pip install "that\""""


def test_a_limit_below_the_servers_threads(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(
        {
            "default": {"URL": "memory://", "LIMIT": 4},
            "enough": {"URL": "memory://", "LIMIT": 16},
            "unlimited": {"URL": "memory://", "LIMIT": None},
            "global": "memory://",
        }
    )
    assert found() == {}
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--workers=2 --threads=8")
    name, message = only(found())
    assert (name, message.msg) == ("W001", "A pool's limit of 4 is below the server's 8 threads.")
    assert "KOMBU_POOLS['default']" in (message.hint or "")
    assert "set LIMIT to 8 or more (threads as in GUNICORN_CMD_ARGS)" in (message.hint or "")
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--threads 12")
    assert len(found()["W001"]) == 2
    kombu_pools_ext.set_limit(0)
    try:
        assert len(found()["W001"]) == 1
    finally:
        kombu_pools_ext.set_limit(10)


@pytest.mark.parametrize(
    "arguments", ["", "--thread 8", "--threads", "--threads=x", "'--threads", "-w 4"]
)
def test_server_arguments_without_threads_are_ignored(
    monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", arguments)
    assert servers.known_threads() is None


@pytest.mark.parametrize(
    "text, number",
    [
        ("import os\nbind = ':80'\nthreads = 8\n", 8),
        ("workers = threads = 3\nthreads = 6", 6),
        ("threads = int(os.environ['N'])", None),
        ("threads = 'many'", None),
        ("raise SystemExit  # never run\nconfig.threads = 3", None),
        ("threads = (", None),
        ("\0", None),
    ],
)
def test_gunicorns_file_is_read_but_not_run(text: str, number: int | None) -> None:
    Path("gunicorn.conf.py").write_text(text, encoding="utf-8")
    expected = None if number is None else servers.Threads(number, "gunicorn.conf.py")
    assert servers.known_threads() == expected


def test_gunicorns_arguments_override_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("gunicorn.conf.py").write_text("threads = 8", encoding="utf-8")
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--threads=2")
    assert servers.known_threads() == servers.Threads(2, "GUNICORN_CMD_ARGS")


@pytest.mark.parametrize("options", [{"threads": b"8"}, {b"threads": b"8"}, {"threads": 8}])
def test_within_uwsgi_its_own_option_counts(
    monkeypatch: pytest.MonkeyPatch, options: dict[Any, Any]
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--threads=2")
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt=options))
    assert servers.known_threads() == servers.Threads(8, "uWSGI's option threads")
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt={}))
    assert servers.known_threads() == servers.Threads(2, "GUNICORN_CMD_ARGS")


@pytest.mark.parametrize(
    "url, warned",
    [
        ("amqp://guest:guest@localhost//", True),
        ("amqp://localhost//", True),
        ("amqps://guest:guest@broker.example//", True),
        (["amqp://shop:word@localhost//", "amqp://guest:guest@localhost//"], True),
        (f"amqp://guest:{SECRET}@localhost//", False),
        ("amqp://shop:guest@localhost//", False),
        ("redis://localhost/0", False),
    ],
)
def test_w002_default_credentials(configure: Callable[..., None], url: Any, warned: bool) -> None:
    configure(URL=url)
    assert ("W002" in found(deploy=True)) is warned
    assert found() == {}


@pytest.mark.parametrize(
    "url, tls, warned",
    [
        ("amqp://u:p@broker.example//", False, True),
        ("pyamqp://u:p@10.0.0.1//", False, True),
        ("redis://:p@broker.example/0", False, True),
        (["amqp://u:p@localhost//", "amqp://u:p@broker.example//"], False, True),
        ("amqps://u:p@broker.example//", False, False),
        ("rediss://:p@broker.example/0", False, False),
        ("redis://broker.example/0?ssl_cert_reqs=required", False, False),
        ("amqp://u:p@broker.example//", True, False),
        ("amqp://u:p@localhost//", False, False),
        ("amqp://u:p@127.1.2.3//", False, False),
        ("redis://[::1]/0", False, False),
        ("amqp://u:p@mq.localhost//", False, False),
        ("redis://", False, False),
        ("redis+socket:///run/redis.sock", False, False),
        ("memory://broker.example", False, False),
        ("mongodb://a:1,b:2/db", False, False),
    ],
)
def test_w003_messages_without_encryption(
    configure: Callable[..., None], url: Any, tls: bool, warned: bool
) -> None:
    configure(URL=url, SSL=tls)
    warnings = found(deploy=True).get("W003", [])
    assert bool(warnings) is warned
    if warned:
        scheme = "rediss://" if "redis" in str(url) else "amqps://"
        assert f"set SSL, or write {scheme} into the URL" in (warnings[0].hint or "")
    assert "W003" not in found()


def test_w004_messages_that_stay_in_memory(configure: Callable[..., None]) -> None:
    configure()
    assert found() == {}
    name, message = only(found(deploy=True))
    assert name == "W004"
    assert "KOMBU_POOLS['default']" in (message.hint or "")


def test_djangos_check_command_runs_the_checks(configure: Callable[..., None]) -> None:
    configure(LIMIT=-1)
    with pytest.raises(CommandError, match=r"kombu_pools\.E001"):
        call_command("check")


def test_the_page_has_an_entry_for_each_and_no_other() -> None:
    # The backend of Django's tasks has checks of its own, and is not imported before Django 6.
    folder = Path(checks.__file__).parent
    source = "".join(
        (folder / name).read_text(encoding="utf-8")
        for name in ("checks.py", "tasks.py", "outbox/checks.py")
    )
    page = (ROOT / "docs" / "reference" / "checks.md").read_text(encoding="utf-8")
    made = set(re.findall(r"kombu_pools\.([EW]\d{3})", source))
    assert len(made) == 18
    assert set(re.findall(r"^### kombu_pools\.([EW]\d{3})", page, re.MULTILINE)) == made


def test_a_project_with_wrong_settings_fails_its_check(tmp_path: Path) -> None:
    code = f"""
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["django_app"], KOMBU_POOLS={{"default": {{"URL": "amqp://u:{SECRET}@h//", "X": 1}}}})
django.setup()
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "check"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "(kombu_pools.E001) KOMBU_POOLS['default']['X']: 'X' is not a setting" in done.stderr
    assert SECRET not in done.stderr + done.stdout


# -- credentials -------------------------------------------------------------------------------------------------------


def answers() -> tuple[str, str]:
    return "app", SECRET


@pytest.mark.parametrize(
    "credentials, why",
    [
        (f"{__name__}.no_such", "has no attribute 'no_such'"),
        (f"{__name__}.SECRET", "is a value of type str"),
    ],
)
def test_e006_the_function_of_credentials_cannot_be_called(credentials: str, why: str) -> None:
    with override_settings(KOMBU_POOLS={"default": {"HOST": "h", "CREDENTIALS": credentials}}):
        name, message = only(found())
    assert name == "E006"
    assert "KOMBU_POOLS['default']" in str(message.hint)
    assert why in str(message.hint)


def test_valid_credentials_have_no_messages_and_no_w002() -> None:
    alias = {"HOST": "localhost", "CREDENTIALS": f"{__name__}.answers"}
    with override_settings(KOMBU_POOLS={"default": alias}):
        assert not found(deploy=True)


def test_e006_the_module_of_credentials_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_a_vault.py").write_text(f"raise LookupError({SECRET!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    with override_settings(
        KOMBU_POOLS={"default": {"HOST": "h", "CREDENTIALS": "of_a_vault.credentials"}}
    ):
        name, message = only(found())
    assert name == "E006"
    assert "importing it raised LookupError" in str(message.hint)


# -- error pages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pools, warned",
    [
        ({"default": f"amqps://app:{SECRET}@h//"}, True),
        ({"default": {"URL": ["amqps://a//", f"amqps://app:{SECRET}@h//"]}}, True),
        ({"default": f"amqps://app:{SECRET}@h//;amqps://app:{SECRET}@i//"}, True),
        ({"default": "amqps://h//"}, False),
        ({"default": {"HOST": "h", "USER": "u", "PASSWORD": SECRET, "TRANSPORT": "amqps"}}, False),
        ({"default": PoolSettings.of(url=f"amqps://app:{SECRET}@h//")}, False),
        # Everybody knows it, and another check tells.
        ({"default": "amqps://guest:guest@h//"}, False),
    ],
)
def test_w005_error_mails_show_a_url_with_its_password(pools: Any, warned: bool) -> None:
    with override_settings(KOMBU_POOLS=pools):
        messages = found(deploy=True).get("W005", [])
        assert len(messages) == warned
        if warned:
            assert "write HOST, USER and PASSWORD in place of URL" in str(messages[0].hint)
        assert "W005" not in found()
    ours = "django_app.debug.SafeExceptionReporterFilter"
    with override_settings(KOMBU_POOLS=pools, DEFAULT_EXCEPTION_REPORTER_FILTER=ours):
        assert "W005" not in found(deploy=True)
