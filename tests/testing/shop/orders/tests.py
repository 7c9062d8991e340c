"""The views of orders."""

from django.test import TestCase, TransactionTestCase

from django_app.testing import PublishedMixin


class PlaceTest(PublishedMixin, TestCase):
    def test_an_order_is_announced_noted_and_charged(self) -> None:
        self.client.get("/orders/7/")
        self.assertPublished(queue="orders", body={"order": 7}, on_commit=True, times=1)
        self.assertPublished(using="audit", exchange="audit", queue="audit", times=1)
        task = self.assertPublished(task="billing.tasks.charge", on_commit=True).one().task
        assert task is not None
        self.assertEqual(task.args, [7])

    def test_a_refused_order_is_not(self) -> None:
        self.client.get("/orders/0/")
        self.assertNothingPublished()


class PlaceInATransactionTest(PublishedMixin, TransactionTestCase):
    def test_an_order_is_announced_at_the_commit(self) -> None:
        self.client.get("/orders/8/")
        self.assertPublished(body={"order": 8}, queue="orders")


class StatusTest(PublishedMixin, TestCase):
    async def test_a_coroutine_publishes(self) -> None:
        response = await self.async_client.get("/orders/7/status/")
        self.assertEqual(response.status_code, 200)
        self.assertPublished(body={"status of": 7}, queue="orders")

    def test_so_it_does_under_wsgi(self) -> None:
        self.client.get("/orders/9/status/")
        self.assertPublished(body={"status of": 9})
