"""Mistakes that the type checkers have to find: on each line that ends with ``# wrong``, and on no other.

Where kombu has no types, mypy takes what is inherited from its classes for anything: ``# wrong (typed kombu)``.
"""

from __future__ import annotations

import django_app
import flask_ext
from kombu_pools_ext import LeasedConnection, LeasedProducer, Pools, connections, pools, producers
from kombu_pools_ext.control import Control


def misspelt() -> None:
    producers["default"].aquire()  # wrong (typed kombu)
    with producers["default"].acquire(timeout=5) as producer:
        producer.publsh({"id": 1}, routing_key="orders")  # wrong (typed kombu)
        producer.publish({"id": 1}, routing_key="orders")
    with pools.connections["default"].acquire(timeout=5) as connection:
        connection.defualt_channel  # wrong (typed kombu)
        connection.default_channel
    django_app.producers["default"].acquire().publsh({"id": 1})  # wrong (typed kombu)
    flask_ext.KombuPools().producer.publsh({"id": 1})  # wrong (typed kombu)
    flask_ext.KombuPools().get_producer().publsh({"id": 1})  # wrong (typed kombu)
    producers["default"].acquire().batch().flsh()  # wrong
    with producers["default"].acquire().batch() as batch:
        batch.result  # wrong
        batch.results


def of_aliases(pools: Pools, control: Control) -> None:
    pools.producer["default"]  # wrong
    pools.producers["default"].acquire().publsh({"id": 1})  # wrong (typed kombu)
    pools.publsh({"id": 1})  # wrong
    pools.publish({"id": 1}, "orders", expiraton=0.5)  # wrong
    pools.publish({"id": 1}, "orders", expiration="1000")  # wrong
    pools.publish({"id": 1}, "orders", expiration=1)
    pools.submit({"id": 1}, "orders", expiraton=0.5)  # wrong
    pools.submit({"id": 1}, "orders", expiration=0.5)
    pools.suspend(mode="later")  # wrong
    pools.reset(["default"], timout=5)  # wrong
    pools.reset(["default"], timeout=5)
    control.ask("status", timout=5)  # wrong


def of_frameworks() -> None:
    django_app.publish({"id": 1}, "orders", acquire_timout=0.5)  # wrong
    django_app.publish({"id": 1}, "orders", acquire_timeout=0.5)
    django_app.publish_on_commit({"id": 1}, "orders", message_identifier="1")  # wrong
    django_app.publish_on_commit({"id": 1}, "orders", message_id="1")
    django_app.submit({"id": 1}, "orders", priorty=5)  # wrong
    flask_ext.KombuPools().submit({"id": 1}, "orders", priorty=5)  # wrong
    flask_ext.KombuPools().publish({"id": 1}, "orders", priorty=5)  # wrong
    flask_ext.KombuPools().publish({"id": 1}, "orders", priority=5)


async def of_coroutines(pools: Pools) -> None:
    await pools.apublish({"id": 1}, "orders", expiraton=0.5)  # wrong
    await pools.apublish({"id": 1}, "orders", expiration=0.5)
    await django_app.apublish({"id": 1}, "orders", priorty=5)  # wrong
    await flask_ext.KombuPools().apublish({"id": 1}, "orders", priorty=5)  # wrong


def of_wrong_types() -> None:
    connections["default"].acquire(timeout="5")  # wrong
    producers["default"].acquire(timeout="5")  # wrong
    connections["default"].suspend("later")  # wrong
    lent: LeasedProducer = connections["default"].acquire()  # wrong (typed kombu)
    other: LeasedConnection = producers["default"].acquire()  # wrong (typed kombu)
    for each in (lent, other):
        each.release()
