"""An error that Redis answers a publish with: the message is not there, and the caller hears that at once."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu
import kombu.exceptions
import pytest
from kombu.exceptions import OperationalError

from kombu_pools_ext.aliases import Pools
from kombu_pools_ext.broker.redis_answers import is_answer, is_refusal, passes
from kombu_pools_ext.errors import PublishRefused, PublishUnknown
from kombu_pools_ext.pools import ConnectionPool, ProducerPool
from tests.broker.common import PATIENCE, eventually
from tests.brokers import PrivateRedis
from tests.conftest import _private

redis = pytest.importorskip("redis")

pytestmark = pytest.mark.redis

#: A retry without a pause.
AT_ONCE = {"max_retries": 3, "interval_start": 0, "interval_step": 0}


@pytest.fixture
def server() -> Iterator[PrivateRedis]:
    """A Redis of the test's own, which it sets as it likes."""
    yield from _private(PrivateRedis, "Redis")


@pytest.fixture
def admin(server: PrivateRedis) -> Iterator[Any]:
    with redis.Redis(port=server.port, decode_responses=True) as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all")
        yield client


def alias(server: PrivateRedis, **settings: Any) -> Pools:
    url = f"redis://app:pw@127.0.0.1:{server.port}/0"
    return Pools({"default": {"URL": url, "CHECK_AFTER": 0, "RETRY": AT_ONCE, **settings}})


def stats(pools: Pools) -> tuple[int, dict[str, int]]:
    """Connections opened, and how many were closed for what."""
    found = pools.connections["default"].stats()
    return found.opened, dict(found.closed)


def cannot_save(admin: Any) -> None:
    folder = admin.config_get("dir")["dir"]
    # Nothing can be put in the place of a folder.
    Path(folder, admin.config_get("dbfilename")["dbfilename"]).mkdir()
    admin.config_set("save", "3600 1000000")
    admin.bgsave()
    eventually(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err")


REFUSALS = [
    pytest.param(
        lambda admin: admin.config_set("maxmemory", 1),
        lambda admin: admin.config_set("maxmemory", 0),
        "OOM command not allowed",
        id="out of memory",
    ),
    pytest.param(
        lambda admin: admin.execute_command("ACL", "SETUSER", "app", "-lpush"),
        lambda admin: admin.execute_command("ACL", "SETUSER", "app", "+lpush"),
        "NOPERM",
        id="no permission",
    ),
    pytest.param(
        lambda admin: (admin.delete("q"), admin.set("q", "x")),
        lambda admin: admin.delete("q"),
        "WRONGTYPE",
        id="another type",
    ),
    pytest.param(
        lambda admin: admin.config_set("min-replicas-to-write", 1),
        lambda admin: admin.config_set("min-replicas-to-write", 0),
        "NOREPLICAS",
        id="too few replicas",
    ),
    pytest.param(
        cannot_save, lambda admin: admin.config_set("save", ""), "MISCONF", id="cannot save"
    ),
]


@pytest.mark.parametrize("refuse, mend, said", REFUSALS)
def test_a_refusal_is_told_at_once_and_costs_no_connection(
    server: PrivateRedis,
    admin: Any,
    refuse: Callable[[Any], Any],
    mend: Callable[[Any], Any],
    said: str,
) -> None:
    pools = alias(server)
    pools.publish("before", routing_key="q")
    refuse(admin)
    with pytest.raises(PublishRefused, match="message mine is not in the broker") as caught:
        pools.publish("x", routing_key="q", message_id="mine")
    error = caught.value
    assert said in str(error)
    name = pools.connections["default"].name
    assert str(error).startswith(f"pool {name!r}: ")
    assert (error.message_id, error.pool) == ("mine", name)
    # Whoever knows kombu's errors catches it, and whoever knows redis-py's.
    assert isinstance(error, OperationalError)
    assert isinstance(error, redis.exceptions.ResponseError)
    assert type(error.__cause__) in type(error).__mro__
    assert stats(pools) == (1, {})
    mend(admin)
    pools.publish("after", routing_key="q")
    assert stats(pools) == (1, {})
    assert admin.llen("q") >= 1


def test_the_error_travels(server: PrivateRedis, admin: Any) -> None:
    admin.set("q", "x")
    with pytest.raises(PublishRefused) as caught:
        alias(server).publish("x", routing_key="q", message_id="mine")
    error = pickle.loads(pickle.dumps(caught.value))
    assert type(error) is type(caught.value)
    assert (str(error), error.message_id) == (str(caught.value), "mine")


@pytest.mark.parametrize("positional", [True, False])
def test_of_several_queues_others_may_have_it(
    server: PrivateRedis, admin: Any, positional: bool
) -> None:
    pools = alias(server)
    exchange = kombu.Exchange("both", "direct")
    queues = [kombu.Queue(name, exchange, "k") for name in ("one", "two")]
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        for queue in queues:
            producer.maybe_declare(queue)
        admin.set("two", "x")
        with pytest.raises(PublishRefused, match="one queue of its exchange at least, others may"):
            if positional:
                rest = (None, False, False, 0, None, None, None, None, None)
                producer.publish("x", "k", *rest, "both")
            else:
                producer.publish("x", routing_key="k", exchange="both")
        assert not producer.broken


def test_a_queue_that_expires_is_refused_alike(server: PrivateRedis, admin: Any) -> None:
    """Its commands go in a transaction, which says which command it was, and with what."""
    pools = alias(server)
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        producer.maybe_declare(kombu.Queue("q", expires=60))
        admin.config_set("maxmemory", 1)
        with pytest.raises(PublishRefused, match="OOM command not allowed") as caught:
            producer.publish("a secret", routing_key="q")
        assert "LPUSH" not in str(caught.value)
        assert not producer.broken


# -- the wrong server ----------------------------------------------------------------------------------


def test_a_demoted_server_is_left_and_the_retry_finds_the_right_one(
    server: PrivateRedis, admin: Any, nowhere: int
) -> None:
    pools = alias(server)
    pools.publish("before", routing_key="q")
    admin.replicaof("127.0.0.1", nowhere)

    def promote(error: BaseException, _: float) -> None:
        tried.append(error)
        admin.replicaof("NO", "ONE")

    tried: list[BaseException] = []
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key="q", retry_policy={**AT_ONCE, "errback": promote})
    assert [type(error).__name__ for error in tried] == ["ReadOnlyError"]
    assert stats(pools) == (2, {"broken": 1})
    assert admin.llen("q") == 2


