"""Who gets which event. The runner has swapped the brokers: this needs no mixin."""

from django.test import SimpleTestCase

from django_app import connections
from kombu_pools_ext.testing import brokers
from stock.events import announce


class EventsTest(SimpleTestCase):
    def test_the_words_say_who_gets_it(self) -> None:
        announce()
        announce("A-1", "sold-out")
        announce("A-1", "new", "sold-out")
        self.assertEqual(
            [one.queues for one in brokers.published],
            [("everything",), ("everything", "sold-out"), ("everything",)],
        )

    def test_it_can_be_read_back(self) -> None:
        announce("A-1")
        with connections["default"].acquire(timeout=5) as connection:
            with connection.SimpleQueue("everything") as queue:
                self.assertEqual(queue.get(timeout=1).payload, {"words": ["A-1"]})

    def test_nothing_is_left_of_other_tests(self) -> None:
        self.assertEqual(len(brokers.published), 0)
        self.assertNotIn("everything", brokers["default"].vhost().queues)
