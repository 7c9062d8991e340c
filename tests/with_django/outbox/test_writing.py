from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, modify_settings, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path
from kombu import Queue
from kombu.exceptions import EncodeError

from django_app import publish_on_commit
from django_app.outbox import bulk, claim
from django_app.outbox.database import DjangoDatabase
from django_app.outbox.models import InboxMessage, OutboxMessage
from kombu_pools_ext.outbox import Outbox
from tests.databases import Database

from .conftest import Use, make_tables

#: Nobody listens there: what is written to the outbox needs no broker.
NOWHERE = "amqp://guest:guest@localhost:1//"


class Undone(Exception):
    """What a test rolls a transaction back with."""


@pytest.fixture(autouse=True)
def _in_the_outbox(configure: Callable[..., None]) -> None:
    configure({"default": {"URL": NOWHERE, "OUTBOX": True}, "direct": {"URL": NOWHERE}})


def bodies(db: str = "default") -> list[Any]:
    """Those of the rows, in their order: text as it is, and JSON read."""
    rows = OutboxMessage.objects.using(db).order_by("id")
    texts = [bytes(row.body).decode() for row in rows]
    return [json.loads(text) if text[0] in "{0123456789" else text for text in texts]


def test_a_row_comes_with_the_commit(tables: Database) -> None:
    with transaction.atomic():
        message_id = publish_on_commit({"order": 1}, "orders", headers={"a": 1}, key="k")
    (row,) = OutboxMessage.objects.all()
    assert (row.message_id, row.alias, row.order_key) == (message_id, "default", "k")
    assert (row.exchange, row.routing_key, row.state) == ("", "orders", 0)
    assert json.loads(bytes(row.body)) == {"order": 1}
    (claimed,) = Outbox(DjangoDatabase()).claim("default", "t", 10, 60.0).rows
    assert claimed.message.arguments["headers"] == {"a": 1}


def test_a_rolled_back_transaction_leaves_no_row(tables: Database) -> None:
    with pytest.raises(Undone), transaction.atomic():
        publish_on_commit(1, "orders")
        raise Undone
    assert bodies() == []


def test_a_rolled_back_savepoint_takes_its_rows_along(tables: Database) -> None:
    with transaction.atomic():
        publish_on_commit(1, "orders", key="k")
        with pytest.raises(Undone), transaction.atomic():
            publish_on_commit(2, "orders", key="k")
            raise Undone
        with transaction.atomic():
            publish_on_commit(3, "orders", key="k")
    assert bodies() == [1, 3]


def test_outside_a_transaction_a_row_is_there_at_once(tables: Database) -> None:
    publish_on_commit(1, "orders", key="k")
    assert not connection.in_atomic_block
    assert bodies() == [1]


def test_a_row_goes_where_the_transaction_is(
    tables: Database, use: Use, tmp_path_factory: pytest.TempPathFactory
) -> None:
    use("other", Database("sqlite", str(tmp_path_factory.mktemp("other") / "database")))
    make_tables("other")
    with pytest.raises(Undone), transaction.atomic():
        with transaction.atomic(using="other"):
            publish_on_commit("other", "orders", db="other")
        publish_on_commit("default", "orders")
        raise Undone
    assert (bodies(), bodies("other")) == ([], ["other"])


@pytest.mark.parametrize("using, outbox", [("direct", True), ("default", None), ("default", True)])
def test_the_call_or_the_alias_says_so(
    tables_in_a_file: Database, using: str, outbox: bool | None
) -> None:
    with transaction.atomic():
        publish_on_commit(1, "orders", using=using, outbox=outbox)
    assert [row.alias for row in OutboxMessage.objects.all()] == [using]


@pytest.mark.parametrize("using, outbox", [("direct", None), ("direct", False), ("default", False)])
def test_without_the_outbox_no_row_is_written(
    tables_in_a_file: Database,
    memory_url: str,
    configure: Callable[..., None],
    using: str,
    outbox: Any,
) -> None:
    configure({"default": {"URL": memory_url, "OUTBOX": True}, "direct": {"URL": memory_url}})
    with transaction.atomic():
        message_id = publish_on_commit(1, "orders", using=using, outbox=outbox)
        assert OutboxMessage.objects.count() == 0
    assert isinstance(message_id, str)
    assert bodies() == []


def test_the_message_id_of_the_call_is_kept(tables_in_a_file: Database) -> None:
    assert publish_on_commit(1, "orders", message_id="mine") == "mine"
    assert OutboxMessage.objects.get().message_id == "mine"


