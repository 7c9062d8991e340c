"""The tasks of billing."""

import unittest

from kombu.exceptions import OperationalError

from billing.tasks import charge, remind
from kombu_pools_ext.testing import PublishedMixin, brokers


class TasksTest(PublishedMixin, unittest.TestCase):
    def test_a_task_sends_another(self) -> None:
        remind(3)
        self.assertPublished(task=charge.name, queue="celery")

    def test_delay_says_so_if_the_broker_is_down(self) -> None:
        with brokers["default"].down(), self.assertRaises(OperationalError):
            charge.apply_async((3,), retry=False)
        self.assertNothingPublished()
