"""The extension: what an application gets from ``init_app``, and the object that finds the current application's."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import Any

from flask import Flask, current_app, has_app_context
from kombu import Exchange, Queue

from kombu_pools_ext import AliasedPools, Pools
from kombu_pools_ext.control import Control, Project, attach
from kombu_pools_ext.control.options import KEYS, parse_control
from kombu_pools_ext.control.options import NAME as CONTROL
from kombu_pools_ext.errors import Problem, SettingsError
from kombu_pools_ext.settings import PoolSettings, parse_settings
from kombu_pools_ext.settings.problems import forgets_arguments
from kombu_pools_ext.settings.strays import Strays

from . import context, signals
from .cli import commands
from .errors import PoolsImproperlyConfigured

__all__ = ["AppPools", "KombuPools"]

#: The key in ``app.extensions``.
EXTENSION = "kombu_pools"

#: The keys in ``app.config``.
POOLS = "KOMBU_POOLS"
URL = "KOMBU_POOLS_URL"


_STRAYS = Strays(POOLS, {URL: (), CONTROL: KEYS})


def _strays(app: Flask, *near: str) -> list[Problem]:
    """Return a problem for each name in the configuration of *app* that was meant for one of *near*, our settings."""
    return [problem for setting, problem in _STRAYS.among(app.config) if setting in near]


@forgets_arguments
def settings_from(app: Flask) -> dict[str, PoolSettings]:
    """The pools' settings by alias, from the configuration of *app*.

    :raises SettingsError: with every problem.
    """
    pools, url = app.config.get(POOLS), app.config.get(URL)
    beside = _strays(app, POOLS, URL)
    if pools is not None and url is not None:
        both = f"{URL} is set as well, and only one of them can hold"
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
    neither = f"neither this nor {URL} is set; without them there is memory://, for debugging and testing alone"
    raise SettingsError([Problem(None, None, neither, _how_to_set_one())], POOLS)


def _how_to_set_one() -> str:
    unread = sorted(name for name in os.environ if name.startswith(f"FLASK_{POOLS}"))
    if unread:
        return f"call app.config.from_prefixed_env() to read {unread[0]} from the environment"
    return f"set one of them, as in app.config[{URL!r}] = 'amqp://…'"


def project_of(app: Flask, settings: Mapping[str, PoolSettings]) -> Project:
    """The project that *app* belongs to, with the configuration as it is now.

    :param settings: the pools', by alias.
    :raises SettingsError: with every problem.
    """
    secret = app.secret_key or None
    how = parse_control(
        app.config.get(CONTROL),
        settings,
        name=CONTROL,
        secret=secret,
        beside=_strays(app, CONTROL),
    )
    # Without a secret, two applications of one user are told apart by where they are.
    name = f"flask {app.import_name} {app.root_path}"
    former = app.config.get("SECRET_KEY_FALLBACKS") or ()
    return Project(how, secret, name, former_secrets=former)


class AppPools(Pools):
    """The pools of one application, by alias: ``app.extensions["kombu_pools"]``.

    A :class:`kombu_pools_ext.Pools`, with a producer for each application context besides.
    """

    #: What reaches all processes of the project: those with the application's secret.
    control: Control

    def __init__(self, app: Flask, settings: dict[str, PoolSettings]) -> None:
        super().__init__(lambda: None, name=POOLS)
        # A reference would make a cycle, and only the garbage collector would free the application.
        self._app = weakref.ref(app)
        self._settings = settings

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
    def producer(self) -> Any:
        """:meth:`get_producer` of ``"default"``."""
        return self.get_producer()

    def get_producer(self, using: str = "default") -> Any:
        """The application context's :class:`kombu.Producer`: lent at the first use, given back at the context's end.

        Within a context it is the same one each time, unless it was released or its connection broke: then it is
        another one. It waits for at most ``ACQUIRE_TIMEOUT`` seconds.

        :param using: the alias.
        :raises RuntimeError: outside a context of this application.
        :raises UnknownAlias: with the known ones, and the nearest.
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

    It keeps nothing of an application, so one object serves any number of them: whatever it is asked for comes from
    :data:`flask.current_app`.

    :param app: calls :meth:`init_app` with it.
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the configuration of *app*, and register with it. Nothing is opened.

        :raises RuntimeError: if that was done for *app* before.
        :raises PoolsImproperlyConfigured: a :class:`~.SettingsError`, with every problem of ``KOMBU_POOLS`` or
            ``KOMBU_POOLS_URL``, or else of ``KOMBU_POOLS_CONTROL``.
        """
        if EXTENSION in app.extensions:
            raise RuntimeError(
                f"app {app.name!r} has its pools already: call init_app(app), or KombuPools(app), "
                "once for each app"
            )
        try:
            settings = settings_from(app)
            project = project_of(app, settings)
        except SettingsError as error:
            raise PoolsImproperlyConfigured(error.problems, error.name) from None
        pools = AppPools(app, settings)
        # First, for Flask refuses it once the app has served a request.
        app.teardown_appcontext(context.release_producers)
        app.cli.add_command(commands)
        app.extensions[EXTENSION] = pools
        pools.control = attach(pools, project)
        signals.watch(app)

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
    def producer(self) -> Any:
        """The application context's producer of ``"default"``; see :meth:`AppPools.get_producer`."""
        return self._pools.get_producer()

    def get_producer(self, using: str = "default") -> Any:
        """The application context's producer of the alias *using*; see :meth:`AppPools.get_producer`."""
        return self._pools.get_producer(using)

    @property
    def connections(self) -> AliasedPools:
        """The connection pools of the current application, by alias."""
        return self._pools.connections

    @property
    def producers(self) -> AliasedPools:
        """The producer pools of the current application, by alias."""
        return self._pools.producers

    def publish(
        self,
        body: Any,
        routing_key: str | Queue | None = None,
        *,
        exchange: str | Exchange | None = None,
        using: str = "default",
        **kwargs: Any,
    ) -> None:
        """Publish one message, and again on another connection when one broke, as ``RETRY`` says.

        The context's producer is used if there is one already; else one is lent for this message alone.

        :param body: whatever the serializer takes.
        :param routing_key: text; a :class:`kombu.Queue` stands for its name.
        :param exchange: name or :class:`kombu.Exchange`; by default the default exchange, whose routing key is a
            queue's name.
        :param using: the alias.
        :param kwargs: those of :meth:`kombu_pools_ext.Pools.publish` and :meth:`kombu.Producer.publish`.
        :raises TypeError, ValueError: for arguments that cannot be, all of them at once, before anything is opened or
            sent.
        :raises RuntimeError: outside an application context.
        :raises LimitExceeded: if no producer became free in time.
        :raises OperationalError: if the broker cannot be reached.
        """
        self._pools.publish(body, routing_key, exchange=exchange, using=using, **kwargs)

    def __repr__(self) -> str:
        if not has_app_context():
            return "<KombuPools: no current app>"
        pools = current_app.extensions.get(EXTENSION)
        aliases = "not initialised" if pools is None else ", ".join(pools.settings)
        return f"<KombuPools of {current_app.name!r}: {aliases}>"