def test_so_is_one_that_has_lost_its_master(server: PrivateRedis, admin: Any, nowhere: int) -> None:
    """It does not even say which queues an exchange has."""
    pools = alias(server)
    tried: list[BaseException] = []

    def promote(error: BaseException, _: float) -> None:
        tried.append(error)
        admin.replicaof("NO", "ONE")

    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        producer.maybe_declare(kombu.Queue("q", kombu.Exchange("e", "direct"), "k"))
        admin.config_set("replica-serve-stale-data", "no")
        admin.replicaof("127.0.0.1", nowhere)
        policy = {**AT_ONCE, "errback": promote}
        producer.publish("x", routing_key="k", exchange="e", retry_policy=policy)
    (error,) = tried
    # An older redis-py has no class for it, and leaves the name in the text.
    assert type(error).__name__ == "MasterDownError" or str(error).startswith("MASTERDOWN")
    assert stats(pools) == (2, {"broken": 1})
    assert admin.llen("q") == 1


@pytest.mark.parametrize("retry", [None, AT_ONCE])
def test_one_that_stays_a_replica_has_refused_it(
    server: PrivateRedis, admin: Any, nowhere: int, retry: Any
) -> None:
    pools = alias(server, RETRY=retry)
    pools.publish("before", routing_key="q")
    admin.replicaof("127.0.0.1", nowhere)
    with pytest.raises(PublishRefused, match=r"READONLY .*; it is a replica: name the") as caught:
        pools.publish("x", routing_key="q")
    assert isinstance(caught.value, redis.exceptions.ReadOnlyError)
    # The next one is another connection: it may lead elsewhere.
    tries = 1 if retry is None else 1 + AT_ONCE["max_retries"]
    assert stats(pools) == (tries, {"broken": tries})


def test_a_server_that_is_busy_with_a_script_is_waited_for(
    server: PrivateRedis, admin: Any
) -> None:
    admin.config_set("lua-time-limit", 1)
    pools = alias(server, RETRY={"max_retries": 1000, "interval_start": 0.01, "interval_max": 0.01})
    pools.publish("before", routing_key="q")

    def run() -> None:
        with redis.Redis(port=server.port) as client:
            with pytest.raises(redis.exceptions.ResponseError):
                client.eval("while true do end", 0)

    def is_busy() -> bool:
        with redis.Redis(port=server.port) as client:
            try:
                client.llen("q")
            except redis.exceptions.ResponseError:
                return True
            return False

    busy = threading.Thread(target=run)
    busy.start()
    tried: list[BaseException] = []

    def kill(error: BaseException, _: float) -> None:
        tried.append(error)
        admin.execute_command("SCRIPT", "KILL")

    try:
        eventually(is_busy)
        with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
            producer.publish("x", routing_key="q", retry_policy={"errback": kill})
    finally:
        if not tried:
            admin.execute_command("SCRIPT", "KILL")
        busy.join(PATIENCE)
    assert str(tried[0]).startswith("BUSY")
    assert admin.llen("q") == 2


