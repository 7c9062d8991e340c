from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path

from django_app import publish_on_commit
from django_app.outbox.models import OutboxMessage
from kombu_pools_ext.outbox.dialects import dialect_of
from tests.databases import Database

from .conftest import Use

NOWHERE = "amqp://guest:guest@localhost:1//"
LIST = "/admin/kombu_pools_outbox/outboxmessage/"
SECRET = "s3cr3t-word"
MINUTE = 60_000_000

urlpatterns = [path("admin/", admin.site.urls)]


@pytest.fixture(autouse=True)
def _site(configure: Callable[..., None]) -> Iterator[None]:
    configure({"default": {"URL": NOWHERE, "OUTBOX": True}, "other": {"URL": NOWHERE}})
    with override_settings(ROOT_URLCONF=__name__):
        yield


@pytest.fixture
def everywhere(database: Database, use: Use) -> Database:
    """A migrated database of each vendor in turn."""
    use("default", database)
    call_command("migrate", verbosity=0)
    return database


@pytest.fixture
def migrated(sqlite: Database, use: Use) -> Database:
    use("default", sqlite)
    call_command("migrate", verbosity=0)
    return sqlite


def logged_in(*permissions: str) -> Client:
    """The browser of somebody of the staff."""
    user = User.objects.create_user("somebody", password="password", is_staff=True)
    for name in permissions:
        user.user_permissions.add(
            Permission.objects.get(codename=name, content_type__app_label="kombu_pools_outbox")
        )
    client = Client()
    assert client.login(username="somebody", password="password")
    return client


VIEW, CHANGE, DELETE = (f"{what}_outboxmessage" for what in ("view", "change", "delete"))


def row(**columns: Any) -> OutboxMessage:
    """A row that was written just now; *columns* are what it has become since."""
    message_id = publish_on_commit({"secret": SECRET}, "orders", headers={"token": SECRET})
    OutboxMessage.objects.filter(message_id=message_id).update(**columns)
    return OutboxMessage.objects.get(message_id=message_id)


def now() -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {dialect_of(connection.vendor).now}")
        return int(cursor.fetchone()[0])


def listed(client: Client, query: str = "") -> str:
    response = client.get(f"{LIST}?{query}")
    assert response.status_code == 200
    return response.content.decode()


def page(one: OutboxMessage) -> str:
    return f"{LIST}{one.pk}/change/"


def post(client: Client, action: str, *rows: OutboxMessage, **more: Any) -> str:
    """What the page says after an action."""
    data = {"action": action, "_selected_action": [one.pk for one in rows], **more}
    return client.post(LIST, data, follow=True).content.decode()


def test_rows_are_listed_and_found_by_what_has_become_of_them(everywhere: Database) -> None:
    waiting = row()
    late = row(due_at=now() - 2 * MINUTE, created_at=now() - 60 * MINUTE, order_key="of-the-late")
    dead = row(state=2, reason="returned: NO_ROUTE", attempts=7)
    kept = row(state=1)
    client = logged_in(VIEW)
    found = {
        query: {
            one.message_id
            for one in (waiting, late, dead, kept)
            if one.message_id in listed(client, query)
        }
        for query in (
            "",
            "state=dead",
            "state=late",
            "state=waiting",
            "state=delivered",
            "alias=other",
        )
    }
    everything = {one.message_id for one in (waiting, late, dead, kept)}
    assert found == {
        "": everything,
        "state=dead": {dead.message_id},
        "state=late": {late.message_id},
        "state=waiting": {waiting.message_id, late.message_id},
        "state=delivered": {kept.message_id},
        "alias=other": set(),
    }
    assert "returned: NO_ROUTE" in listed(client, "state=dead")
    assert re.search(r"\b1:0\d:\d\d\b", listed(client, "q=of-the-late"))
    assert dead.message_id in listed(client, "q=NO_ROUTE")
    assert listed(client, "o=5").index(late.message_id)


