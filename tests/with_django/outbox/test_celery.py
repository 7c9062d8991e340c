from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import celery
import pytest
from celery.exceptions import Retry
from celery.signals import after_task_publish
from django.core.management import call_command
from django.db import transaction
from kombu.exceptions import EncodeError, OperationalError

from django_app.outbox import bulk
from django_app.outbox.models import OutboxMessage
from tests.databases import Database
from tests.with_django.test_celery_on_commit import Shop

from .conftest import Use, make_tables

NOWHERE = "amqp://guest:guest@localhost:1//"


class Undone(Exception):
    """What a test rolls a transaction back with."""


@pytest.fixture
def make_shop(configure: Callable[..., None], memory_url: str, queue: str) -> Iterator[Any]:
    made: list[Shop] = []

    def make(url: str = memory_url, outbox: bool = True, **conf: Any) -> Shop:
        configure({"default": {"URL": url, "OUTBOX": outbox}})
        made.append(Shop(url, queue, **conf))
        return made[-1]

    yield make
    for one in made:
        one.app.close()


@pytest.fixture
def shop(make_shop: Callable[..., Shop], tables: Database) -> Shop:
    return make_shop()


@pytest.fixture
def shop_in_a_file(make_shop: Callable[..., Shop], tables_in_a_file: Database) -> Shop:
    return make_shop()


def relayed(shop: Shop, **options: Any) -> list[Any]:
    """The arguments of the tasks that a relay brings to the queue."""
    call_command("kombu_pools", "relay", "--once", **options)
    return shop.arguments()


def test_a_task_of_a_transaction_becomes_a_row_of_it(shop: Shop) -> None:
    with transaction.atomic():
        result = shop.charge.delay(1)
        shop.charge.apply_async((2,), countdown=60)
        assert isinstance(shop.charge.delay_on_commit(3), str)
        shop.charge.apply_async_on_commit((4,), {"count": 5})
    assert shop.arrived() == []
    assert OutboxMessage.objects.count() == 4
    call_command("kombu_pools", "relay", "--once")
    messages = shop.arrived()
    assert [message.payload[0] for message in messages] == [[1], [2], [3], [4]]
    assert messages[0].headers["id"] == result.id
    assert messages[1].headers["eta"] is not None
    assert all(message.properties["message_id"] for message in messages)


def test_a_rolled_back_transaction_takes_its_tasks_along(shop: Shop) -> None:
    with transaction.atomic():
        shop.charge.delay(1)
        with pytest.raises(Undone), transaction.atomic():
            shop.charge.delay(2)
            shop.charge.delay_on_commit(3)
            raise Undone
    assert relayed(shop) == [[1]]


def test_a_broker_that_is_away_keeps_no_task_from_being_called(
    make_shop: Callable[..., Shop], tables_in_a_file: Database
) -> None:
    shop = make_shop(NOWHERE)
    with transaction.atomic():
        shop.charge.delay(1)
        shop.charge.delay_on_commit(2)
    shop.charge.delay_on_commit(3)
    assert OutboxMessage.objects.count() == 3
    with pytest.raises(OperationalError):
        shop.charge.delay(4)


def test_outside_a_transaction_delay_sends_and_delay_on_commit_writes(shop_in_a_file: Shop) -> None:
    shop_in_a_file.charge.delay(1)
    assert shop_in_a_file.arguments() == [[1]]
    shop_in_a_file.charge.delay_on_commit(2)
    assert shop_in_a_file.arguments() == []
    assert relayed(shop_in_a_file) == [[2]]


def test_a_task_goes_where_its_transaction_is(
    shop_in_a_file: Shop, use: Use, tmp_path_factory: pytest.TempPathFactory
) -> None:
    use("other", Database("sqlite", str(tmp_path_factory.mktemp("other") / "database")))
    make_tables("other")
    with transaction.atomic(using="other"):
        shop_in_a_file.charge.apply_async_on_commit((1,), db="other")
    assert OutboxMessage.objects.count() == 0
    assert OutboxMessage.objects.using("other").count() == 1
    assert relayed(shop_in_a_file, database="other") == [[1]]


def test_without_the_setting_tasks_wait_in_memory(
    make_shop: Callable[..., Shop], tables_in_a_file: Database
) -> None:
    shop = make_shop(outbox=False)
    with transaction.atomic():
        shop.charge.delay_on_commit(1)
        assert OutboxMessage.objects.count() == 0
    assert shop.arguments() == [[1]]


def test_tasks_are_collected_by_bulk(shop_in_a_file: Shop) -> None:
    with transaction.atomic(), bulk():
        for number in range(100):
            shop_in_a_file.charge.delay(number)
        assert OutboxMessage.objects.count() == 0
    assert OutboxMessage.objects.count() == 100


def test_a_mistake_is_told_at_the_call(shop_in_a_file: Shop) -> None:
    with transaction.atomic():
        with pytest.raises(EncodeError):
            shop_in_a_file.charge.delay_on_commit(object())
        with pytest.raises(TypeError):
            shop_in_a_file.charge.delay_on_commit()
        shop_in_a_file.charge.delay_on_commit(1)
    assert relayed(shop_in_a_file) == [[1]]


@pytest.mark.parametrize("protocol", [1, 2])
def test_a_task_that_is_tried_again_is_sent_although_its_transaction_is_rolled_back(
    make_shop: Callable[..., Shop], tables_in_a_file: Database, protocol: int
) -> None:
    shop = make_shop(task_protocol=protocol)

    @shop.app.task(name="shop.again", bind=True, shared=False)
    def again(self: Any) -> None:
        with transaction.atomic():
            self.retry(countdown=0)

    again.push_request(
        args=(), kwargs={}, retries=0, called_directly=False, id="task", is_eager=False
    )
    try:
        with pytest.raises(Retry):
            again.run()
    finally:
        again.pop_request()
    assert OutboxMessage.objects.count() == 0
    assert len(shop.arrived()) == 1


def test_the_event_about_a_task_goes_with_it(
    make_shop: Callable[..., Shop], tables_in_a_file: Database
) -> None:
    shop = make_shop(NOWHERE, task_send_sent_event=True)
    with transaction.atomic():
        shop.charge.delay(1)
    rows = OutboxMessage.objects.order_by("id")
    assert [row.routing_key for row in rows] == [shop.queue, "task.sent"]


def test_signals_of_celery_come_with_the_call(shop_in_a_file: Shop) -> None:
    heard: list[str] = []

    def note(sender: Any, headers: Any, **kwargs: Any) -> None:
        heard.append(headers["id"])

    after_task_publish.connect(note, sender="shop.charge")
    try:
        with transaction.atomic():
            result = shop_in_a_file.charge.delay(1)
            assert heard == [result.id]
    finally:
        after_task_publish.disconnect(note, sender="shop.charge")


def test_a_group_and_a_chain_go_by_the_outbox(shop_in_a_file: Shop) -> None:
    charge = shop_in_a_file.charge
    with transaction.atomic():
        celery.group(charge.si(1), charge.si(2), app=shop_in_a_file.app).delay()
        celery.chain(charge.si(3), charge.si(4), app=shop_in_a_file.app).delay()
    assert relayed(shop_in_a_file) == [[1], [2], [3]]


def test_an_eager_task_runs_at_the_commit(
    make_shop: Callable[..., Shop], tables_in_a_file: Database
) -> None:
    shop = make_shop(task_always_eager=True)
    with transaction.atomic():
        shop.charge.delay_on_commit(1)
        assert shop.ran == []
    assert shop.ran == [(1, 1)]
    assert OutboxMessage.objects.count() == 0
