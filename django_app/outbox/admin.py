"""The outbox in Django's admin: which messages wait, which are late or dead, and how to have them published again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.paginator import Paginator
from django.db import connections
from django.db.models import BigIntegerField, F, QuerySet
from django.db.models.expressions import RawSQL
from django.http import HttpRequest
from django.utils.functional import cached_property

from kombu_pools_ext.outbox import Filter, Outbox, State
from kombu_pools_ext.outbox.dialects import dialect_of

from ..conf import pools
from .database import DjangoDatabase
from .models import OutboxMessage

if TYPE_CHECKING:
    # Only the stubs have parameters.
    ModelAdmin = admin.ModelAdmin[OutboxMessage]
    Rows = QuerySet[OutboxMessage]
else:
    ModelAdmin, Rows = admin.ModelAdmin, QuerySet

__all__ = ["OutboxMessageAdmin"]

#: Seconds for which a message has to be due to be late.
LATE = 60
#: Rows that are counted at most: a table may have millions.
MOST_COUNTED = 10_000
#: Characters of a body that are shown, and bytes of one that is no text.
MOST_SHOWN = 10_000
#: Ids in one statement.
AT_ONCE = 1000
#: Columns that a list may be searched by: not the body, nor the arguments, which have the headers.
SEARCHABLE = {
    "id",
    "message_id",
    "alias",
    "order_key",
    "state",
    "attempts",
    "exchange",
    "routing_key",
}
STATES = {State.WAITING: "waiting", State.DONE: "delivered", State.DEAD: "dead"}


def now_of(rows: Any) -> RawSQL:
    """Return the expression of the time of the database of *rows*, in microseconds since 1970."""
    return RawSQL(dialect_of(connections[rows.db].vendor).now, (), output_field=BigIntegerField())


class StateFilter(admin.SimpleListFilter):
    """Messages that wait, that have waited for long, that are dead, or that were delivered and are kept."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        """Return the choices."""
        return [
            ("dead", "dead"),
            ("late", f"late (due for more than {LATE} s)"),
            ("waiting", "waiting"),
            ("delivered", "delivered"),
        ]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        """Return the rows of the choice."""
        chosen = self.value()
        if chosen == "late":
            since = now_of(queryset) - LATE * 1_000_000
            return queryset.filter(state=State.WAITING, due_at__lt=since)
        states = [state for state, name in STATES.items() if name == chosen]
        return queryset.filter(state__in=states) if states else queryset


class AliasFilter(admin.SimpleListFilter):
    """Messages of one alias of the settings: to find the aliases of a large table takes long."""

    title = "alias"
    parameter_name = "alias"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        """Return the choices."""
        return [(alias, alias) for alias in pools.settings]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        """Return the rows of the choice."""
        chosen = self.value()
        return queryset if chosen is None else queryset.filter(alias=chosen)


class CappedPaginator(Paginator):  # type: ignore[type-arg]  # only the stubs have parameters
    """Counts no more rows than anybody pages through."""

    @cached_property
    def count(self) -> int:
        """How many rows there are, at most :data:`MOST_COUNTED`."""
        rows: Any = self.object_list
        counted: int = rows.order_by()[:MOST_COUNTED].count()
        return counted


@admin.register(OutboxMessage)
class OutboxMessageAdmin(ModelAdmin):
    """Shows rows, and neither adds nor edits any. Bodies and headers are for those who have ``view_body``."""

    list_display = (
        *("message_id", "alias", "order_key", "status", "age", "attempts"),
        *("exchange", "routing_key", "size", "why"),
    )
    list_filter = (StateFilter, AliasFilter)
    search_fields = ("message_id__exact", "order_key__exact", "reason__icontains")
    search_help_text = "message_id, key, or part of the reason"
    ordering = ("-id",)
    actions = ("requeue",)
    paginator = CappedPaginator
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> Rows:
        """Return the rows without their bodies, each with its age."""
        rows = super().get_queryset(request)
        return rows.defer("body", "arguments").annotate(age_us=now_of(rows) - F("created_at"))

    # -- permissions -------------------------------------------------------------------------------------------------

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody may: a row that is saved here would wake no relay, and lock no key."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody may edit a row."""
        return False

    def has_requeue_permission(self, request: HttpRequest) -> bool:
        """Whoever has the model's permission to change."""
        return super().has_change_permission(request)

    def has_body_permission(self, request: HttpRequest) -> bool:
        """Whoever has ``view_body``."""
        user: Any = request.user
        allowed: bool = user.has_perm(f"{self.opts.app_label}.view_body")
        return allowed

    def lookup_allowed(self, lookup: str, value: Any, request: Any = None) -> bool:
        """Refuse lookups in the address by what the list does not show: they would tell the contents bit by bit."""
        return lookup.partition("__")[0] in SEARCHABLE

    # -- what is shown -----------------------------------------------------------------------------------------------

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Return what the page of one message shows."""
        shown: list[Any] = [
            (
                None,
                {
                    "fields": (
                        *("message_id", "alias", "order_key", "exchange", "routing_key"),
                        *("status", "age", "attempts", "reason", "size"),
                    )
                },
            )
        ]
        if self.has_body_permission(request):
            shown.append(("Contents", {"fields": ("properties", "content")}))
        return shown

    @admin.display(description="state", ordering="state")
    def status(self, row: OutboxMessage) -> str:
        """Return the name of the state."""
        return STATES.get(State(row.state), str(row.state))

    @admin.display(ordering="-created_at")
    def age(self, row: Any) -> str:
        """Return the time since the row was written, by the database's clock, in hours, minutes and seconds."""
        return str(timedelta(seconds=max(0, row.age_us) // 1_000_000))

    @admin.display(description="reason")
    def why(self, row: OutboxMessage) -> str:
        """Return the beginning of the reason."""
        return row.reason if len(row.reason) <= 100 else f"{row.reason[:99]}…"

    @admin.display(description="headers and properties")
    def properties(self, row: OutboxMessage) -> str:
        """Return the arguments of the publish."""
        return json.dumps(json.loads(row.arguments), indent=1, ensure_ascii=False)

    @admin.display(description="body")
    def content(self, row: OutboxMessage) -> str:
        """Return the beginning of the body: text, or in hexadecimal digits."""
        body = bytes(row.body)
        try:
            text = body.decode()
        except UnicodeDecodeError:
            text = body[:MOST_SHOWN].hex(" ")
        return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"

    # -- what is done ------------------------------------------------------------------------------------------------

    @admin.action(description="Publish selected messages again", permissions=["requeue"])
    def requeue(self, request: HttpRequest, rows: Rows) -> None:
        """Have messages that are dead, or put off, be published as soon as possible."""
        self._do(
            request, rows, [State.WAITING, State.DEAD], Outbox.requeue, "to be published again"
        )

    def delete_queryset(self, request: HttpRequest, queryset: Rows) -> None:
        """Delete messages for good, and let keys go on that they have stopped."""
        self._do(request, queryset, list(State), Outbox.purge, "deleted")

    def delete_model(self, request: HttpRequest, obj: OutboxMessage) -> None:
        """Delete one message for good, and let its key go on if it has stopped it."""
        self.delete_queryset(request, self.get_queryset(request).filter(pk=obj.pk))

    def _do(
        self,
        request: HttpRequest,
        rows: Rows,
        states: Sequence[State],
        what: Callable[[Outbox, Filter], int],
        told: str,
    ) -> None:
        outbox = Outbox(DjangoDatabase(rows.db))
        ids = list(rows.values_list("pk", flat=True))
        done = sum(
            what(outbox, Filter(states, ids=ids[start : start + AT_ONCE]))
            for start in range(0, len(ids), AT_ONCE)
        )
        self.message_user(request, f"{_counted(done)} {told}.", messages.SUCCESS)
        if done < len(ids):
            left = f"{_counted(len(ids) - done)} left as they are: a relay has them, or has delivered them."
            self.message_user(request, left, messages.WARNING)


def _counted(number: int) -> str:
    return "1 message" if number == 1 else f"{number} messages"