@pytest.mark.parametrize(
    "given, error",
    [
        ({"body": object()}, EncodeError),
        ({"key": ""}, ValueError),
        ({"key": 7}, TypeError),
        ({"key": "k" * 256}, ValueError),
        ({"routing_key": "r" * 256}, ValueError),
        ({"outbox": "yes"}, TypeError),
        ({"outbox": False, "key": "k"}, ValueError),
        ({"using": "direct", "key": "k"}, ValueError),
    ],
)
def test_a_mistake_is_told_at_the_call_and_leaves_the_transaction_usable(
    tables_in_a_file: Database, given: dict[str, Any], error: type[Exception]
) -> None:
    with transaction.atomic():
        with pytest.raises(error):
            publish_on_commit(**{"body": 1, "routing_key": "orders", **given})
        publish_on_commit("after", "orders")
    assert bodies() == ["after"]


def test_a_body_that_is_changed_later_is_written_as_it_was(tables_in_a_file: Database) -> None:
    body = {"order": 1}
    with transaction.atomic():
        publish_on_commit(body, "orders")
        body["order"] = 2
    assert bodies() == [{"order": 1}]


def test_a_message_without_a_key_costs_one_statement(tables_in_a_file: Database) -> None:
    with transaction.atomic(), CaptureQueriesContext(connection) as statements:
        publish_on_commit(1, "orders")
    assert len(statements) == 1


def test_a_thousand_messages_are_one_insert(tables: Database) -> None:
    with transaction.atomic(), CaptureQueriesContext(connection) as statements:
        with bulk():
            ids = [publish_on_commit(number, "orders") for number in range(1000)]
            assert len(statements) == 0
    assert len(statements) == 1
    assert bodies() == list(range(1000))
    found = OutboxMessage.objects.order_by("id").values_list("message_id", flat=True)
    assert list(found) == ids


def test_a_bulk_outside_a_transaction_is_one_of_its_own(tables: Database) -> None:
    with bulk():
        publish_on_commit(1, "orders", key="k")
        publish_on_commit(2, "orders", key="k")
        assert bodies() == []
    assert bodies() == [1, 2]


def test_a_savepoint_that_is_rolled_back_within_a_bulk_takes_its_messages_along(
    tables: Database,
) -> None:
    with transaction.atomic(), bulk():
        publish_on_commit(1, "orders")
        with pytest.raises(Undone), transaction.atomic():
            publish_on_commit(2, "orders")
            with transaction.atomic():
                publish_on_commit(3, "orders")
            raise Undone
        with transaction.atomic():
            publish_on_commit(4, "orders")
            with pytest.raises(Undone), transaction.atomic():
                publish_on_commit(5, "orders")
                raise Undone
        publish_on_commit(6, "orders")
    assert bodies() == [1, 4, 6]


def test_a_transaction_within_a_bulk_writes_its_own_messages(tables: Database) -> None:
    with bulk():
        publish_on_commit("collected", "orders")
        with transaction.atomic():
            publish_on_commit("its own", "orders")
        with pytest.raises(Undone), transaction.atomic():
            publish_on_commit("undone", "orders")
            raise Undone
        assert bodies() == ["its own"]
    assert bodies() == ["its own", "collected"]


def test_a_bulk_that_raises_writes_nothing(tables_in_a_file: Database) -> None:
    with transaction.atomic():
        with pytest.raises(Undone), bulk():
            publish_on_commit(1, "orders")
            raise Undone
        publish_on_commit(2, "orders")
    assert bodies() == [2]


def test_a_bulk_within_a_bulk_is_part_of_it(tables_in_a_file: Database) -> None:
    with transaction.atomic(), CaptureQueriesContext(connection) as statements:
        with bulk():
            publish_on_commit(1, "orders")
            with bulk():
                publish_on_commit(2, "orders")
            with pytest.raises(Undone), bulk():
                publish_on_commit(3, "orders")
                raise Undone
            publish_on_commit(4, "orders")
    assert len(statements) == 1
    assert bodies() == [1, 2, 4]


def test_a_bulk_in_a_transaction_within_a_bulk_writes_before_that_one_ends(
    tables: Database,
) -> None:
    with bulk():
        publish_on_commit("collected", "orders")
        with transaction.atomic(), bulk():
            publish_on_commit("its own", "orders")
        assert bodies() == ["its own"]
    assert bodies() == ["its own", "collected"]


