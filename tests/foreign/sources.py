"""Fetches the tests of kombu and Celery, of the versions that we test with: `make test-kombus`.

A wheel has no tests, so pip downloads the source distributions; the lock files that the environments are installed
from have their hashes. Only what the tests are is unpacked into .venv/foreign/kombu-5.7.0 and so on: the code under
them is the installed one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from tests.matrix import locked, name_of

__all__ = ["PROJECTS", "STACKS", "folder_of", "version_in"]

ROOT = Path(__file__).resolve().parent.parent.parent
HOME = ROOT / ".venv" / "foreign"
PROJECTS = ("kombu", "celery")
#: The environments under .venv/, and the lock file of each by its name in tests.matrix.
STACKS = {"test": "newest", "lowest": "lowest"}
#: What is unpacked: the tests, and the settings of pytest.
WANTED = ("t", "setup.cfg", "pyproject.toml")
#: What tells make that all is there.
STAMP = ".fetched"


def requirement(project: str, stack: str) -> str:
    """The line of the lock file of *stack* for *project*, with the hashes of its distributions."""
    (line,) = (line for line in locked(stack) if name_of(line) == project)
    return line


def version_in(project: str, stack: str) -> str:
    """The version of *project* in the lock file of *stack*."""
    return requirement(project, stack).split()[0].partition("==")[2]


def folder_of(project: str, version: str) -> Path:
    """Where the tests of a version are."""
    return HOME / f"{project}-{version}"


def download(line: str, folder: Path) -> Path:
    """Download the source distribution that a line of a lock file names."""
    asked = folder / "requirement.txt"
    asked.write_text(f"{line}\n")
    # pip asks a source distribution for its name, which takes setuptools: ours, since its hash is known.
    how = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes")
    command = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-qq")
    subprocess.run(
        [*command, *how, "-r", str(asked), "-d", str(folder)], check=True, stdin=subprocess.DEVNULL
    )
    (found,) = folder.glob("*.tar.gz")
    return found


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the tests alone."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if member.isfile() and path.parts[0] in WANTED and ".." not in path.parts:
                file = tar.extractfile(member)
                assert file is not None, member.name
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read())


def main() -> None:
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    for line in sorted(
        {requirement(name, stack) for name in PROJECTS for stack in STACKS.values()}
    ):
        project, version = line.split()[0].split("==")
        print(f"the tests of {project} {version}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            unpack(download(line, Path(folder)), folder_of(project, version))
    (HOME / STAMP).touch()


if __name__ == "__main__":
    main()
