"""A Flask application with Flask-SQLAlchemy: messages in its transactions, and the commands of the outbox."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import kombu
import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_ext import KombuPools
from kombu_pools_ext.contrib.sqlalchemy import metadata
from tests.databases import Database
from tests.outbox.test_relay import bodies

Invoke = Callable[..., tuple[int, str]]


@pytest.fixture
def queue(amqp_url: str) -> Any:
    with kombu.Connection(amqp_url) as connection:
        bound = kombu.Queue(f"outbox-{kombu.uuid()}", expires=60)(connection.default_channel)
        bound.declare()
        yield bound


@pytest.fixture
def app(database: Database, amqp_url: str, queue: Any) -> Any:
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = database.sqlalchemy_url
    app.config["KOMBU_POOLS"] = {"default": {"URL": amqp_url, "OUTBOX": True}}
    db = SQLAlchemy(metadata=metadata)
    db.init_app(app)
    pools = KombuPools(app)

    @app.post("/orders/<int:number>")
    def order(number: int) -> str:
        message_id = pools.publish_on_commit(db.session, number, queue.name, key="a")
        if number < 0:
            db.session.rollback()
        db.session.commit()
        return message_id

    @app.post("/nowhere")
    def nowhere() -> str:
        message_id = pools.publish_on_commit(db.session, 1, f"{queue.name}-nobody")
        db.session.commit()
        return message_id

    with app.app_context():
        db.create_all()
        yield app
        db.session.remove()
        for engine in db.engines.values():
            engine.dispose()
    app.extensions["kombu_pools"].reset()


@pytest.fixture
def invoke(app: Flask) -> Invoke:
    runner = app.test_cli_runner()

    def carry_out(*arguments: str) -> tuple[int, str]:
        result = runner.invoke(args=["kombu-pools", *arguments])
        return result.exit_code, result.output

    return carry_out


def test_an_order_arrives_by_the_relay(app: Flask, invoke: Invoke, queue: Any) -> None:
    client = app.test_client()
    for number in (1, 2, 3):
        assert client.post(f"/orders/{number}").status_code == 200
    assert bodies(queue) == []
    code, output = invoke("relay", "--once")
    assert code == 0, output
    assert "3 delivered, 0 dead" in output
    assert bodies(queue) == [1, 2, 3]
    assert invoke("outbox", "status") == (0, "the outbox is empty\n")


def test_a_dead_row_is_shown_requeued_and_purged(app: Flask, invoke: Invoke) -> None:
    app.test_client().post("/nowhere")
    assert invoke("relay", "--once")[0] == 0
    code, output = invoke("outbox", "status", "--format", "json")
    assert code == 0
    (row,) = json.loads(output)["aliases"]
    assert (row["alias"], row["waiting"], row["dead"]) == ("default", 0, 1)
    assert "DEAD" in invoke("outbox", "status")[1]
    assert invoke("outbox", "requeue", "--dry-run") == (0, "1 row would be requeued\n")
    assert invoke("outbox", "requeue", "--reason", "no such text")[1] == "0 rows requeued\n"
    assert invoke("outbox", "requeue", "--reason", "NO_ROUTE")[1] == "1 row requeued\n"
    assert invoke("outbox", "status")[1].split()[7] == "1"
    assert invoke("relay", "--once")[0] == 0
    assert invoke("outbox", "purge", "--older-than", "3600")[1] == "0 rows purged\n"
    assert invoke("outbox", "purge", "--using", "default")[1] == "1 row purged\n"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("relay", "--batch", "0", "--lease", "0"), "batch must be"),
        (("relay", "--lease", "3"), "lease is 3 s"),
        (("relay", "--using", "orders"), "orders"),
        (("outbox", "status", "--dry-run"), "--dry-run cannot be used with status"),
        (("outbox", "purge", "--older-than", "-1"), "--older-than takes seconds from 0"),
        (("outbox", "status", "--database", "x"), "has no database 'x'"),
    ],
)
def test_wrong_arguments_are_told(invoke: Invoke, arguments: tuple[str, ...], words: str) -> None:
    code, output = invoke(*arguments)
    assert (code, words in output) == (2, True), output


def test_missing_tables_are_told(app: Flask, invoke: Invoke) -> None:
    db = app.extensions["sqlalchemy"]
    db.session.remove()
    metadata.drop_all(db.engine)
    for arguments in (("relay", "--once"), ("outbox", "status")):
        code, output = invoke(*arguments)
        assert code == 2
        assert "migrate the database" in output


@pytest.mark.broker
def test_an_application_without_a_database_is_told(amqp_url: str) -> None:
    app = Flask("bare")
    app.config["KOMBU_POOLS_URL"] = amqp_url
    KombuPools(app)
    result = app.test_cli_runner().invoke(args=["kombu-pools", "relay", "--once"])
    assert result.exit_code == 2
    assert "set KOMBU_POOLS_OUTBOX to an engine of SQLAlchemy or its URL" in result.output


@pytest.mark.broker
def test_an_engine_of_its_own(amqp_url: str, sqlite: Database) -> None:
    app = Flask("bare")
    app.config["KOMBU_POOLS_URL"] = amqp_url
    app.config["KOMBU_POOLS_OUTBOX"] = sqlite.sqlalchemy_url
    KombuPools(app)
    result = app.test_cli_runner().invoke(args=["kombu-pools", "outbox", "status"])
    assert result.exit_code == 2
    assert "it cannot be read" in result.output
