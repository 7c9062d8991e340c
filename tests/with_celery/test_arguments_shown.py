"""The arguments of a task are shown as Celery shows them, and its message is the same in all else."""

from __future__ import annotations

from typing import Any

import celery
import pytest
from celery.utils.saferepr import saferepr
from hypothesis import example, given
from hypothesis import strategies as st

from kombu_pools_ext import Pools
from kombu_pools_ext.contrib.celery import adopt
from kombu_pools_ext.contrib.celery.arguments_shown import shown

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.binary(max_size=4)
    | st.decimals()
    | st.sets(st.integers(), max_size=3)
)
KEYS = st.text(max_size=8) | st.integers() | st.none() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=15,
)


def a_loop() -> list[Any]:
    loop: list[Any] = [1]
    loop.append(loop)
    return loop


@given(VALUES, st.integers(0, 60) | st.just(1024), st.none() | st.integers(0, 5))
@example(("it's",), 1024, 3)
@example(("x" * 2000,), 1024, 3)
@example([[[[]]], ({},), {"a": {"b": {"c": {}}}}], 1024, 3)
@example([1, 2, 3], 9, 3)
@example([1, 2, 3], 10, 3)
@example(a_loop(), 1024, 3)
def test_arguments_are_shown_as_celery_shows_them(
    value: Any, length: int, levels: int | None
) -> None:
    assert shown(value, length, levels) == saferepr(value, length, levels)


def app_of(url: str = "amqp://guest:guest@localhost//") -> celery.Celery:
    return celery.Celery("shown", broker=url, set_as_current=False)


def message_of(app: celery.Celery, *args: Any, **kwargs: Any) -> Any:
    return app.amqp.create_task_message("an-id", "a.task", *args, **kwargs)


@pytest.mark.parametrize("made", ["before", "after"])
@pytest.mark.parametrize(
    "rest",
    [
        {},
        {"argsrepr": "secret"},
        {"kwargsrepr": "secret"},
        {"create_sent_event": True, "retries": 2, "group_id": "g"},
    ],
    ids=repr,
)
def test_a_message_is_that_of_an_application_which_is_not_adopted(
    made: str, rest: dict[str, Any]
) -> None:
    plain, adopted = app_of(), app_of()
    if made == "before":
        adopted.amqp.create_task_message  # Celery keeps it
    adopt(adopted, pools=Pools({"default": {"URL": "amqp://guest:guest@localhost//"}}))
    arguments = ({"order": [1, "two", None, {"deep": {"deeper": (1,)}}]}, "ünï"), {"key": 1.5}
    assert message_of(adopted, *arguments, **rest) == message_of(plain, *arguments, **rest)
    assert type(adopted.amqp).as_task_v2 is not type(plain.amqp).as_task_v2
    assert adopted.amqp.task_protocols[2] == adopted.amqp.create_task_message


def test_wrong_arguments_are_refused_as_before() -> None:
    adopted = app_of()
    adopt(adopted, pools=Pools({"default": {"URL": "amqp://guest:guest@localhost//"}}))
    with pytest.raises(TypeError, match="task args must be a list or tuple"):
        message_of(adopted, "text")
    with pytest.raises(TypeError, match="task keyword arguments must be a mapping"):
        message_of(adopted, (), [1])


def test_the_settings_of_celery_are_heeded() -> None:
    adopted = app_of()
    adopted.conf.task_repr_maxlevels = 1
    adopt(adopted, pools=Pools({"default": {"URL": "amqp://guest:guest@localhost//"}}))
    adopted.amqp.argsrepr_maxsize = 8
    message = message_of(adopted, ([1], 2), {"a": "b" * 9})
    headers = message.headers
    assert headers["argsrepr"] == saferepr(([1], 2), 8, 1)
    assert headers["kwargsrepr"] == "{'a': 'bbbbbbbbb'}"


def test_a_class_that_makes_its_own_messages_keeps_them() -> None:
    class Own(celery.app.amqp.AMQP):
        def as_task_v2(self, *args: Any, **kwargs: Any) -> Any:
            return "its own"

    adopted = app_of()
    adopted.amqp_cls = Own
    adopt(adopted, pools=Pools({"default": {"URL": "amqp://guest:guest@localhost//"}}))
    assert message_of(adopted) == "its own"
