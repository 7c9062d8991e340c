"""What an application gets from ``init_app``: configuration, access, and clear errors."""

from __future__ import annotations

import re
import time
import traceback
from pathlib import Path
from typing import Any

import kombu
import pytest
from flask import Flask, current_app
from kombu.exceptions import LimitExceeded, OperationalError

import flask_ext
from flask_ext import AppPools, KombuPools
from kombu_pools_ext import set_limit
from kombu_pools_ext.errors import SettingsError, UnknownAlias

from .conftest import MakeApp, received

SECRET = "s3cr3t-w0rd"


# -- init_app ----------------------------------------------------------------------------------------------------------


def test_the_constructor_initialises_an_app() -> None:
    app = Flask("shop")
    app.config["KOMBU_POOLS_URL"] = "memory://"
    pools = KombuPools(app)
    with app.app_context():
        assert list(pools.connections) == ["default"]
        assert list(pools.producers) == ["default"]


def test_one_extension_serves_any_number_of_apps(pools: KombuPools) -> None:
    def create_app(name: str) -> Flask:
        app = Flask(name)
        app.config["KOMBU_POOLS"] = {name: "memory://"}
        pools.init_app(app)
        return app

    apps = [create_app("one"), create_app("two")]
    for app in apps:
        with app.app_context():
            assert list(pools.connections) == [app.name]


def test_nothing_of_an_app_is_kept_on_the_extension(pools: KombuPools, make_app: MakeApp) -> None:
    make_app()
    assert vars(pools) == {}


def test_the_pools_are_in_the_apps_extensions(pools: KombuPools, app: Flask) -> None:
    state = app.extensions["kombu_pools"]
    assert isinstance(state, AppPools)
    with app.app_context():
        assert current_app.extensions["kombu_pools"].producer is pools.producer
        assert state.connections["default"] is pools.connections["default"]


def test_init_app_opens_nothing(make_app: MakeApp) -> None:
    make_app(URL="amqp://guest:guest@127.0.0.1:1//")


@pytest.mark.parametrize("again", [KombuPools().init_app, KombuPools])
def test_calling_init_app_twice_is_an_error(app: Flask, again: Any) -> None:
    state = app.extensions["kombu_pools"]
    with pytest.raises(RuntimeError, match=rf"app '{app.name}' has its pools already: .* once"):
        again(app)
    assert app.extensions["kombu_pools"] is state
    assert len(app.teardown_appcontext_funcs) == 1


def test_init_app_after_a_request_is_flasks_error_and_changes_nothing(pools: KombuPools) -> None:
    app = Flask("late")
    app.config["KOMBU_POOLS_URL"] = "memory://"
    app.test_client().get("/")
    with pytest.raises(AssertionError, match="teardown_appcontext"):
        pools.init_app(app)
    assert "kombu_pools" not in app.extensions
    assert "kombu-pools" not in app.cli.commands


# -- the configuration -------------------------------------------------------------------------------------------------


def configured(**config: Any) -> AppPools:
    app = Flask("configured")
    app.config.update(config)
    KombuPools(app)
    state = app.extensions["kombu_pools"]
    assert isinstance(state, AppPools)
    return state


def test_one_broker_by_its_url() -> None:
    assert configured(KOMBU_POOLS_URL="memory://").settings["default"].url == ("memory://",)


def test_one_broker_with_failover() -> None:
    urls = ["amqp://a//", "amqp://b//"]
    assert configured(KOMBU_POOLS_URL=urls).settings["default"].url == tuple(urls)


def test_any_number_of_brokers() -> None:
    state = configured(
        KOMBU_POOLS={"default": {"URL": "memory://", "LIMIT": 3}, "audit": "redis://localhost/1"}
    )
    assert list(state.settings) == ["default", "audit"]
    assert state.settings["default"].limit == 3


def test_settings_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_KOMBU_POOLS__default__URL", "memory://")
    monkeypatch.setenv("FLASK_KOMBU_POOLS__default__LIMIT", "7")
    app = Flask("environment")
    app.config.from_prefixed_env()
    KombuPools(app)
    assert app.extensions["kombu_pools"].settings["default"].limit == 7