# -- in a batch of kombu's ------------------------------------------------------------------------------


@pytest.mark.skipif(
    not hasattr(kombu.Producer, "batch"), reason="this kombu has no batches on Redis"
)
@pytest.mark.parametrize("where", ["at the end", "in publish", "in flush"])
@pytest.mark.parametrize("demoted", [False, True])
def test_a_batch_that_is_refused(
    server: PrivateRedis, admin: Any, nowhere: int, where: str, demoted: bool
) -> None:
    pools = alias(server)
    with pytest.raises(PublishRefused, match="not known which are; Redis refused one: ") as caught:
        with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
            with producer.batch(max_size=2) as batch:
                if demoted:
                    admin.replicaof("127.0.0.1", nowhere)
                else:
                    admin.set("q", "x")
                producer.publish(1, routing_key="q")
                if where == "in publish":
                    producer.publish(2, routing_key="q")
                    pytest.fail("it was not refused")
                if where == "in flush":
                    batch.flush()
    assert isinstance(caught.value, kombu.exceptions.BatchPublishError)
    assert isinstance(caught.value, redis.exceptions.ResponseError)
    assert not isinstance(caught.value, PublishUnknown)
    assert stats(pools) == (1, {"broken": 1} if demoted else {})


# -- elsewhere, and all of them -------------------------------------------------------------------------


def test_over_a_pool_of_kombus_own_too(server: PrivateRedis, admin: Any) -> None:
    own = kombu.Connection(f"redis://app:pw@127.0.0.1:{server.port}/0").Pool(1)
    producers = ProducerPool(own)
    with producers.acquire(timeout=PATIENCE) as producer:
        admin.set("q", "x")
        with pytest.raises(PublishRefused, match="WRONGTYPE"):
            producer.publish("x", routing_key="q", retry=True, retry_policy=AT_ONCE)
        assert not producer.broken
    own.force_close_all()


def test_by_url_without_retries(server: PrivateRedis, admin: Any) -> None:
    connections = ConnectionPool(kombu.Connection(server.url), limit=1)
    admin.set("q", "x")
    with ProducerPool(connections).acquire(timeout=PATIENCE) as producer:
        with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
            producer.publish("x", routing_key="q")
    assert connections.stats().closed == {}
    connections.force_close_all()


REFUSED, RETRIED = (True, False), (False, True)


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", REFUSED),
        ("NOPERM this user has no permissions to run the 'lpush' command", REFUSED),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", REFUSED),
        ("NOREPLICAS Not enough good replicas to write.", REFUSED),
        ("MISCONF Redis is configured to save RDB snapshots", REFUSED),
        ("EXECABORT Transaction discarded because of previous errors.", REFUSED),
        ("MOVED 3999 127.0.0.1:6381", REFUSED),
        ("ASK 3999 127.0.0.1:6381", REFUSED),
        ("CROSSSLOT Keys in request don't hash to the same slot", REFUSED),
        ("ERR unknown command 'LPUSH'", REFUSED),
        ("SOMETHING that is not known yet", REFUSED),
        ("READONLY You can't write against a read only replica.", RETRIED),
        ("MASTERDOWN Link with MASTER is down", RETRIED),
        ("LOADING Redis is loading the dataset in memory", RETRIED),
        ("CLUSTERDOWN Hash slot not served", RETRIED),
        ("TRYAGAIN Multiple keys request during rehashing of slot", RETRIED),
        ("BUSY Redis is busy running a script.", RETRIED),
        ("ERR max number of clients reached", RETRIED),
        # Tried again, for credentials are asked for at each connect; but not as long as a connect is told it.
        ("NOAUTH Authentication required.", (False, False)),
        ("WRONGPASS invalid username-password pair", (False, False)),
    ],
)
def test_every_answer_has_its_place(answer: str, expected: tuple[bool, bool]) -> None:
    error = redis.connection.Connection()._parser.parse_error(answer)
    assert is_answer(error)
    assert (is_refusal(error), passes(error)) == expected


def test_what_is_no_answer_of_redis_is_none() -> None:
    errors = redis.exceptions
    for error in (
        errors.ConnectionError("Connection closed by server."),
        errors.TimeoutError("Timeout reading from socket"),
        errors.DataError("Invalid input"),
        ConnectionResetError(),
        OperationalError("OOM"),
        KeyError("OOM"),
    ):
        assert not is_answer(error)
        assert not is_refusal(error)
