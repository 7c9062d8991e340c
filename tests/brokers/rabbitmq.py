"""A RabbitMQ node of the tests' own."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .server import Server, Unavailable, asked_for, free_port, program, root_of

__all__ = ["PortMapper", "PrivateRabbitMQ"]

#: Where RabbitMQ keeps its own scripts. Those on PATH may be wrappers that drop the environment and change the user.
RABBITMQ_SCRIPTS = (
    "/usr/lib/rabbitmq/bin",
    "/opt/homebrew/sbin",
    "/usr/local/sbin",
    "/usr/sbin",
)
#: A cold Erlang node on a busy machine; 4 s are usual.
RABBITMQ_START = 90.0

_numbers = itertools.count(1)


class PortMapper:
    """An epmd, which tells nodes where the others are; ours, so that it ends with us: a node leaves its own behind.

    Any release's will do: one of another speaks the same protocol.
    """

    def __init__(self, *folders: str) -> None:
        self.port = free_port()
        self.folders = folders
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.process is None:
            self.process = subprocess.Popen(
                [program("epmd", *self.folders), "-port", str(self.port), "-address", "127.0.0.1"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)


class PrivateRabbitMQ(Server):
    """A RabbitMQ node with its own name, ports, cookie, data and port mapper.

    `config` goes into its rabbitmq.conf, as in ``{"heartbeat": "2"}``. Nodes of one cluster share a port mapper and a
    cookie. `release` is one that `make brokers` has fetched, as "4.0"; without it the one of the environment variable
    RABBITMQ, and where that is unset the one that is installed. `plugins` are enabled; `has_plugin` tells whether
    there is one.
    """

    name = "rabbitmq-server"
    start_timeout = RABBITMQ_START
    greeting = b"AMQP\x00\x00\x09\x01"
    answer = b"\x01"  # a method frame: Connection.Start

    def __init__(
        self,
        config: Mapping[str, str] | None = None,
        *,
        mapper: PortMapper | None = None,
        cookie: str | None = None,
        release: str | None = None,
        plugins: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.config = dict(config or {})
        self.release = release or asked_for("rabbitmq")
        self.nodename = f"private-{os.getpid()}-{next(_numbers)}@localhost"
        self.dist_port = free_port()
        self.mapper = mapper or PortMapper(*self._erlang)
        self._shares_mapper = mapper is not None
        self._cookie = cookie
        #: Whether it starts without RabbitMQ's plugins in Erlang's path: half as long, and nobody misses them.
        self._slim = not plugins
        self.plugins = tuple(plugins)

    @property
    def url(self) -> str:
        return self.url_of()

    def url_of(self, user: str = "guest", password: str = "guest", vhost: str = "/") -> str:
        """The URL for somebody else, or for another virtual host."""
        return f"amqp://{user}:{password}@127.0.0.1:{self.port}/{vhost}"

    @property
    def scripts(self) -> Path:
        """Where `rabbitmq-server` and `rabbitmqctl` lie."""
        if self.release is None:
            return Path(program("rabbitmq-server", *RABBITMQ_SCRIPTS)).parent
        return root_of("rabbitmq", self.release) / "usr" / "lib" / "rabbitmq" / "bin"

    @property
    def _installed(self) -> Path:
        """The folder of the release, with its plugins."""
        return (self.scripts / "rabbitmq-server").resolve().parent.parent

    def has_plugin(self, name: str) -> bool:
        """Whether the release comes with that plugin. Raises `Unavailable` where there is no RabbitMQ."""
        return any(self._installed.glob(f"plugins/{name}-*"))

    @property
    def _erlang(self) -> list[str]:
        """Where the Erlang of a fetched release lies; the installed one is on PATH."""
        if self.release is None:
            return []
        return [str(root_of("rabbitmq", self.release) / "usr" / "lib" / "erlang" / "bin")]

    def command(self) -> list[str]:
        return [str(self.scripts / "rabbitmq-server")]

    def environment(self) -> dict[str, str]:
        folder = self.folder
        (folder / "enabled_plugins").write_text(f"[{','.join(self.plugins)}].\n")
        lines = {
            "listeners.tcp.1": f"127.0.0.1:{self.port}",
            "log.console": "true",
            "log.file": "false",
            **self.config,
        }
        (folder / "rabbitmq.conf").write_text(
            "".join(f"{key} = {value}\n" for key, value in lines.items())
        )
        cookie = folder / ".erlang.cookie"
        if self._cookie is not None and not cookie.exists():
            cookie.write_text(self._cookie)
            cookie.chmod(0o400)
        own = {
            "HOME": str(folder),  # the cookie lies there
            "PATH": os.pathsep.join([*self._erlang, os.environ.get("PATH", os.defpath)]),
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.mapper.port),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none.conf"),  # else the machine's own would win
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "none.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_NODENAME": self.nodename,
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_SCHEMA_DIR": str(folder / "schema"),
            # Two schedulers that don't spin: the tests share the machine.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        }
        if self._slim:
            own |= self._slim_environment()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_"))}
        return inherited | own

    def _slim_environment(self) -> dict[str, str]:
        """A RabbitMQ of links to the installed one, without plugins: Erlang looks for each module in each folder."""
        installed = self._installed
        rabbit = sorted(installed.glob("plugins/rabbit-*"))
        if not rabbit or not (installed / "sbin" / "rabbitmq-env").exists():
            return {}
        home, plugins = self.folder / "home", self.folder / "plugins"
        if not home.exists():
            (home / "plugins").mkdir(parents=True)
            for part in ("sbin", "escript"):
                (home / part).mkdir()
                for one in (installed / part).iterdir():
                    (home / part / one.name).symlink_to(one)
            for one in (installed / "plugins").iterdir():
                if not one.name.startswith("rabbitmq_") or one.name.startswith(
                    "rabbitmq_prelaunch"
                ):
                    (home / "plugins" / one.name).symlink_to(one)
            plugins.mkdir()
            (plugins / rabbit[-1].name).symlink_to(rabbit[-1])  # its settings are described there
        return {"RABBITMQ_SCRIPTS_DIR": str(home / "sbin"), "RABBITMQ_PLUGINS_DIR": str(plugins)}

    def launch(self) -> None:
        program("rabbitmqctl", str(self.scripts))
        self.mapper.start()
        super().launch()

    def start(self) -> None:
        try:
            super().start()
        except Unavailable:
            if not self._slim:
                raise
            # Another RabbitMQ may need what was left out.
            self._slim = False
            super().start()

    def __exit__(self, *exc: object) -> None:
        super().__exit__()
        if not self._shares_mapper:
            self.mapper.stop()

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` says; a second each, and many on a busy machine: what tests do often has a method."""
        done = subprocess.run(
            [
                program("rabbitmqctl", str(self.scripts)),
                "--quiet",
                "--node",
                self.nodename,
                *arguments,
            ],
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout

    def write_log(self) -> None:
        """Have what was declared on disk, so that it outlasts a SIGKILL: the node writes it a moment later."""
        self.evaluate("begin catch mnesia:sync_log(), true end")

    def evaluate(self, expression: str) -> Any:
        """What an Erlang expression comes to in the node: in a hundredth of a second, by Erlang's own ``erl_call``."""
        answer = self.folder / f"answer-{next(_numbers)}.json"
        code = f"ok = file:write_file({binary(str(answer))}, rabbit_json:encode(begin {expression} end))."
        try:
            caller = program("erl_call", *self._erlang)
        except Unavailable:
            said = self.ctl("eval", code)
        else:
            cookie = (self.folder / ".erlang.cookie").read_text()
            said = subprocess.run(
                [caller, "-sname", self.nodename, "-c", cookie, "-e"],
                env=self.environment(),
                cwd=self.folder,
                input=f"{code}\n",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=120,
            ).stdout
        if not answer.exists():
            raise RuntimeError(f"{expression}: {said}")
        return json.loads(answer.read_text())

    def list_connections(self) -> list[dict[str, Any]]:
        """One row for each connection: name, state, channels, client_properties."""
        plain = ("name", "state", "channels")
        rows: list[dict[str, Any]] = self.evaluate(
            f"[#{{{''.join(f'{one} => proplists:get_value({one}, Row), ' for one in plain)}"
            # One that is being opened has said nothing yet.
            "client_properties => case proplists:get_value(client_properties, Row) of "
            "Said when is_list(Said) -> rabbit_misc:amqp_table(Said); _ -> #{} end}"
            f" || Row <- rabbit_networking:connection_info_all([client_properties, {', '.join(plain)}]), "
            # Else it has ended meanwhile.
            "is_binary(proplists:get_value(name, Row))]"
        )
        return rows

    def list_queues(self) -> list[str]:
        """Their names."""
        names: list[str] = self.evaluate(
            "[element(4, amqqueue:get_name(Queue)) || Queue <- rabbit_amqqueue:list()]"
        )
        return names

    def list_exchanges(self) -> list[str]:
        """Their names."""
        names: list[str] = self.evaluate(
            "[element(4, element(2, Exchange)) || Exchange <- rabbit_exchange:list()]"
        )
        return names

    def close_connections(self, reason: str = "closed by a test") -> None:
        """The broker closes every connection with Connection.Close."""
        self.evaluate(
            f"rabbit_networking:close_connections(rabbit_networking:connections(), {binary(reason)})"
        )

    @contextmanager
    def memory_alarm(self) -> Iterator[None]:
        """Short of memory within the block: whoever publishes is blocked, and told so if he can be."""
        self.alarm()
        try:
            yield
        finally:
            self.no_alarm()

    @contextmanager
    def suspended_queue(self, name: str) -> Iterator[None]:
        """Within the block, a queue takes nothing and answers nothing; the connections are as they were."""
        find = (
            f'{{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, {binary(name)}))'
        )
        self.evaluate(f"{find}, sys:suspend(amqqueue:get_pid(Queue))")
        try:
            yield
        finally:
            self.evaluate(f"{find}, sys:resume(amqqueue:get_pid(Queue))")

    def alarm(self) -> None:
        """Short of memory from now on."""
        self.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.0000001)")

    def no_alarm(self) -> None:
        """Enough memory again."""
        self.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.4)")

    def add_vhosts(self, names: Sequence[str]) -> None:
        """Empty virtual hosts for ``guest``."""
        every = binary(".*")
        self.evaluate(
            'lists:foreach(fun(V) -> rabbit_vhost:add(V, <<"guest">>), rabbit_auth_backend_internal:set_permissions('
            f'<<"guest">>, V, {every}, {every}, {every}, <<"guest">>) end, [{", ".join(map(binary, names))}])'
        )

    def add_user(
        self, name: str, password: str, *, configure: str = "", write: str = "", read: str = ""
    ) -> None:
        """Somebody who may do only so much in the virtual host ``/``: patterns of names of queues and exchanges.

        A user of that name is replaced.
        """
        self.delete_user(name)
        self._user("add_user", name, password)
        self.permit(name, configure, write, read)

    def permit(self, name: str, configure: str, write: str, read: str) -> None:
        """From now on *name* may do only so much."""
        self._user("set_permissions", name, "/", configure, write, read)

    def change_password(self, name: str, password: str) -> None:
        self._user("change_password", name, password)

    def delete_user(self, name: str) -> None:
        """Forget *name*, if there is such a user; the broker closes its connections."""
        user = binary(name)
        self.evaluate(
            f"case rabbit_auth_backend_internal:exists({user}) of true ->"
            f' rabbit_auth_backend_internal:delete_user({user}, <<"tests">>); false -> ok end'
        )

    def _user(self, what: str, *arguments: str) -> None:
        self.evaluate(
            f'rabbit_auth_backend_internal:{what}({", ".join(map(binary, arguments))}, <<"tests">>)'
        )


def binary(text: str) -> str:
    """*text* as Erlang has it in a program."""
    return f"<<{','.join(map(str, text.encode()))}>>"
