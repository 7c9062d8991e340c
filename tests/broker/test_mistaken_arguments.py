"""A number that is meant as a time-out, and stands where something else is asked for, is refused at once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import kombu
import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.broker.producers import ProducerPool

from .common import within

_numbers = itertools.count()

NUMBERS = [5, 0.5, 2.0, -1, Decimal(3), float("nan")]


@pytest.fixture
def pools() -> Iterator[Pools]:
    pools = Pools(default={"URL": f"memory://mistaken{next(_numbers)}", "LIMIT": 1})
    yield pools
    pools.reset()


def acquires(pools: Pools) -> list[Callable[[Any], Any]]:
    connections = pools.connections["default"]
    foreign = ProducerPool(kombu.Connection("memory://").Pool(limit=1))
    return [
        connections.acquire,
        pools.producers["default"].acquire,
        foreign.acquire,
        lambda block: connections.acquire_channel(block).__enter__(),
    ]


@pytest.mark.parametrize("block", NUMBERS)
@pytest.mark.parametrize("which", range(4), ids=["connection", "producer", "foreign", "channel"])
def test_a_block_that_is_a_number_is_refused(pools: Pools, which: int, block: Any) -> None:
    acquire = acquires(pools)[which]
    words = f"block must be True or False, not {block!r}; did you mean timeout={block!r}?"
    # Within a time: today's answer to everything lent would be to wait.
    with pytest.raises(TypeError, match=re.escape(words)):
        within(30, lambda: acquire(block))
    assert pools.connections["default"].lent == 0


@pytest.mark.parametrize(
    "block, meant",
    [("5", "5"), (" 0.5 ", "0.5"), ("0", "0"), ("", None), ("yes", None), (b"5", None), ([], None)],
)
@pytest.mark.parametrize("which", range(4), ids=["connection", "producer", "foreign", "channel"])
def test_a_block_that_is_text_or_whatever_else_is_refused(
    pools: Pools, which: int, block: Any, meant: str | None
) -> None:
    acquire = acquires(pools)[which]
    words = f"block must be True or False, not {block!r}"
    if meant is not None:
        words += f"; did you mean timeout={meant}?"
    with pytest.raises(TypeError, match=re.escape(words) + "$"):
        within(30, lambda: acquire(block))
    assert pools.connections["default"].lent == 0


@pytest.mark.parametrize("which", range(3), ids=["connection", "producer", "foreign"])
def test_a_time_out_that_is_text_is_refused(pools: Pools, which: int) -> None:
    words = "timeout must be a number of seconds or None, not '5'"
    with pytest.raises(TypeError, match=words):
        acquires(pools)[which](timeout="5")
    with pytest.raises(TypeError, match=words):
        pools.publish({}, "queue", acquire_timeout="5")  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("block", [True, False, 1, 0, 1.0, None])
@pytest.mark.parametrize("which", range(3), ids=["connection", "producer", "foreign"])
def test_what_says_yes_or_no_is_taken(pools: Pools, which: int, block: Any) -> None:
    acquires(pools)[which](block).release()


@pytest.mark.parametrize("kind", ["connections", "producers"])
def test_a_time_out_for_force_close_all_is_refused(pools: Pools, kind: str) -> None:
    pool = getattr(pools, kind)["default"]
    with pytest.raises(
        TypeError, match=r"close_pool must be True or False, not 5; did you mean drain\(timeout=5\)"
    ):
        pool.force_close_all(5)
    with pool.acquire(timeout=30) as lent:
        assert lent.connection is not None


@pytest.mark.parametrize("method", ["reset", "suspend", "resume"])
def test_a_time_out_where_aliases_are_asked_for_is_refused(pools: Pools, method: str) -> None:
    with pytest.raises(
        TypeError, match=r"using must be a list of aliases, not 5; a time-out is drain\(\)'s"
    ):
        getattr(pools, method)(5)
    with pytest.raises(TypeError, match=r"not 'default'; did you mean \['default'\]\?"):
        getattr(pools, method)("default")


@pytest.mark.parametrize("method", ["drain", "wait_ready"])
@pytest.mark.parametrize("face", ["pool", "pools"])
def test_a_yes_where_a_time_out_is_asked_for_is_refused(
    pools: Pools, method: str, face: str
) -> None:
    of = pools if face == "pools" else pools.connections["default"]
    with pytest.raises(TypeError, match="timeout must be a number of seconds"):
        getattr(of, method)(True)


def test_a_yes_where_a_limit_is_asked_for_is_refused(pools: Pools) -> None:
    with pytest.raises(TypeError, match="limit must be an int, not bool: True"):
        pools.connections["default"].resize(True)
