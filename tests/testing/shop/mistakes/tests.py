"""Mistakes that no broker at all, and kombu's in memory, would not show. Each of them fails its test."""

import uuid

from amqp.exceptions import NotFound
from billing.tasks import charge
from django.db import transaction
from django.test import TestCase
from kombu import Exchange, Queue
from kombu.exceptions import EncodeError

from django_app import publish
from django_app.testing import PublishedMixin
from kombu_pools_ext.errors import PublishNacked, PublishReturned

ORDERS = Queue("orders")


class MistakesTest(PublishedMixin, TestCase):
    def test_a_queue_that_nobody_declares(self) -> None:
        with self.assertRaises(PublishReturned):
            publish("x", "ordesr")

    def test_an_exchange_that_nobody_declares(self) -> None:
        with self.assertRaises(NotFound):
            publish("x", "a", exchange="ordesr")

    def test_an_exchange_without_a_queue(self) -> None:
        lonely = Exchange("lonely", "topic")
        with self.assertRaises(PublishReturned):
            publish("x", "a", exchange=lonely, declare=[lonely], mandatory=True)

    def test_a_header_that_amqp_cannot_carry(self) -> None:
        with self.assertRaises(TypeError):
            publish("x", ORDERS, declare=[ORDERS], headers={"id": uuid.uuid4()})

    def test_a_key_that_is_too_long(self) -> None:
        with self.assertRaises(ValueError):
            publish("x", "k" * 300)

    def test_a_priority_that_is_no_number(self) -> None:
        with self.assertRaises(TypeError):
            publish("x", ORDERS, declare=[ORDERS], priority="high")

    def test_a_full_queue(self) -> None:
        full = Queue("full", queue_arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        publish("x", full, declare=[full], using="audit")
        with self.assertRaises(PublishNacked):
            publish("x", full, declare=[full], using="audit")

    def test_an_alias_is_a_broker_of_its_own(self) -> None:
        publish("x", ORDERS, declare=[ORDERS])
        with self.assertRaises(PublishReturned):
            publish("x", ORDERS, using="audit")

    def test_a_task_that_cannot_be_written(self) -> None:
        with self.assertRaises(EncodeError), transaction.atomic():
            charge.delay_on_commit(object())
        self.assertNothingPublished()
