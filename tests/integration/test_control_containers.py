"""Containers that share a disk and the name of their machine, and each count their processes from 1."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.brokers import PrivateRabbitMQ
from tests.integration.machines import CONTAINER, require_containers
from tests.integration.rig import CLIENTS, eventually, family, kill_one, received
from tests.integration.servers import WORKERS, gunicorn
from tests.integration.steering import Steering

pytestmark = pytest.mark.slow


def test_containers_that_share_a_directory_but_not_their_numbers(
    node: PrivateRabbitMQ, queue: str, tmp_path: Path, steered: Steering
) -> None:
    require_containers()
    environment = {"SERVED_URL": node.url, "QUEUE": queue, **steered.environment}
    with ExitStack() as stack:
        servers = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            served = gunicorn(environment, tmp_path / name, "--threads", "4", within=CONTAINER)
            servers.append(stack.enter_context(served))
        for server in servers:
            server.wait_for_workers(WORKERS)
        sent = 0

        def all_names() -> set[str]:
            return {answer.process.name for answer in steered.ask("status").answers}

        def all_there() -> bool:
            nonlocal sent
            sent += sum(len(server.publish_all(range(CLIENTS))) for server in servers)
            return len(all_names()) == WORKERS * len(servers)

        eventually(all_there, lambda: steered.ask("status"))
        names = all_names()
        answers = steered.ask("reset").answers
        assert {answer.process.name for answer in answers} == names
        assert all(row["ok"] for answer in answers for row in answer.rows)
        # Both count from 1, so that a number may be two processes.
        for number, count in Counter(str(answer.process.pid) for answer in answers).items():
            assert len(steered.ask("status", processes=[number]).answers) == count
        # By the number that it has out here.
        outer = servers[0].process.pid
        kill_one(family(outer)[-1], outer)
        left = all_names()
        assert left < names
        assert len(left) == len(steered.sockets) == len(names) - 1
    # Nobody could say goodbye; who looks tidies up.
    eventually(lambda: steered.try_to_ask("status").answers == () and not steered.sockets)
    assert len(received(node.url, queue, sent)) == sent
