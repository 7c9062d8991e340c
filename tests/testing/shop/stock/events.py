"""Events about the stock, for whoever is interested."""

from kombu import Exchange, Queue

from django_app import publish

STOCK = Exchange("stock", "topic")
#: All of them: ``#`` is no word, or any number.
EVERYTHING = Queue("everything", STOCK, "stock.#")
SOLD_OUT = Queue("sold-out", STOCK, "stock.*.sold-out")


def announce(*words: str) -> None:
    """Announce what these words say."""
    publish({"words": words}, ".".join(("stock", *words)), exchange=STOCK, declare=[EVERYTHING, SOLD_OUT])  # fmt: skip
