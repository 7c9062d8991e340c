from django.test import SimpleTestCase, TestCase

from django_app.outbox.models import OutboxMessage
from django_app.testing import PublishedMixin


class OrdersTest(PublishedMixin, SimpleTestCase):
    """``python manage.py test``, which needs no broker."""

    def test_an_order_is_published(self) -> None:
        response = self.client.post("/orders/", {"order": 7})
        assert response.status_code == 201
        self.assertPublished(queue="orders", body=response.json(), times=1)

    def test_an_order_of_the_form_is(self) -> None:
        assert self.client.post("/", {"order": 7}).status_code == 302
        assert self.published.one().body["order"] == 7

    def test_a_wrong_one_is_not(self) -> None:
        assert self.client.post("/orders/", {"order": "x"}).status_code == 400
        self.assertNothingPublished()

    def test_many_are_published_in_order(self) -> None:
        assert self.client.post("/orders/up-to/", {"order": 3}).status_code == 201
        assert [one.body["order"] for one in self.published.to("orders")] == [1, 2, 3]


class InvoicesTest(PublishedMixin, TestCase):
    def test_an_invoice_waits_in_the_outbox(self) -> None:
        response = self.client.post("/invoices/", {"order": 7})
        assert response.status_code == 202
        row = OutboxMessage.objects.get()
        assert row.message_id == response.json()["message_id"]
        assert (row.alias, row.routing_key) == ("invoices", "invoices")
        # What a relay will do, this has done when it looks.
        self.assertPublished(queue="invoices", on_commit=True, times=1)
        assert not OutboxMessage.objects.exists()