@pytest.mark.threads
def test_messages_of_one_key_have_ids_in_the_order_of_their_commits(tables: Database) -> None:
    """The second to write the key waits for the first to commit."""
    written, finish = threading.Event(), threading.Event()

    def first() -> None:
        try:
            with transaction.atomic():
                publish_on_commit("first", "orders", key="k")
                written.set()
                assert finish.wait(30)
        finally:
            connection.close()

    def second() -> None:
        try:
            with transaction.atomic():
                publish_on_commit("second", "orders", key="k")
        finally:
            connection.close()

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert written.wait(30)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    finish.set()
    for thread in threads:
        thread.join(30)
    assert bodies() == ["first", "second"]


# -- views -------------------------------------------------------------------------------------------------------------


def orders(request: HttpRequest) -> HttpResponse:
    publish_on_commit("view", "orders")
    if "fail" in request.GET:
        raise Undone
    return HttpResponse()


def _order() -> None:
    try:
        with transaction.atomic():
            publish_on_commit("async view", "orders")
    finally:
        connection.close()


@transaction.non_atomic_requests
async def async_orders(request: HttpRequest) -> HttpResponse:
    await sync_to_async(_order)()
    return HttpResponse()


@transaction.non_atomic_requests
async def blocking_orders(request: HttpRequest) -> HttpResponse:
    publish_on_commit("blocks", "orders")
    return HttpResponse()


urlpatterns = [
    path("orders/", orders),
    path("async/", async_orders),
    path("blocks/", blocking_orders),
]


@override_settings(ROOT_URLCONF=__name__)
def test_with_atomic_requests_a_row_is_part_of_the_request(
    tables: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    client = Client()
    with pytest.raises(Undone):
        client.get("/orders/?fail=1")
    assert bodies() == []
    assert client.get("/orders/").status_code == 200
    assert bodies() == ["view"]


@override_settings(ROOT_URLCONF=__name__)
def test_an_async_view_writes_in_a_thread(tables: Database) -> None:
    client = AsyncClient()

    async def ask() -> None:
        async with ThreadSensitiveContext():
            assert (await client.get("/async/")).status_code == 200
            with pytest.raises(SynchronousOnlyOperation):
                await client.get("/blocks/")

    asyncio.run(ask())
    assert bodies() == ["async view"]


# -- without the application -------------------------------------------------------------------------------------------


@modify_settings(INSTALLED_APPS={"remove": "django_app.outbox"})
def test_without_its_application_the_outbox_says_what_to_do() -> None:
    with pytest.raises(ImproperlyConfigured, match=r'add "django_app.outbox" to INSTALLED_APPS'):
        publish_on_commit(1, "orders")
    with pytest.raises(ImproperlyConfigured), bulk():
        pass
    with pytest.raises(ImproperlyConfigured):
        claim("m", "c")


# -- receiving once ----------------------------------------------------------------------------------------------------


def test_a_message_is_claimed_once(tables: Database) -> None:
    with transaction.atomic():
        assert claim("m", "a")
        assert not claim("m", "a")
        assert claim("m", "b")
    with transaction.atomic():
        assert not claim("m", "a")
    assert InboxMessage.objects.count() == 2


def test_a_claim_that_is_rolled_back_was_none(tables: Database) -> None:
    with pytest.raises(Undone), transaction.atomic():
        assert claim("m", "a")
        raise Undone
    with transaction.atomic():
        assert claim("m", "a")


def test_a_claim_needs_a_transaction(tables_in_a_file: Database) -> None:
    with pytest.raises(transaction.TransactionManagementError, match=r"transaction\.atomic"):
        claim("m", "a")


def test_declared_queues_come_along(tables_in_a_file: Database) -> None:
    publish_on_commit(1, "orders", declare=[Queue("orders", max_length=5)])
    (row,) = Outbox(DjangoDatabase()).claim("default", "t", 10, 60.0).rows
    (declared,) = row.message.arguments["declare"]
    assert (declared.name, declared.max_length) == ("orders", 5)


def test_an_alias_without_confirms_is_refused() -> None:
    pools = {"default": {"URL": "amqp://localhost:1//", "CONFIRM": False}}
    with (
        override_settings(KOMBU_POOLS=pools),
        pytest.raises(ValueError, match="alias 'default' has no confirms"),
    ):
        publish_on_commit(1, "orders", outbox=True)
