"""Routes for probes: ``app.register_blueprint(health, url_prefix="/health")``.

``live/`` says that the process answers, and touches nothing. ``ready/`` says whether the brokers of all aliases can be
published to, ``ready/<alias>/`` whether that of one can. ``KOMBU_POOLS_HEALTH`` says how.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, abort, current_app, jsonify, request
from werkzeug.utils import import_string

from kombu_pools_ext.errors import SettingsError, UnknownAlias
from kombu_pools_ext.health import NAME, HealthSettings, Probe, parse_health

from .errors import PoolsImproperlyConfigured

__all__ = ["health"]

#: The key in ``app.extensions``.
_EXTENSION = "kombu_pools_health"

#: The blueprint.
health = Blueprint("kombu_pools_health", __name__)


@health.record_once
def _read(state: Any) -> None:
    """Read ``KOMBU_POOLS_HEALTH`` when the blueprint is registered, so that a mistake is told at the start."""
    app = state.app
    try:
        app.extensions[_EXTENSION] = parse_health(app.config.get(NAME), import_string), None
    except SettingsError as error:
        raise PoolsImproperlyConfigured(error.problems, error.name) from None


def _probe() -> tuple[HealthSettings, Probe]:
    settings, probe = current_app.extensions[_EXTENSION]
    if probe is None:
        pools = current_app.extensions["kombu_pools"]
        probe = Probe(pools, settings.fresh, settings.timeout)
        current_app.extensions[_EXTENSION] = settings, probe
    return settings, probe


@health.get("/live/")
def live() -> Any:
    """Answer that the process does. A broker that is away is no reason to start it again."""
    return _unstored({"condition": "ok"}, 200)


@health.get("/ready/")
@health.get("/ready/<path:using>/")
def ready(using: str | None = None) -> Any:
    """Answer how the aliases are, or one of them, with the status that the setting has for the worst of them.

    The answer names aliases and conditions. It has reasons, which may name brokers, if ``DETAILS`` allows this request.
    """
    settings, probe = _probe()
    try:
        found = probe.look(None if using is None else [using])
    except UnknownAlias:
        abort(404)
    with_reasons = settings.details is not None and bool(settings.details(request))
    return _unstored(found.as_dict(with_reasons=with_reasons), settings.status[found.condition])


def _unstored(told: dict[str, Any], status: int) -> Any:
    response = jsonify(told)
    response.status_code = status
    response.headers["Cache-Control"] = "no-store"
    return response
