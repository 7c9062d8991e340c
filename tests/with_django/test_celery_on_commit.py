"""``delay_on_commit`` of an adopted application: what is checked before the commit, and what happens after it."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import celery
import kombu
import pydantic
import pytest
from celery.contrib.django.task import DjangoTask
from celery.exceptions import QueueNotFound
from celery.signals import before_task_publish
from django.db import transaction
from django.utils.functional import lazy
from django.utils.translation import get_language, override
from kombu.exceptions import EncodeError, OperationalError, SerializerNotInstalled

from django_app import publish_on_commit
from django_app.celery_on_commit import apply_async_on_commit, delay_on_commit, offer_to
from django_app.conf import project_pools
from kombu_pools_ext.contrib.celery import CannotAdopt, adopt
from kombu_pools_ext.contrib.celery.adoption import Adoption
from kombu_pools_ext.errors import PublishReturned

LOGGER = "kombu_pools_ext.django"
SECRET = "s3cr3t-word"

language = lazy(lambda: f"text in {get_language()}", str)


class Shop:
    """A Celery application over the alias ``default``."""

    def __init__(self, url: str, queue: str, task_cls: Any = DjangoTask, **conf: Any) -> None:
        self.url = url
        self.app = celery.Celery(
            "shop", broker=url, backend="disabled://", task_cls=task_cls, set_as_current=False
        )
        self.app.conf.update(
            task_default_queue=queue,
            task_default_exchange=queue,
            task_default_routing_key=queue,
            **conf,
        )
        self.queue = queue
        self.ran: list[Any] = []

        @self.app.task(name="shop.charge", shared=False)
        def charge(order: Any, count: Any = 1) -> None:
            self.ran.append((order, count))

        self.charge = charge
        adopt(self.app, pools=project_pools)
        self.app.finalize()
        offer_to(self.app)

    def arrived(self) -> list[kombu.Message]:
        """Take the tasks out of its queue."""
        found = []
        with kombu.Connection(self.url) as connection:
            bound = self.app.amqp.queues[self.queue](connection.default_channel)
            bound.declare()
            while (message := bound.get(no_ack=True)) is not None:
                found.append(message)
        return found

    def arguments(self) -> list[Any]:
        return [message.payload[0] for message in self.arrived()]


MakeShop = Callable[..., Shop]


@pytest.fixture
def make_shop(configure: Callable[..., None], memory_url: str, queue: str) -> Iterator[MakeShop]:
    made: list[Shop] = []

    def make(**conf: Any) -> Shop:
        configure()
        made.append(Shop(memory_url, queue, **conf))
        return made[-1]

    yield make
    for one in made:
        one.app.close()


@pytest.fixture
def shop(make_shop: MakeShop) -> Shop:
    return make_shop()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert SECRET not in caplog.text
    return [one.getMessage() for one in caplog.records if one.name == LOGGER]


# -- as Celery's -------------------------------------------------------------------------------------------------------


def test_a_task_is_sent_after_the_commit_and_not_after_a_rollback(shop: Shop) -> None:
    with transaction.atomic():
        shop.charge.delay_on_commit(1, count=2)
        shop.charge.apply_async_on_commit((3,), {"count": 4})
        assert shop.arrived() == []
    assert [message.payload[:2] for message in shop.arrived()] == [
        [[1], {"count": 2}],
        [[3], {"count": 4}],
    ]
    with pytest.raises(ZeroDivisionError):
        with transaction.atomic():
            shop.charge.delay_on_commit(1)
            1 / 0  # it raises
    assert shop.arrived() == []


def test_outside_a_transaction_a_task_is_sent_at_once(shop: Shop) -> None:
    shop.charge.delay_on_commit(1)
    assert shop.arguments() == [[1]]


def test_a_savepoint_that_is_rolled_back_takes_its_tasks_along(shop: Shop) -> None:
    with transaction.atomic():
        shop.charge.delay_on_commit(1)
        with pytest.raises(ZeroDivisionError):
            with transaction.atomic():
                shop.charge.delay_on_commit(2)
                1 / 0  # it raises
        shop.charge.delay_on_commit(3)
    assert shop.arguments() == [[1], [3]]


def test_the_id_is_returned_at_once_and_is_the_tasks(shop: Shop) -> None:
    with transaction.atomic():
        first = shop.charge.delay_on_commit(1)
        second = shop.charge.apply_async_on_commit((2,), task_id="mine")
    assert second == "mine"
    assert [message.headers["id"] for message in shop.arrived()] == [first, "mine"]


def test_options_are_those_of_apply_async(shop: Shop) -> None:
    then = shop.charge.si(5)
    with transaction.atomic():
        shop.charge.apply_async_on_commit(
            (1,), None, None, None, then, priority=3, headers={"own": 1}, countdown=60
        )
    (message,) = shop.arrived()
    assert message.properties["priority"] == 3
    assert message.headers["own"] == 1
    assert message.headers["eta"] is not None
    assert message.payload[2]["callbacks"][0]["args"] == [5]


def test_a_countdown_begins_at_the_commit(shop: Shop) -> None:
    with transaction.atomic():
        shop.charge.apply_async_on_commit((1,), countdown=60)
        registered = datetime.now(UTC)
        while datetime.now(UTC) == registered:
            pass
        before = datetime.now(UTC)
    (message,) = shop.arrived()
    assert datetime.fromisoformat(message.headers["eta"]) >= before + timedelta(seconds=60)


def test_another_database_and_robust_are_options(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction.atomic(using="other"):
        with transaction.atomic():
            shop.charge.apply_async_on_commit((1,), db="other")
        assert shop.arrived() == []
    assert shop.arguments() == [[1]]
    monkeypatch.setattr(Adoption, "publish", _fails(OperationalError("the broker is down")))
    with caplog.at_level(logging.ERROR), transaction.atomic():
        shop.charge.apply_async_on_commit((2,), robust=True)
    assert len(told(caplog)) == 1


@pytest.mark.filterwarnings("ignore::celery.exceptions.AlwaysEagerIgnored")
def test_an_eager_task_runs_at_the_commit(make_shop: MakeShop) -> None:
    shop = make_shop(task_always_eager=True, task_eager_propagates=True, task_routes={})
    with transaction.atomic():
        shop.charge.delay_on_commit(1, 2)
        assert shop.ran == []
    assert shop.ran == [(1, 2)]
    with pytest.raises(TypeError):
        shop.charge.delay_on_commit()
    with pytest.raises(EncodeError):
        shop.charge.delay_on_commit(object())


# -- before the commit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, options, error",
    [
        ((), {}, TypeError),
        ((1, 2, 3), {}, TypeError),
        ((object(),), {}, EncodeError),
        ((1,), {"priority": "high"}, TypeError),
        ((1,), {"priority": 256}, ValueError),
        ((1,), {"routing_key": "k" * 256}, ValueError),
        ((1,), {"headers": {"own": object()}}, TypeError),
        ((1,), {"serializer": "jsno"}, SerializerNotInstalled),
        ((1,), {"compression": "zilb"}, (LookupError, ValueError)),
        ((1,), {"countdown": "soon"}, TypeError),
        ((1,), {"expires": 20 * 365 * 86400}, ValueError),
        ((1,), {"expires": datetime(2126, 1, 1, tzinfo=UTC)}, ValueError),
        ((1,), {"eta": 5}, AttributeError),
        ((1,), {"link": object()}, EncodeError),
        (5, {}, TypeError),
    ],
    ids=str,
)
def test_a_mistake_raises_at_the_call_and_rolls_back(
    shop: Shop, args: Any, options: dict[str, Any], error: Any
) -> None:
    with pytest.raises(error):
        with transaction.atomic():
            shop.charge.delay_on_commit(0)
            try:
                shop.charge.apply_async_on_commit(args, **options)
            except Exception:
                # It is the call that raises, and not the end of the block.
                assert transaction.get_connection().in_atomic_block
                raise
    assert shop.arrived() == []


def test_a_queue_that_is_not_configured_is_found_before_the_commit(make_shop: MakeShop) -> None:
    shop = make_shop(task_create_missing_queues=False)
    with pytest.raises(QueueNotFound):
        with transaction.atomic():
            shop.charge.apply_async_on_commit((1,), queue="chagre")


def test_limits_of_a_task_that_contradict_each_other_are_found_before_the_commit(
    shop: Shop,
) -> None:
    shop.charge.soft_time_limit, shop.charge.time_limit = 5, 4
    with pytest.raises(ValueError, match="soft_time_limit"):
        shop.charge.delay_on_commit(1)


def test_another_broker_is_found_before_the_commit(make_shop: MakeShop) -> None:
    shop = make_shop()
    shop.app.conf.broker_url = "amqp://elsewhere//"
    with pytest.raises(CannotAdopt, match="@elsewhere"):
        with transaction.atomic():
            shop.charge.delay_on_commit(1)


def test_a_task_without_typing_is_not_compared_with_its_signature(shop: Shop) -> None:
    shop.charge.typing = False
    with transaction.atomic():
        shop.charge.delay_on_commit(1, 2, 3, 4)
    assert shop.arguments() == [[1, 2, 3, 4]]


def test_the_checks_send_no_signal(shop: Shop) -> None:
    seen: list[Any] = []

    def note(**what: Any) -> None:
        seen.append(what)

    before_task_publish.connect(note)
    try:
        with transaction.atomic():
            shop.charge.delay_on_commit(1)
            assert seen == []
        assert len(seen) == 1
    finally:
        before_task_publish.disconnect(note)


def test_what_is_changed_after_the_call_is_not_sent_changed(shop: Shop) -> None:
    order, headers = {"lines": [1], "tags": (1, [2])}, {"own": [1]}
    with transaction.atomic():
        shop.charge.apply_async_on_commit((order,), headers=headers)
        order["lines"].append(object())
        order["tags"][1].append(object())
        headers["own"].append(2)
    (message,) = shop.arrived()
    assert message.payload[0] == [{"lines": [1], "tags": [1, [2]]}]
    assert message.headers["own"] == [1]


def test_lazy_text_is_rendered_in_the_language_of_the_call(shop: Shop) -> None:
    with transaction.atomic():
        with override("de"):
            shop.charge.delay_on_commit({"name": language()})
    assert shop.arguments() == [[{"name": "text in de"}]]


def test_values_that_only_pickle_can_write_arrive(make_shop: MakeShop) -> None:
    shop = make_shop(task_serializer="pickle")
    circle: list[Any] = []
    circle.append(circle)
    with transaction.atomic():
        shop.charge.delay_on_commit(circle, {1, 2})
    (message,) = shop.arrived()
    args = pickle.loads(message.body)[0]  # our own
    assert args[0][0] is args[0]
    assert args[1] == {1, 2}


@pytest.mark.skipif(
    not hasattr(celery.Task, "_dump_pydantic_arguments"), reason="this Celery writes no models"
)
def test_models_of_pydantic_are_written_as_celery_does(shop: Shop) -> None:
    class Order(pydantic.BaseModel):
        number: int

    def pay(order: Any) -> None:
        raise NotImplementedError

    # Celery evaluates annotations that are text among the names of the module.
    pay.__annotations__ = {"order": Order}
    task = shop.app.task(name="shop.pay", shared=False, pydantic=True)(pay)
    with transaction.atomic():
        task.delay_on_commit(Order(number=1))
    assert shop.arguments() == [[{"number": 1}]]


# -- after it ----------------------------------------------------------------------------------------------------------


def _fails(error: BaseException) -> Callable[..., None]:
    def publish(*args: Any, **kwargs: Any) -> None:
        raise error

    return publish


def test_each_task_that_is_not_sent_is_logged_with_its_line(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Adoption, "publish", _fails(OperationalError("the broker is down")))
    with pytest.raises(OperationalError, match="the broker is down") as caught:
        with transaction.atomic():
            ids = [shop.charge.delay_on_commit(SECRET, number) for number in range(12)]
    lines = told(caplog)
    assert [
        one for one, line in zip(ids, lines, strict=True) if f"shop.charge[{one}]" in line
    ] == ids
    assert all("test_celery_on_commit.py" in line for line in lines)
    assert lines[0].endswith("OperationalError: the broker is down")
    # Each would wait for the broker as long as the first.
    assert all(line.endswith("it was not sent, after OperationalError") for line in lines[1:])
    assert caught.value.__notes__ == [*lines[:10], "and 2 more, each of which is in the log"]


def test_a_task_that_fails_by_itself_does_not_keep_the_others(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Adoption.publish

    def returned(self: Any, body: Any, *args: Any) -> None:
        if body[0] == (2,):
            raise PublishReturned("its-id", 312, "NO_ROUTE", "", "nowhere")
        publish(self, body, *args)

    monkeypatch.setattr(Adoption, "publish", returned)
    with pytest.raises(PublishReturned):
        with transaction.atomic():
            for order in (1, 2, 3):
                shop.charge.delay_on_commit(order)
    assert shop.arguments() == [[1], [3]]
    (line,) = told(caplog)
    assert "PublishReturned: " in line
    assert "NO_ROUTE" in line


def test_an_interruption_is_raised_and_what_was_not_sent_is_logged(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Adoption, "publish", _fails(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        with transaction.atomic():
            shop.charge.delay_on_commit(1)
            shop.charge.delay_on_commit(2)
    first, second = told(caplog)
    assert first.endswith("KeyboardInterrupt")
    assert second.endswith("it was not sent, after KeyboardInterrupt")


def test_tasks_and_messages_keep_their_order(shop: Shop, queue: str) -> None:
    with transaction.atomic():
        shop.charge.delay_on_commit(1)
        publish_on_commit([["message"]], queue)
        shop.charge.delay_on_commit(2)
    assert shop.arguments() == [[1], ["message"], [2]]


# -- whose tasks have it -----------------------------------------------------------------------------------------------


def test_a_task_class_with_methods_of_its_own_keeps_them(make_shop: MakeShop) -> None:
    class Own(DjangoTask):  # type: ignore[misc]  # Celery has no types
        def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
            raise NotImplementedError

    shop = make_shop(task_cls=Own)
    with pytest.raises(NotImplementedError):
        shop.charge.delay_on_commit(1)
    with pytest.raises(TypeError):
        shop.charge.apply_async_on_commit(())
    assert DjangoTask.apply_async_on_commit is not apply_async_on_commit


def test_a_task_class_that_is_not_of_django_gets_nothing(make_shop: MakeShop) -> None:
    shop = make_shop(task_cls=celery.Task)
    assert not hasattr(shop.charge, "delay_on_commit")


def test_the_functions_take_every_task(make_shop: MakeShop) -> None:
    shop = make_shop(task_cls=celery.Task)
    with transaction.atomic():
        one = delay_on_commit(shop.charge, 1, count=2)
        with pytest.raises(TypeError):
            apply_async_on_commit(shop.charge, (), {"cuont": 1})
    (message,) = shop.arrived()
    assert message.headers["id"] == one


def test_an_application_that_is_not_adopted_is_checked_too(memory_url: str) -> None:
    with celery.Celery(broker=memory_url, set_as_current=False) as app:

        @app.task(name="shop.charge", shared=False)
        def charge(order: Any) -> None:
            raise NotImplementedError

        with transaction.atomic():
            with pytest.raises(TypeError):
                delay_on_commit(charge)
            with pytest.raises(EncodeError):
                delay_on_commit(charge, object())
            transaction.set_rollback(True)


@pytest.mark.parametrize(
    "headers, error", [({"own": object()}, TypeError), ({"own": {1}}, TypeError)]
)
def test_what_amqp_cannot_carry_is_found_without_a_connection(
    configure: Callable[..., None], queue: str, headers: dict[str, Any], error: Any
) -> None:
    # Nobody listens there.
    url = "amqp://localhost:9//"
    configure(URL=url)
    shop = Shop(url, queue)
    with transaction.atomic():
        shop.charge.delay_on_commit(1)
        with pytest.raises(error, match="headers"):
            shop.charge.apply_async_on_commit((1,), headers=headers)
        transaction.set_rollback(True)
    shop.app.close()
