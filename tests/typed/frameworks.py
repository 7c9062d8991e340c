"""What ``django_app``, ``flask_ext`` and ``kombu_pools_ext.control`` offer."""

from __future__ import annotations

from collections.abc import Awaitable
from concurrent.futures import Future
from typing import Any, assert_type

from blinker import NamedSignal
from flask import Flask

import django_app
import flask_ext
from django_app import apublish, publish, publish_on_commit, submit, with_producer
from django_app.conf import DjangoPools
from django_app.conf import control as django_control
from django_app.conf import pools as django_pools
from flask_ext import AppPools, KombuPools
from kombu_pools_ext import (
    AliasedPools,
    ConnectionPool,
    LeasedConnection,
    LeasedProducer,
    Pools,
    ProducerPool,
)
from kombu_pools_ext.control import (
    Control,
    ControlSettings,
    Project,
    attach,
    attach_to,
    detach,
    serve,
)
from kombu_pools_ext.control.answer import Answer, Answers
from kombu_pools_ext.control.process_info import Process
from kombu_pools_ext.errors import Problem


def takes_awaitable(outcome: Awaitable[None]) -> None:
    """What an async view awaits."""


def django() -> None:
    assert_type(django_app.connections, AliasedPools[ConnectionPool])
    assert_type(django_app.producers, AliasedPools[ProducerPool])
    assert_type(django_app.connections["default"].acquire(), LeasedConnection)
    assert_type(django_app.producers["default"].acquire(), LeasedProducer)
    assert_type(publish({"id": 1}, "orders", using="audit", priority=5), None)
    assert_type(publish_on_commit({"id": 1}, "orders", db="default", robust=True), str)
    assert_type(publish_on_commit({"id": 1}, "orders", outbox=True, key="1"), str)
    assert_type(submit({"id": 1}, "orders", using="audit", priority=5), Future[None])
    takes_awaitable(apublish({"id": 1}, "orders", using="audit", priority=5))
    assert_type(django_pools, DjangoPools)
    assert_type(django_control(), Control)


@with_producer
def decorated(request: object, producer: LeasedProducer) -> str:
    return "done"


@with_producer("audit")
def decorated_with_an_alias(request: object, producer: LeasedProducer) -> str:
    return "done"


def views(producer: LeasedProducer) -> None:
    assert_type(decorated(object(), producer), str)
    assert_type(decorated_with_an_alias(object(), producer), str)


def flask(app: Flask) -> None:
    pools = assert_type(KombuPools(app), KombuPools)
    assert_type(KombuPools().init_app(app), None)
    assert_type(pools.producer, LeasedProducer)
    assert_type(pools.get_producer(), LeasedProducer)
    assert_type(pools.get_producer("audit"), LeasedProducer)
    assert_type(pools.connections, AliasedPools[ConnectionPool])
    assert_type(pools.producers, AliasedPools[ProducerPool])
    assert_type(pools.producers["default"].acquire(), LeasedProducer)
    assert_type(pools.publish({"id": 1}, "orders", using="audit", priority=5), None)
    assert_type(pools.submit({"id": 1}, "orders", using="audit", priority=5), Future[None])
    takes_awaitable(pools.apublish({"id": 1}, "orders", using="audit", priority=5))
    assert_type(flask_ext.connection_closed, NamedSignal)


def wrong_configuration(error: flask_ext.PoolsImproperlyConfigured) -> None:
    assert_type(error.problems, tuple[Problem, ...])


def of_one_app(pools: AppPools) -> None:
    assert_type(pools.producer, LeasedProducer)
    assert_type(pools.get_producer("audit"), LeasedProducer)
    assert_type(pools.producers["default"].acquire(), LeasedProducer)
    assert_type(pools.control, Control)


def control(pools: Pools) -> None:
    control = assert_type(attach(pools, secret="a long secret", name="shop"), Control)
    assert_type(attach(pools, ControlSettings()), Control)
    assert_type(control.ask("status", using=["default"], timeout=0.5), Answers)
    assert_type(control.who(timeout=0.5), list[Process])
    assert_type(control.likely_reasons(), list[str])
    assert_type(control.project, Project)
    assert_type(serve(control.project), bool)
    assert_type(attach_to(control.project, pools), None)
    assert_type(detach(pools), None)


def answers(answers: Answers) -> None:
    assert_type(answers.ok, bool)
    assert_type(answers.answers, tuple[Answer, ...])
    assert_type(answers.problems, tuple[str, ...])
    assert_type(answers.as_dict(), dict[str, Any])
    for answer in answers.answers:
        assert_type(answer.process, Process)
        assert_type(answer.rows, tuple[dict[str, Any], ...])
