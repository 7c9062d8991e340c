"""The outboxes that are compared, each as its documentation tells to use it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tests.benchmarks.case import BODY, OURS, Missing, peer

from .place import Place

__all__ = [
    "CELERY",
    "CELERY_8",
    "CELERY_UNCONFIRMED",
    "CONTENDERS",
    "FOUR",
    "PATTERN",
    "Contender",
    "celery_app",
    "write_celery",
    "write_ours",
    "write_pattern",
]

FOUR = "ours, 4 relays"
CELERY = "django-celery-outbox"
CELERY_8 = "django-celery-outbox, 8 threads"
CELERY_UNCONFIRMED = "django-celery-outbox, no confirms"
PATTERN = "django-outbox-pattern"

_keys = itertools.count(1)


@cache
def celery_app(broker: str, confirm: bool) -> Any:
    """The Celery application of django-celery-outbox."""
    app = peer("django_celery_outbox.app").OutboxCelery("bench", broker=broker)
    app.conf.broker_transport_options = {"confirm_publish": confirm}
    return app


def write_ours(place: Place, queue: str, *, using: str = "default", key: bool = False) -> str:
    """Write one message in the open transaction; return its id."""
    from django_app import publish_on_commit

    with_key = {"key": f"order-{next(_keys)}"} if key else {}
    return publish_on_commit(BODY, queue, using=using, outbox=True, **with_key)


def write_celery(place: Place, queue: str) -> str:
    """Write one task in the open transaction; return its id. The order is its argument."""
    app = celery_app(place.broker, True)
    return str(app.send_task("bench.order", args=[BODY], queue=queue).id)


def write_pattern(place: Place, queue: str) -> str:
    """Write one message in the open transaction; return its id."""
    models = peer("django_outbox_pattern.models")
    published = models.Published(
        body=BODY, destination=f"/amq/queue/{queue}", headers={"persistent": "true"}
    )
    published.save()
    return str(published.id)


WRITERS = {"ours": write_ours, "celery": write_celery, "pattern": write_pattern}


@dataclass(frozen=True)
class Contender:
    """An outbox with a number of relays.

    :param kind: whose it is.
    :param relay: arguments of each relay's process.
    :param rows: of a round, such that it lasts a few seconds.
    """

    name: str
    kind: str
    relay: tuple[str, ...]
    rows: int
    processes: int = 1
    modules: tuple[str, ...] = field(default=())

    def check(self, place: Place) -> None:
        """Look whether it can run here.

        :raises Missing: if not.
        """
        for module in self.modules:
            peer(module)
        if self.kind == "pattern" and place.stomp_port is None:
            raise Missing("RabbitMQ's plugin rabbitmq_stomp is not installed")

    @property
    def table(self) -> str:
        """Where its rows are."""
        return {"ours": "kombu_pools_outbox", "celery": "celery_outbox", "pattern": "published"}[
            self.kind
        ]

    @property
    def fresh(self) -> Mapping[str, str]:
        """Columns that each row has for itself, with what makes them; besides an id that the database counts."""
        own = "CAST(gen_random_uuid() AS text)"
        return {
            "ours": {"message_id": own},
            "celery": {"task_id": own},
            "pattern": {"id": "gen_random_uuid()"},
        }[self.kind]

    def write(self, place: Place, queue: str) -> str:
        """Write one message in the open transaction; return its id."""
        return WRITERS[self.kind](place, queue)


_CELERY = ("django_celery_outbox.app",)
#: Those whose relays are compared.
CONTENDERS = {
    one.name: one
    for one in (
        Contender(OURS, "ours", ("ours",), 20_000),
        Contender(FOUR, "ours", ("ours",), 20_000, processes=4),
        Contender(CELERY, "celery", ("celery", "1", "confirm"), 1_500, modules=_CELERY),
        Contender(CELERY_8, "celery", ("celery", "8", "confirm"), 2_500, modules=_CELERY),
        Contender(CELERY_UNCONFIRMED, "celery", ("celery", "1", "plain"), 2_500, modules=_CELERY),
        # Its models need Django to be set up; its settings do not.
        Contender(PATTERN, "pattern", ("pattern",), 2_500, modules=("stomp", "django_outbox_pattern")),
    )
}  # fmt: skip
