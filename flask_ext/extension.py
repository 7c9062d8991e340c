"""The extension :class:`KombuPools`, and :class:`AppPools`, the pools of one application."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

from flask import Flask, current_app, has_app_context
from kombu.entity import Exchange, Queue

from kombu_pools_ext import (
    AliasedPools,
    ConnectionPool,
    LeasedProducer,
    Pools,
    ProducerPool,
    PublishKeywords,
)
from kombu_pools_ext.control import Control, Project, attach
from kombu_pools_ext.control.options import KEYS, parse_control
from kombu_pools_ext.control.options import NAME as CONTROL
from kombu_pools_ext.errors import Problem, SettingsError
from kombu_pools_ext.health.settings import KEYS as HEALTH_KEYS
from kombu_pools_ext.health.settings import NAME as HEALTH
from kombu_pools_ext.settings import PoolSettings, parse_settings
from kombu_pools_ext.settings.celery_alias import NAME as CELERY
from kombu_pools_ext.settings.celery_alias import parse_celery_alias
from kombu_pools_ext.settings.misspelt import MisspeltNames
from kombu_pools_ext.settings.problems import forgets_arguments

from . import context, signals
from .cli import commands
from .errors import PoolsImproperlyConfigured
from .outbox import ENGINE as OUTBOX

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["AppPools", "KombuPools"]

#: The key in ``app.extensions``.
EXTENSION = "kombu_pools"

#: The keys in ``app.config``.
POOLS = "KOMBU_POOLS"
URL = "KOMBU_POOLS_URL"


_MISSPELT = MisspeltNames(
    POOLS, {URL: (), CONTROL: KEYS, CELERY: (), OUTBOX: (), HEALTH: HEALTH_KEYS}
)


def _misspelt(app: Flask, *near: str) -> list[Problem]:
    """Return a problem for each misspelt name in the configuration of *app* that was meant for one of *near*."""
    return [problem for setting, problem in _MISSPELT.among(app.config) if setting in near]


@forgets_arguments
def settings_from(app: Flask) -> dict[str, PoolSettings]:
    """Return the settings of the pools by alias, from the configuration of *app*.

    :raises SettingsError: with every problem.
    """
    pools, url = app.config.get(POOLS), app.config.get(URL)
    beside = _misspelt(app, POOLS, URL)
    if pools is not None and url is not None:
        both = f"{URL} is set as well, and only one of them can be used"
        raise SettingsError([*beside, Problem(None, None, both, "remove one of the two")], POOLS)
    if pools is not None:
        return parse_settings(pools, name=POOLS, beside=beside)
    if url is not None:
        try:
            return parse_settings({"default": {"URL": url}}, name=POOLS, beside=beside)
        except SettingsError as error:
            problems = [Problem(None, None, one.message, one.hint) for one in error.problems]
        raise SettingsError(problems, URL)
    if beside:
        raise SettingsError(beside, POOLS)
    if app.debug or app.testing:
        return parse_settings({"default": {"URL": "memory://"}}, name=POOLS)
    neither = (
        f"neither this nor {URL} is set; only for debugging and testing, memory:// is used then"
    )
    raise SettingsError([Problem(None, None, neither, _how_to_set_one())], POOLS)


def _how_to_set_one() -> str:
    unread = sorted(name for name in os.environ if name.startswith(f"FLASK_{POOLS}"))
    if unread:
        return f"call app.config.from_prefixed_env() to read {unread[0]} from the environment"
    return f"set one of them, as in app.config[{URL!r}] = 'amqp://…'"


def project_of(app: Flask, settings: Mapping[str, PoolSettings]) -> Project:
    """Return the project that *app* belongs to, by its present configuration.

    :param settings: the settings of its pools, by alias.
    :raises SettingsError: with every problem.
    """
    secret = app.secret_key or None
    how = parse_control(
        app.config.get(CONTROL),
        settings,
        name=CONTROL,
        secret=secret,
        beside=_misspelt(app, CONTROL),
    )
    # Without a secret, name and location distinguish two applications of one user.
    name = f"flask {app.import_name} {app.root_path}"
    former = app.config.get("SECRET_KEY_FALLBACKS") or ()
    return Project(how, secret, name, former_secrets=former)


def celery_alias(app: Flask, aliases: Mapping[str, PoolSettings]) -> str | None:
    """Return the alias in ``KOMBU_POOLS_CELERY``; ``None`` if Celery keeps its own pools.

    :raises SettingsError: with every problem.
    """
    return parse_celery_alias(app.config.get(CELERY), aliases, beside=_misspelt(app, CELERY))


def adopt_celery(app: Flask, using: str, pools: AppPools) -> None:
    """Have the Celery application of *app*, which is ``app.extensions["celery"]``, publish over *using*.

    If it is not there yet, this is done when it is finalized; then it may also be the default one, unless it was
    adopted for another Flask application.
    """
    from kombu_pools_ext.contrib.celery.project import adopt_project, adoption_of, default_app

    known = weakref.ref(app)

    def find_app(finalized: Any) -> Any:
        app = known()
        own = None if app is None else app.extensions.get("celery")
        if own is not None or app is None or finalized is not default_app():
            return own
        return None if finalized is None or adoption_of(finalized) else finalized

    adopt_project(using, pools, find_app)


class AppPools(Pools):
    """The pools of one application, by alias: ``app.extensions["kombu_pools"]``.

    A :class:`kombu_pools_ext.Pools` that also lends a producer to each application context.
    """

    #: Sends commands to all processes of the project, which are those with the application's secret.
    control: Control

    def __init__(self, app: Flask, settings: dict[str, PoolSettings]) -> None:
        super().__init__(lambda: None, name=POOLS)
        # A strong reference would make a cycle, so that only the garbage collector would free the application.
        self._app = weakref.ref(app)
        self._settings = self.replaced(settings)

    def _configured_app(self) -> Flask:
        app = self._app()
        if app is None:
            raise RuntimeError("the Flask application of these pools does not exist any more")
        return app

    def _given(self) -> Any:
        return self._configured_app().config.get(POOLS)

    def _parse(self) -> dict[str, PoolSettings]:
        return settings_from(self._configured_app())

    @property
    def producer(self) -> LeasedProducer:
        """:meth:`get_producer` of ``"default"``."""
        return self.get_producer()

    def get_producer(self, using: str = "default") -> LeasedProducer:
        """Return the producer of the current application context, a :class:`kombu.Producer`.

        It is lent at the first use, and released when the context ends. Within a context it is the same one each time,
        unless it was released or its connection broke. The first use waits for at most ``ACQUIRE_TIMEOUT`` seconds.

        :param using: the alias.
        :raises RuntimeError: outside a context of this application.
        :raises UnknownAlias: if no pool is configured under *using*.
        :raises LimitExceeded: if no producer became free in time.
        :raises OperationalError: if the broker cannot be reached.
        """
        if not self._is_current():
            raise RuntimeError(
                f"{self!r} was asked for a producer in a context of {current_app.name!r}, which is "
                "another application; ask current_app.extensions['kombu_pools']"
            )
        timeout = self.settings_of(using).acquire_timeout
        return context.producer_of(self, using, block=timeout is None, timeout=timeout)

    def _is_current(self) -> bool:
        return current_app.extensions.get(EXTENSION) is self

    def _lender(self, using: str) -> Any:
        lender = None
        if has_app_context() and self._is_current():
            lender = context.lender_of(self, using)
        return lender or super()._lender(using)


class KombuPools:
    """Broker connections and producers for Flask applications.

    One object serves any number of applications, because it keeps no state: everything is found by
    :data:`flask.current_app`.

    :param app: if given, :meth:`init_app` is called with it.
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the configuration of *app*, and register the extension. Opens nothing.

        :raises RuntimeError: if it was called for *app* before.
        :raises PoolsImproperlyConfigured: a :class:`~.SettingsError` with every problem of ``KOMBU_POOLS`` or
            ``KOMBU_POOLS_URL``, or else of ``KOMBU_POOLS_CONTROL`` or ``KOMBU_POOLS_CELERY``.
        :raises CannotAdopt: if ``KOMBU_POOLS_CELERY`` is set, and the Celery application cannot be adopted.
        """
        if EXTENSION in app.extensions:
            raise RuntimeError(
                f"app {app.name!r} has its pools already: call init_app(app), or KombuPools(app), "
                "only once for each app"
            )
        try:
            settings = settings_from(app)
            project = project_of(app, settings)
            using = celery_alias(app, settings)
        except SettingsError as error:
            raise PoolsImproperlyConfigured(error.problems, error.name) from None
        pools = AppPools(app, settings)
        # First, because Flask refuses this once the app has served a request.
        app.teardown_appcontext(context.release_producers)
        app.cli.add_command(commands)
        app.extensions[EXTENSION] = pools
        pools.control = attach(pools, project)
        signals.watch(app)
        if using is not None:
            adopt_celery(app, using, pools)

    @property
    def _pools(self) -> AppPools:
        try:
            pools: AppPools = current_app.extensions[EXTENSION]
        except KeyError:
            raise RuntimeError(
                f"app {current_app.name!r} has no pools: call init_app(app) of your KombuPools "
                "where the app is made"
            ) from None
        return pools

    @property
    def producer(self) -> LeasedProducer:
        """The producer of ``"default"`` in the current application context; see :meth:`AppPools.get_producer`."""
        return self._pools.get_producer()

    def get_producer(self, using: str = "default") -> LeasedProducer:
        """Return the producer of *using* in the current application context; see :meth:`AppPools.get_producer`."""
        return self._pools.get_producer(using)

    @property
    def connections(self) -> AliasedPools[ConnectionPool]:
        """The connection pools of the current application, by alias."""
        return self._pools.connections

    @property
    def producers(self) -> AliasedPools[ProducerPool]:
        """The producer pools of the current application, by alias."""
        return self._pools.producers

    def publish(
        self,
        body: Any,
        routing_key: str | Queue | None = None,
        *,
        exchange: str | Exchange | None = None,
        using: str = "default",
        **kwargs: Unpack[PublishKeywords],
    ) -> None:
        """Publish one message, as :meth:`kombu_pools_ext.Pools.publish`, which lists the errors.

        It uses the producer that the application context holds already, or else one that is lent only for this message.

        :param body: any object that the serializer accepts.
        :param routing_key: a text; a :class:`kombu.Queue` stands for its name.
        :param exchange: a name or a :class:`kombu.Exchange`. By default the default exchange, where the routing key is
            the name of a queue.
        :param using: the alias.
        :param kwargs: those of :meth:`kombu_pools_ext.Pools.publish` and :meth:`kombu.Producer.publish`.
        :raises RuntimeError: outside an application context.
        """
        self._pools.publish(body, routing_key, exchange=exchange, using=using, **kwargs)

    def submit(
        self,
        body: Any,
        routing_key: str | Queue | None = None,
        *,
        exchange: str | Exchange | None = None,
        using: str = "default",
        **kwargs: Unpack[PublishKeywords],
    ) -> Future[None]:
        """Publish one message in the background, as :meth:`kombu_pools_ext.Pools.submit`, which lists the errors.

        The message may be published after the end of the application context, on a producer that is lent only for it.
        The arguments are those of :meth:`publish`.

        :returns: a future whose result is ``None``, and whose exception is what :meth:`publish` would have raised.
        :raises RuntimeError: outside an application context.
        """
        return self._pools.submit(body, routing_key, exchange=exchange, using=using, **kwargs)

    async def apublish(
        self,
        body: Any,
        routing_key: str | Queue | None = None,
        *,
        exchange: str | Exchange | None = None,
        using: str = "default",
        **kwargs: Unpack[PublishKeywords],
    ) -> None:
        """Publish one message in a coroutine, as :meth:`kombu_pools_ext.Pools.apublish`; for async views.

        It uses a producer that is lent only for this message. Arguments and errors are those of :meth:`publish`.

        :raises RuntimeError: outside an application context.
        """
        await self._pools.apublish(body, routing_key, exchange=exchange, using=using, **kwargs)

    def publish_on_commit(
        self,
        session: Any,
        body: Any,
        routing_key: str | Queue | None = None,
        *,
        exchange: str | Exchange | None = None,
        using: str = "default",
        outbox: bool | None = None,
        key: str | None = None,
        **kwargs: Unpack[PublishKeywords],
    ) -> str:
        """Publish one message once the current transaction of *session* is committed; not at all after a rollback.

        With the outbox it becomes a row of the same transaction, and ``flask kombu-pools relay`` publishes it. See
        :func:`kombu_pools_ext.contrib.sqlalchemy.publish_on_commit`, which lists the errors. It needs SQLAlchemy.

        :param session: SQLAlchemy's, or Flask-SQLAlchemy's ``db.session``.
        :param outbox: whether the message becomes a row; ``None`` is what the alias's setting ``OUTBOX`` says.
        :param key: with the outbox, messages with the same key arrive in the order of their commits.
        :returns: the ``message_id``.
        :raises RuntimeError: outside an application context.
        """
        from kombu_pools_ext.contrib import sqlalchemy

        return sqlalchemy.publish_on_commit(
            *(session, body, routing_key),
            exchange=exchange,
            using=using,
            outbox=outbox,
            key=key,
            pools=self._pools,
            **kwargs,
        )

    def __repr__(self) -> str:
        if not has_app_context():
            return "<KombuPools: no current app>"
        pools = current_app.extensions.get(EXTENSION)
        aliases = "not initialised" if pools is None else ", ".join(pools.settings)
        return f"<KombuPools of {current_app.name!r}: {aliases}>"