def test_dead_and_late_rows_are_requeued(everywhere: Database) -> None:
    dead = row(state=2, reason="returned: NO_ROUTE", ended_at=1)
    put_off = row(due_at=now() + 60 * MINUTE)
    claimed = row(due_at=now() + MINUTE, token="of-a-relay")
    told = post(logged_in(VIEW, CHANGE), "requeue", dead, put_off, claimed)
    assert "2 messages to be published again." in told
    assert "1 message left as they are: a relay has them" in told
    rows = OutboxMessage.objects.in_bulk([dead.pk, put_off.pk, claimed.pk])
    assert all(rows[one.pk].state == 0 for one in (dead, put_off, claimed))
    assert all(rows[one.pk].due_at <= now() for one in (dead, put_off))
    assert rows[claimed.pk].due_at == claimed.due_at


def test_who_may_only_look_changes_nothing(migrated: Database) -> None:
    dead = row(state=2)
    client = logged_in(VIEW)
    assert "requeue" not in listed(client)
    post(client, "requeue", dead)
    post(client, "delete_selected", dead, post="yes")
    assert OutboxMessage.objects.get(pk=dead.pk).state == 2
    assert client.post(f"{LIST}{dead.pk}/delete/", {"post": "yes"}).status_code == 403


def test_who_may_not_look_sees_nothing(migrated: Database) -> None:
    one = row()
    client = logged_in()
    assert client.get(LIST).status_code == 403
    assert client.get(page(one)).status_code == 403
    assert Client().get(LIST).status_code == 302


def test_nobody_adds_or_edits(migrated: Database) -> None:
    one = row()
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    assert client.get(f"{LIST}add/").status_code == 403
    shown = client.get(page(one)).content.decode()
    assert 'name="_save"' not in shown
    assert client.post(page(one), {"alias": "other"}).status_code == 403
    assert OutboxMessage.objects.get().alias == "default"


def test_bodies_and_headers_are_for_those_who_may_see_them(migrated: Database) -> None:
    one = row()
    client = logged_in(VIEW, CHANGE, DELETE)
    with CaptureQueriesContext(connection) as statements:
        for shown in (listed(client), client.get(page(one)).content.decode()):
            assert one.message_id in shown
            assert SECRET not in shown
    assert not any('"body"' in statement["sql"] for statement in statements)
    for name in ("body", "arguments"):
        for lookup in ("contains", "startswith", "gt"):
            assert client.get(f"{LIST}?{name}__{lookup}=x").status_code == 400
    User.objects.get().user_permissions.add(Permission.objects.get(codename="view_body"))
    shown = client.get(page(one)).content.decode()
    assert shown.count(SECRET) == 2


def test_a_body_that_is_no_text_is_shown_in_digits_and_a_long_one_in_part(
    migrated: Database,
) -> None:
    digits, long = row(body=b"\xff\x00\x41"), row(body=b"x" * 20_000)
    client = logged_in(VIEW, "view_body")
    assert "ff 00 41" in client.get(page(digits)).content.decode()
    shown = client.get(page(long)).content.decode()
    assert "x" * 10_000 + "…" in shown
    assert "x" * 10_001 not in shown


def test_a_row_is_deleted_by_who_may_and_lets_its_key_go_on(everywhere: Database) -> None:
    # As a relay leaves them with --stop-keys.
    dead = row(state=2, order_key="k", token="stops its key")
    behind = row(order_key="k", due_at=100_000_000_000_000_000)
    client = logged_in(VIEW, DELETE)
    told = client.post(f"{LIST}{dead.pk}/delete/", {"post": "yes"}, follow=True).content.decode()
    assert "1 message deleted." in told
    assert OutboxMessage.objects.get().due_at <= now()
    post(client, "delete_selected", behind, post="yes")
    assert not OutboxMessage.objects.exists()


def test_a_large_table_is_not_counted_whole(
    migrated: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_app.outbox.admin.MOST_COUNTED", 3)
    for _ in range(5):
        row()
    with CaptureQueriesContext(connection) as statements:
        assert "3 messages" in listed(logged_in(VIEW))
    counts = [one["sql"] for one in statements if "COUNT(" in one["sql"] and "outbox" in one["sql"]]
    assert counts
    assert all("LIMIT 3" in one for one in counts)
