"""``python -m pytest``, which needs no broker."""

from app import create_app
from kombu_pools_ext.testing import Published


def test_an_order_is_published(published: Published) -> None:
    response = create_app().test_client().post("/orders/", data={"order": 7})
    assert response.status_code == 201
    published.assert_published(queue="orders", body=response.json, times=1)


def test_a_wrong_one_is_not(published: Published) -> None:
    assert create_app().test_client().post("/orders/", data={"order": "x"}).status_code == 400
    published.assert_nothing_published()


def test_many_are_published_in_order(published: Published) -> None:
    response = create_app().test_client().post("/orders/up-to/", data={"order": 3})
    assert response.text == "1\n2\n3\n"
    assert [one.body["order"] for one in published.to("orders")] == [1, 2, 3]
