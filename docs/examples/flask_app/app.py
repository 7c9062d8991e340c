import os
from collections.abc import Iterator, Mapping
from typing import Any

from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    current_app,
    flash,
    redirect,
    render_template,
    request,
    stream_with_context,
    url_for,
)
from kombu import Queue

from flask_ext import KombuPools

pools = KombuPools()
orders = Blueprint("orders", __name__)


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        # Whoever has it may steer the pools: commands reach all processes with this one, Django's and Flask's.
        SECRET_KEY=os.environ.get("SECRET_KEY", "for this example only"),
        KOMBU_POOLS={
            "default": {
                "URL": os.environ.get("BROKER_URL", "amqp://guest:guest@localhost//"),
                "LIMIT": 10,
                # A restart of the broker takes ten seconds or so. A request waits for it rather than fail: for a
                # connection, for the broker's confirm with all further tries, and however long it has been away.
                "ACQUIRE_TIMEOUT": 20,
                "CONFIRM_TIMEOUT": 20,
                "OUTAGE_PATIENCE": 20,
            },
        },
        ORDERS_QUEUE=os.environ.get("ORDERS_QUEUE", "orders"),
    )
    app.config.update(config or {})
    pools.init_app(app)
    app.register_blueprint(orders)
    return app


def as_message(number: int) -> dict[str, object]:
    return {"order": number, "app": "flask", "worker": os.getpid()}


def publish_order(number: int) -> dict[str, object]:
    queue = Queue(current_app.config["ORDERS_QUEUE"])
    message = as_message(number)
    pools.publish(message, routing_key=queue.name, declare=[queue])
    return message


def number_in(name: str) -> int:
    number = request.form.get(name, type=int)
    if number is None or number < 1:
        abort(400, f"{name} has to be a whole number, 1 or more")
    return number


@orders.get("/")
def page() -> str:
    """A form to publish from, and what came of it."""
    return render_template("page.html", worker=os.getpid(), pool=pools.connections["default"])


@orders.post("/")
def publish_from_page() -> Any:
    message = publish_order(number_in("order"))
    flash("Order {order} was published by worker {worker}.".format(**message))
    return redirect(url_for(".page"))


@orders.post("/orders/")
def create() -> Any:
    """The same for programs: ``curl -d order=7 http://127.0.0.1:5000/orders/``."""
    return publish_order(number_in("order")), 201


@orders.post("/orders/up-to/")
def create_many() -> Response:
    """Many orders through one producer, reported line by line while they are published."""
    queue = Queue(current_app.config["ORDERS_QUEUE"])
    last = number_in("order")

    def lines() -> Iterator[str]:
        for number in range(1, last + 1):
            pools.producer.publish(as_message(number), routing_key=queue.name, declare=[queue])
            yield f"{number}\n"

    return Response(stream_with_context(lines()), mimetype="text/plain")
