"""Where an outbox and its broker are, and Django set up for them: in the benchmark's process, and in each relay's."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import asdict, dataclass
from typing import Any, Self

from tests.databases import Database

__all__ = ["PEERS", "POLLING", "Place"]

VARIABLE = "OUTBOX_BENCH"
#: The alias of our pools whose relay is told of no notifications.
POLLING = "polling"
#: Django's applications of the other outboxes, where they are installed.
PEERS = ("django_celery_outbox", "django_outbox_pattern")


@dataclass(frozen=True)
class Place:
    """A broker and a database.

    :param broker: its URL.
    :param stomp_port: where it speaks STOMP; ``None`` if it does not.
    """

    broker: str
    stomp_port: int | None
    database: Database

    def environment(self) -> dict[str, str]:
        """Of another process that is to call :meth:`of_environment`."""
        return {**os.environ, VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def of_environment(cls) -> Self:
        """What another process has put into :meth:`environment`."""
        read = json.loads(os.environ[VARIABLE])
        return cls(read["broker"], read["stomp_port"], Database(**read["database"]))

    def set_up_django(self, *, pause: int = 1) -> None:
        """Configure Django in this process.

        :param pause: seconds that django-outbox-pattern sleeps after each look at its table; 1 is its own default.
        """
        import django
        from django.conf import settings

        pool: dict[str, Any] = {"URL": self.broker}
        settings.configure(
            SECRET_KEY="for the benchmark alone",
            USE_TZ=True,
            LOGGING_CONFIG=None,
            DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
            INSTALLED_APPS=[
                *("django_app", "django_app.outbox"),
                *(name for name in PEERS if importlib.util.find_spec(name)),
            ],
            DATABASES={"default": self.database.django()},
            KOMBU_POOLS={"default": pool, POLLING: pool},
            # No packet for each message to a statsd that is not there.
            MONITORING_METRICS_ENABLED=False,
            DJANGO_OUTBOX_PATTERN={
                "DEFAULT_STOMP_HOST_AND_PORTS": [("127.0.0.1", self.stomp_port or 0)],
                "DEFAULT_PRODUCER_WAITING_TIME": pause,
            },
        )
        django.setup()
        self._silence_structlog()

    def _silence_structlog(self) -> None:
        """Have django-celery-outbox say nothing but warnings: by default it prints several lines a batch."""
        if importlib.util.find_spec("structlog"):
            import logging

            import structlog

            structlog.configure(
                wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING)
            )