def test_parts_of_a_url_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HOST": "broker.example",
        "PORT": "5673",
        "USER": "shop",
        "PASSWORD": "p@ss/w#rd",
        "TRANSPORT": "amqps",
    }.items():
        monkeypatch.setenv(f"FLASK_KOMBU_POOLS__default__{name}", value)
    app = Flask("environment")
    app.config.from_prefixed_env()
    KombuPools(app)
    settings = app.extensions["kombu_pools"].settings["default"]
    assert settings.uri == "amqps://shop:**@broker.example:5673/"
    assert settings.connection().password == "p@ss/w#rd"
    # Flask reads JSON where it can.
    monkeypatch.setenv("FLASK_KOMBU_POOLS__default__PASSWORD", "12345")
    app = Flask("environment")
    app.config.from_prefixed_env()
    with pytest.raises(SettingsError, match=r"PASSWORD.* a value of type int; quote it"):
        KombuPools(app)


def test_none_is_the_same_as_not_set() -> None:
    state = configured(KOMBU_POOLS=None, KOMBU_POOLS_URL="memory://")
    assert list(state.settings) == ["default"]


@pytest.mark.parametrize("switch", ["DEBUG", "TESTING"])
def test_without_settings_debugging_and_testing_use_memory(switch: str) -> None:
    state = configured(**{switch: True})
    assert {alias: one.url for alias, one in state.settings.items()} == {"default": ("memory://",)}


def test_without_settings_production_is_an_error_that_names_the_keys() -> None:
    with pytest.raises(SettingsError) as caught:
        configured()
    assert "KOMBU_POOLS:" in str(caught.value)
    assert "KOMBU_POOLS_URL" in str(caught.value)


def test_setting_both_keys_is_an_error() -> None:
    with pytest.raises(SettingsError, match="KOMBU_POOLS_URL is set as well"):
        configured(KOMBU_POOLS={"default": "memory://"}, KOMBU_POOLS_URL="memory://")


def test_every_problem_is_reported_at_once_and_the_app_is_left_alone() -> None:
    app = Flask("wrong")
    app.config["KOMBU_POOLS"] = {
        "default": {"URL": "memory://", "LIMT": 3},
        "audit": {"URL": "nosuch://host", "ACQUIRE_TIMEOUT": -1},
    }
    with pytest.raises(SettingsError) as caught:
        KombuPools(app)
    assert [(one.alias, one.key) for one in caught.value.problems] == [
        ("audit", "ACQUIRE_TIMEOUT"),
        ("audit", "URL"),
        ("default", "LIMT"),
    ]
    assert "KOMBU_POOLS['default']['LIMT']" in str(caught.value)
    assert "did you mean 'LIMIT'" in str(caught.value)
    assert app.extensions == {}
    assert app.teardown_appcontext_funcs == []


@pytest.mark.parametrize("given", ["", "nosuch://host", 7, [], "localhost"])
def test_a_wrong_url_is_reported_with_its_key(given: object) -> None:
    with pytest.raises(SettingsError) as caught:
        configured(KOMBU_POOLS_URL=given)
    assert str(caught.value).startswith("KOMBU_POOLS_URL: ")


@pytest.mark.parametrize("given", ["memory://", 7, [], ["memory://"], True])
def test_a_setting_that_is_not_a_dict_is_refused(given: object) -> None:
    with pytest.raises(SettingsError, match="KOMBU_POOLS: expected a dict of aliases"):
        configured(KOMBU_POOLS=given)


