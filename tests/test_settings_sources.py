"""Settings from a function, a dotted path to one, or a file: what is read, and errors that show no secret."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from kombu_pools_ext.aliases import Pools, configure
from kombu_pools_ext.settings import SettingsError, parse_settings, sources

SECRET = "Secr3t-of-the-file"
URL = f"amqp://shop:{SECRET}@mq//"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    made = types.ModuleType("shop_brokers")
    monkeypatch.setitem(sys.modules, "shop_brokers", made)
    return made


def file(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


JSON = json.dumps({"default": {"URL": URL, "LIMIT": 3}, "audit": "memory://"})
TOML = f"""
audit = "memory://"

[default]
URL = "{URL}"
LIMIT = 3
"""


def check(settings: Any) -> None:
    assert sorted(settings) == ["audit", "default"]
    assert settings["default"].url == (URL,)
    assert settings["default"].limit == 3


@pytest.mark.parametrize("name, text", [("a.json", JSON), ("a.toml", TOML), ("A.TOML", TOML)])
def test_a_json_or_toml_file_is_read(tmp_path: Path, name: str, text: str) -> None:
    path = file(tmp_path, name, text)
    check(parse_settings(path))
    check(Pools(str(path)).settings)
    # As some editors write it.
    check(parse_settings(file(tmp_path, name, "\ufeff" + text)))


def test_a_function_and_a_dotted_path_are_called(tmp_path: Path, module: Any) -> None:
    module.pools = lambda: json.loads(JSON)
    module.path = lambda: file(tmp_path, "a.toml", TOML)
    module.Vault = type("Vault", (), {"pools": staticmethod(module.pools)})
    for source in (
        module.pools,
        module.path,
        "shop_brokers.pools",
        "shop_brokers:path",
        "shop_brokers:Vault.pools",
    ):
        check(parse_settings(source))
        check(Pools(source).settings)


def test_functions_and_files_can_be_read_again_and_a_dict_cannot(
    tmp_path: Path, module: Any
) -> None:
    module.pools = lambda: json.loads(JSON)
    path = file(tmp_path, "a.json", JSON)
    assert [
        Pools(one).can_change
        for one in (json.loads(JSON), module.pools, "shop_brokers.pools", path, str(path))
    ] == [False, True, True, True, True]
    assert not Pools(default="memory://").can_change
    assert configure(path).can_change


def test_a_file_is_read_at_once_and_a_function_called_at_the_first_use(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        Pools(tmp_path / "none.json")
    assert Pools("nobody.knows")
    with pytest.raises(SettingsError, match="No module named 'nobody'"):
        Pools("nobody.knows").settings


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("a.json", "", "is empty; is it being written"),
        ("a.toml", "  \n", "is empty; is it being written"),
        ("a.json", JSON[:-20], "is not valid JSON: "),
        ("a.json", "{}", "the dict of aliases is empty"),
        ("a.json", "[1]", "expected a dict of aliases"),
        ("a.json", f'{{"default": "{URL}", "default": "{URL}"}}', "has the same name twice"),
        ("a.json", "[" * 100_000, "is not valid JSON: "),
        ("a.toml", TOML[:-14], "is not valid TOML: it cannot be parsed at"),
        ("a.toml", f'[default]\nURL = "{URL}"\nURL = "{URL}"', "it cannot be parsed at "),
        ("a.toml", f"default = {URL}", "it cannot be parsed at line 1, column"),
        ("a.json", b"\xff\xfe", "byte 0 is not valid UTF-8"),
        ("a.json", b" " * (sources.LARGEST + 1), "has more than 1048576 bytes"),
        ("a.ini", JSON, "its name must end with .json or .toml"),
        ("a.json", json.dumps({"default": {"URL": URL, "LIMT": 3}}), "did you mean 'LIMIT'?"),
    ],
)
def test_a_wrong_file_is_reported_without_its_content(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(file(tmp_path, name, text))
    assert told in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error!r} {error} {vars(error)}"
        error = error.__cause__ or error.__context__


def test_a_path_that_is_not_a_readable_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    for path, told in (
        ("a.json", "Is a directory"),
        ("b.json", "No such file"),
        ("\0.json", "read"),
    ):
        with pytest.raises(SettingsError, match=told):
            parse_settings(tmp_path / path)


@pytest.mark.parametrize(
    "path, told",
    [
        ("shop_brokers.pool", "'shop_brokers' has no 'pool'; did you mean 'pools'?"),
        ("shop_brokers.DICT", "is a value of type dict, not a function; give the dict itself"),
        ("shop_broker.pools", "the module 'shop_broker' cannot be imported: ModuleNotFoundError"),
        ("json.nothing.pools", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_dotted_path_to_nothing_is_reported(module: Any, path: str, told: str) -> None:
    module.pools, module.DICT = dict, {"default": URL}
    with pytest.raises(SettingsError) as caught:
        parse_settings(path, name="SHOP")
    assert str(caught.value).startswith("SHOP: ")
    assert told in str(caught.value)


def test_only_the_class_of_an_error_at_import_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file(tmp_path, "shop_failing.py", f"raise ValueError({SECRET!r})")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match=r"cannot be imported: ValueError$") as caught:
        parse_settings("shop_failing.pools")
    assert SECRET not in str(caught.value)


def test_an_error_of_the_function_is_raised_as_it_is(module: Any) -> None:
    def fail() -> Any:
        raise LookupError("no vault")

    with pytest.raises(LookupError, match="no vault"):
        parse_settings(fail)


@pytest.mark.parametrize("text", ["amqp://a.b/c.json", "true", "{}", "shop", "a b.c", "1.5", ".x"])
def test_other_texts_are_not_read_as_a_source(text: str) -> None:
    assert not sources.can_change(text)
    with pytest.raises(SettingsError, match="expected a dict of aliases"):
        parse_settings(text)


def test_keywords_can_be_combined_only_with_a_dict(tmp_path: Path) -> None:
    path: Any = file(tmp_path, "a.json", JSON)
    with pytest.raises(TypeError, match="keywords"):
        Pools(path, more="memory://")
