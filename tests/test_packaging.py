"""What is shipped: the wheel, the source distribution, and what they say of themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import kombu_pools_ext

ROOT = Path(__file__).parent.parent
PACKAGES = ("kombu_pools_ext", "django_app", "flask_ext")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "hatchling",
            "build",
            "-t",
            "sdist",
            "-t",
            "wheel",
            "-d",
            str(folder),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_the_package_and_its_metadata_have_one_version(metadata: Message) -> None:
    assert metadata["Version"] == kombu_pools_ext.__version__


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert not [
        name for name in wheel.namelist() if "tests" in name.split("/") or name.endswith(".pyc")
    ]


def test_the_wheel_holds_every_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == files


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_that_it_is_typed(wheel: zipfile.ZipFile, package: str) -> None:
    assert wheel.read(f"{package}/py.typed") == b""


def test_kombu_is_all_that_the_core_needs(metadata: Message) -> None:
    required = metadata.get_all("Requires-Dist", [])
    assert [re.split(r"[^\w-]", r)[0] for r in required if "extra ==" not in r] == ["kombu"]


def test_the_extras(metadata: Message) -> None:
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "all",
        "celery",
        "django",
        "flask",
        "redis",
        "sqlalchemy",
    }
    in_all = {
        r.split(";")[0].strip().lower()
        for r in metadata.get_all("Requires-Dist", [])
        if "'all'" in r
    }
    each = {
        r.split(";")[0].strip().lower()
        for r in metadata.get_all("Requires-Dist", [])
        if re.search("'(celery|django|flask|redis|sqlalchemy)'", r)
    }
    assert in_all == each


def test_the_licence_is_inside(wheel: zipfile.ZipFile, metadata: Message) -> None:
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert [name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE")]


def test_the_source_distribution_can_be_tested(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "Makefile", ".requirements/test.txt"} <= names
    assert {"tests/conftest.py", "docs/conf.py"} <= names
    assert not [name for name in names if name.startswith((".venv", ".git/", "docs/_build"))]


LOCKS = sorted((ROOT / ".requirements").glob("*.txt"))


def test_each_dependency_group_has_a_lock_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {*project["dependency-groups"], "lowest"} == {path.stem for path in LOCKS}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_file_pins_every_version_and_its_hashes(path: Path) -> None:
    lines = path.read_text().replace("\\\n", "").splitlines()
    assert lines
    pinned = r"[\w.-]+==[\w.]+( ; [^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+"
    assert [line for line in lines if not re.fullmatch(pinned, line)] == []


@pytest.mark.parametrize("name", ["Makefile", "tests/matrix.py", "tests/benchmarks/pythons.py"])
def test_what_is_installed_from_a_registry_is_checked_against_the_hashes(name: str) -> None:
    text = (ROOT / name).read_text()
    installs = re.findall(r"^.*(?:\$\((?:PIP|INSTALL)\) |\binstall\().*$", text, re.MULTILINE)
    assert installs
    unchecked = [line for line in installs if not re.search("--require-hashes|--no-index", line)]
    assert unchecked == []


@pytest.mark.skipif(os.environ.get("EXPECT_INSTALLED") != "1", reason="the sources are tested")
def test_the_tests_run_on_what_is_installed() -> None:
    import kombu_pools_ext

    assert "site-packages" in Path(kombu_pools_ext.__file__).parts