@pytest.mark.parametrize(
    "config",
    [
        {"KOMBU_POOLS_URL": f"nosuch://me:{SECRET}@host//"},
        {"KOMBU_POOLS": {"default": {"URL": f"amqp://me:{SECRET}@host:port//", "X": SECRET}}},
        {"KOMBU_POOLS": {"default": f"amqp://me:{SECRET}@host//"}, "KOMBU_POOLS_URL": SECRET},
    ],
)
def test_a_secret_is_in_no_configuration_error(config: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        configured(**config)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


# -- access ------------------------------------------------------------------------------------------------------------

USES = {
    "producer": lambda pools: pools.producer,
    "get_producer": lambda pools: pools.get_producer("default"),
    "connections": lambda pools: pools.connections,
    "producers": lambda pools: pools.producers,
    "publish": lambda pools: pools.publish({}, "queue"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_outside_a_context_the_error_is_flasks(app: Flask, pools: KombuPools, use: Any) -> None:
    with pytest.raises(RuntimeError, match="Working outside of application context"):
        use(pools)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_an_app_without_pools_raises_a_clear_error(pools: KombuPools, use: Any) -> None:
    with (
        Flask("bare").app_context(),
        pytest.raises(RuntimeError, match=r"app 'bare' has no pools: call init_app\(app\)"),
    ):
        use(pools)


def test_an_unknown_alias_lists_the_known_ones_and_the_nearest(
    app: Flask, pools: KombuPools
) -> None:
    with app.app_context():
        for use in (
            lambda: pools.get_producer("defualt"),
            lambda: pools.publish({}, "q", using="defualt"),
            lambda: pools.connections["defualt"],
        ):
            with pytest.raises(UnknownAlias, match="did you mean 'default'"):
                use()


def test_repr_works_anywhere(app: Flask, pools: KombuPools) -> None:
    assert repr(pools) == "<KombuPools: no current app>"
    with app.app_context():
        assert repr(pools) == f"<KombuPools of '{app.name}': default>"
        assert repr(app.extensions["kombu_pools"]) == "<AppPools: default>"
    with Flask("bare").app_context():
        assert repr(pools) == "<KombuPools of 'bare': not initialised>"


def test_a_secret_is_in_no_repr(make_app: MakeApp, pools: KombuPools) -> None:
    app = make_app(URL=f"amqp://me:{SECRET}@localhost//")
    with app.app_context():
        everything = (
            pools,
            app.extensions["kombu_pools"],
            pools.connections,
            pools.connections["default"],
            pools.producers["default"],
            app.extensions["kombu_pools"].settings,
        )
        assert SECRET not in repr(everything)


# -- several apps ------------------------------------------------------------------------------------------------------


def test_apps_that_name_the_same_broker_with_the_same_settings_share_its_pool(
    make_app: MakeApp, pools: KombuPools, memory_url: str
) -> None:
    other = {"KOMBU_POOLS": {"other": {"URL": memory_url, "LIMIT": 3}}}
    found = []
    for app in make_app(LIMIT=3), make_app(other):
        with app.app_context():
            (alias,) = pools.connections
            found.append((pools.connections[alias], pools.producers[alias]))
    assert found[0] == found[1]


@pytest.mark.parametrize("settings", [{"LIMIT": 4}, {"IDLE_TIMEOUT": 7}, {"URL": "memory://b"}])
def test_apps_with_different_settings_have_different_pools(
    make_app: MakeApp, pools: KombuPools, settings: dict[str, Any]
) -> None:
    with make_app(LIMIT=3).app_context():
        one = pools.connections["default"]
    with make_app(**{"LIMIT": 3, **settings}).app_context():
        assert pools.connections["default"] is not one


def test_without_a_limit_the_global_one_applies(app: Flask, pools: KombuPools) -> None:
    with app.app_context():
        set_limit(3)
        try:
            assert pools.connections["default"].limit == 3
        finally:
            set_limit(10)


# -- publish -----------------------------------------------------------------------------------------------------------


def test_a_view_publishes(app: Flask, pools: KombuPools, queue: str) -> None:
    @app.post("/")
    def view() -> str:
        pools.publish({"id": 1}, queue)
        current_app.extensions["kombu_pools"].publish({"id": 2}, routing_key=queue)
        pools.producer.publish({"id": 3}, routing_key=queue)
        pools.publish({"id": 4}, queue, using="default", exchange="", headers={"x": 1})
        return "published"

    declare(queue)
    assert app.test_client().post("/").text == "published"
    assert received("memory://", queue) == [{"id": number} for number in (1, 2, 3, 4)]


def declare(queue: str) -> None:
    with kombu.Connection("memory://") as connection:
        kombu.Queue(queue, channel=connection.default_channel, durable=False).declare()


def test_publish_uses_the_producer_that_the_context_has(
    make_app: MakeApp, pools: KombuPools
) -> None:
    app = make_app(LIMIT=1)
    with app.app_context():
        pools.publish({}, "queue")
        producer = pools.producer
        # A second lease is not to be had.
        pools.publish({}, "queue")
        assert pools.producer is producer
        assert pools.connections["default"].lent == 1


def test_publish_in_a_context_without_a_producer_lends_one_for_the_message(
    app: Flask, pools: KombuPools
) -> None:
    with app.app_context():
        pools.publish({}, "queue")
        assert pools.connections["default"].lent == 0


def test_app_pools_publish_without_a_context(app: Flask, make_app: MakeApp) -> None:
    # A thread of the application's own, say; and in another application's context all the same.
    app.extensions["kombu_pools"].publish({}, "queue")
    with make_app(LIMIT=2).app_context():
        app.extensions["kombu_pools"].publish({}, "queue")


def test_publish_tries_again_on_another_connection(app: Flask, pools: KombuPools) -> None:
    for held in False, True:
        with app.app_context():
            first = pools.producer
            break_once(first)
            if not held:
                first.release()
            opened = pools.connections["default"].stats().opened
            pools.publish({}, "queue")
            assert pools.connections["default"].stats().opened == opened + 1
            assert pools.connections["default"].lent == held


def break_once(producer: Any) -> None:
    """Let the next publish on the connection of *producer* fail as on a broken socket."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("the socket broke")

    # The one that is lent, and the one that stays with the connection: the next lease is a copy of that.
    (pooled,) = producer.connection.item.pooled_producers.values()
    producer._publish = pooled._publish = fail


def test_publish_gives_up_in_time(make_app: MakeApp, pools: KombuPools) -> None:
    app = make_app(LIMIT=1, ACQUIRE_TIMEOUT=0.1)
    with app.app_context(), pools.producers["default"].acquire():
        start = time.monotonic()
        with pytest.raises(LimitExceeded):
            pools.publish({}, "queue")
        with pytest.raises(LimitExceeded):
            pools.publish({}, "queue", acquire_timeout=0.2)
        assert time.monotonic() - start < 3


def test_an_unreachable_broker_is_an_operational_error_in_time(
    make_app: MakeApp, pools: KombuPools
) -> None:
    url = f"amqp://me:{SECRET}@127.0.0.1:1//"
    app = make_app(URL=url, CONNECT_TIMEOUT=1, ACQUIRE_TIMEOUT=1.5)

    @app.get("/")
    def view() -> str:
        pools.producer.publish({}, routing_key="queue")
        return "published"

    start = time.monotonic()
    with app.app_context():
        for use in (lambda: pools.publish({}, "queue"), lambda: pools.producer):
            with pytest.raises(OperationalError) as caught:
                use()
            assert caught.value.__cause__ is not None
            assert SECRET not in "".join(traceback.format_exception(caught.value))
    response = app.test_client().get("/")
    assert response.status_code == 500
    assert SECRET not in response.text
    # With the defaults it would take ten.
    assert time.monotonic() - start < 9


def test_a_body_that_cannot_be_serialised(app: Flask, pools: KombuPools) -> None:
    with app.app_context():
        for use in (
            lambda body: pools.publish(body, "queue"),
            lambda body: pools.producer.publish(body),
        ):
            with pytest.raises(kombu.exceptions.EncodeError):
                use(object())
            use({})
        opened = pools.connections["default"].stats().opened
    assert opened == 1


def test_the_public_names() -> None:
    assert set(flask_ext.__all__) == {
        "AppPools",
        "KombuPools",
        "PoolsImproperlyConfigured",
        "connection_closed",
        "connection_opened",
        "pool_exhausted",
        "pools_reset",
    }


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "flask.md"
    entries = set(re.findall(r"`(\w+)", page.read_text()))
    members = {name for name in vars(KombuPools) if not name.startswith("_")}
    assert {*flask_ext.__all__, *members} - entries == set()


def test_publish_checks_its_arguments(pools: KombuPools, app: Flask, queue: str) -> None:
    with app.app_context():
        for wrong in ({}, {"exchange": ""}, {"routing_key": "r" * 256}):
            with pytest.raises(ValueError, match=r"^publish: "):
                pools.publish({}, **wrong)
        with pytest.raises(TypeError, match="unknown keyword 'queue'; did you mean 'routing_key'"):
            pools.publish({}, queue=queue)
        assert pools.connections["default"].stats().opened == 0
        pools.publish({}, kombu.Queue(queue), declare=kombu.Queue(queue))
        assert pools.connections["default"].stats().opened == 1
