"""A relay as a process of its own: relay_process.py AMQP_URL POSTGRESQL_URL [OPTION=VALUE…]."""

from __future__ import annotations

import logging
import sys

import psycopg

from kombu_pools_ext import Pools
from kombu_pools_ext.control.command_line import Screen
from kombu_pools_ext.outbox.command_line import run_relay
from kombu_pools_ext.outbox.dbapi import DbApiDatabase


def say(line: str) -> None:
    print(line, flush=True)


def main(broker: str, database: str, *options: str) -> int:
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING)
    pools = Pools(
        default={
            "URL": broker,
            "ACQUIRE_TIMEOUT": 1.0,
            "CONFIRM_TIMEOUT": 2.0,
            "CONNECT_TIMEOUT": 1.0,
            "OUTAGE_PATIENCE": 1.0,
        }
    )
    return run_relay(
        pools,
        # A server that is frozen would hold the relay for as long.
        DbApiDatabase(
            lambda: psycopg.connect(database, connect_timeout=5), "postgresql", (psycopg.Error,)
        ),
        Screen(say, say),
        **{name: float(value) for name, value in (one.split("=") for one in options)},  # type: ignore[arg-type]
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
