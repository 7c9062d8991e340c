"""Plain Python: configure once, and name the alias from then on. `BROKER_URL=amqp://… python plain.py`"""

import os

from kombu import Queue

from kombu_pools_ext import configure, connections, producers

ORDERS = Queue("plain-orders", durable=False, auto_delete=True)

pools = configure(
    default={"url": os.environ.get("BROKER_URL", "memory://"), "limit": 10},
)


def order(number: int) -> dict[str, object]:
    return {"order": number, "app": "plain", "worker": os.getpid()}


def main() -> None:
    # One message: a producer is lent for it, and given back.
    pools.publish(order(1), routing_key=ORDERS.name, declare=[ORDERS])

    # Several through one producer, which is a kombu.Producer.
    with producers["default"].acquire(timeout=5) as producer:
        for number in (2, 3):
            producer.publish(order(number), routing_key=ORDERS.name)

    # A connection, which is a kombu.Connection.
    with connections["default"].acquire(timeout=5) as connection:
        with connection.SimpleQueue(ORDERS) as queue:
            for _ in range(3):
                message = queue.get(timeout=5)
                print("order {order} from {app}, process {worker}".format(**message.payload))
                message.ack()

    print(connections["default"])


if __name__ == "__main__":
    main()
