"""The count of confirms, without a broker: whatever it says, and in whatever way, each message ends as one thing."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import RFC_4122, UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from kombu_pools_ext.broker.amqp.deliveries import Delivery, DeliveryTracker
from kombu_pools_ext.broker.message_id import new_message_id
from kombu_pools_ext.errors import Outcome

ACKED, NACKED, RETURNED, UNKNOWN = Outcome


def delivery(message_id: str, *, mandatory: bool = False, routing_key: str = "q") -> Delivery:
    return Delivery(message_id, "", routing_key, mandatory, size=10)


@dataclass
class Broker:
    """What a broker may do with the messages of one channel: it answers each once, in any order, or several at once."""

    tracker: DeliveryTracker
    #: Without an answer yet, by number: what the broker will say, and of which message.
    open: dict[int, tuple[Outcome, Delivery]] = field(default_factory=dict)
    expected: dict[str, Outcome] = field(default_factory=dict)
    number: int = 0
    names: int = 0

    def take(self, fate: Outcome) -> None:
        self.number += 1
        self.names += 1
        one = delivery(f"m{self.names}", mandatory=fate is RETURNED)
        self.tracker.add(one)
        self.open[self.number] = fate, one
        if fate is RETURNED:
            self.tracker.on_return(312, "NO_ROUTE", "", "q", one.message_id)

    def answer(self, place: int, *, multiple: bool) -> None:
        if not self.open:
            return
        tag = sorted(self.open)[place % len(self.open)]
        fate = self.open[tag][0]
        # Several at once have one answer, and a message that came back is acked.
        kind = NACKED if fate is NACKED else ACKED
        if multiple:
            alike = [NACKED if self.open[n][0] is NACKED else ACKED for n in self.open if n <= tag]
            multiple = all(one is kind for one in alike)
        for number in [n for n in self.open if n == tag or (multiple and n < tag)]:
            what, one = self.open.pop(number)
            self.expected[one.message_id] = what
        (self.tracker.nack if kind is NACKED else self.tracker.ack)(tag, multiple)

    def late(self, tag: int) -> None:
        """An answer to nothing that is open."""
        if tag not in self.open:
            self.tracker.ack(tag + 1_000_000, multiple=False)

    def close(self) -> None:
        for _, one in self.open.values():
            self.expected[one.message_id] = UNKNOWN
        self.open.clear()
        self.number = 0
        self.tracker.fail_all()


STEPS = st.one_of(
    st.tuples(st.just("take"), st.sampled_from([ACKED, NACKED, RETURNED])),
    st.tuples(st.just("answer"), st.integers(0, 9)),
    st.tuples(st.just("multiple"), st.integers(0, 9)),
    st.tuples(st.just("late"), st.integers(1, 9)),
    st.tuples(st.just("close"), st.none()),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_each_message_has_exactly_one_outcome(steps: list[tuple[str, object]]) -> None:
    found: dict[str, Outcome | None] = {}
    twice: list[str] = []

    def settled(one: Delivery) -> None:
        if one.message_id in found:
            twice.append(one.message_id)
        found[one.message_id] = one.outcome

    broker = Broker(DeliveryTracker(settled))
    for what, value in steps:
        if what == "take":
            assert isinstance(value, Outcome)
            broker.take(value)
        elif what == "close":
            broker.close()
        else:
            assert isinstance(value, int)
            if what == "late":
                broker.late(value)
            else:
                broker.answer(value, multiple=what == "multiple")
        assert found == broker.expected
        assert len(broker.tracker.pending) == len(broker.open)
    broker.close()
    assert found == broker.expected
    assert set(found) == {f"m{number + 1}" for number in range(broker.names)}
    assert (twice, broker.tracker.returnable, broker.tracker.sent) == ([], 0, 0)


def test_multiple_is_for_nacks_as_well() -> None:
    tracker = DeliveryTracker()
    four = [delivery(f"m{number}") for number in range(4)]
    for one in four:
        tracker.add(one)
    tracker.ack(2, multiple=False)
    tracker.nack(3, multiple=True)
    assert [one.outcome for one in four] == [NACKED, ACKED, NACKED, None]
    tracker.ack(0, multiple=True)
    assert four[3].outcome is ACKED
    assert tracker.pending == {}


def test_a_return_is_of_the_message_with_that_id_and_destination() -> None:
    tracker = DeliveryTracker()
    elsewhere = delivery("a", mandatory=True, routing_key="other")
    plain, first, second = (
        delivery("a"),
        delivery("a", mandatory=True),
        delivery("a", mandatory=True),
    )
    for one in (elsewhere, plain, first, second):
        tracker.add(one)
    assert tracker.returnable == 30
    tracker.on_return(312, "NO_ROUTE", "", "q", "a")
    tracker.on_return(312, "NO_ROUTE", "", "q", "b")
    tracker.ack(4, multiple=True)
    assert [one.outcome for one in (elsewhere, plain, first, second)] == [
        ACKED,
        ACKED,
        RETURNED,
        ACKED,
    ]
    assert first.returned == (312, "NO_ROUTE", False)
    assert tracker.returnable == 0


def test_a_message_that_came_back_and_was_refused_was_refused() -> None:
    tracker, one = DeliveryTracker(), delivery("a", mandatory=True)
    tracker.add(one)
    tracker.on_return(312, "NO_ROUTE", "", "q", "a")
    tracker.nack(1, multiple=False)
    assert one.outcome is NACKED


def test_answers_from_before_a_loss_are_nobodys() -> None:
    tracker, one, two = DeliveryTracker(), delivery("a"), delivery("b")
    tracker.add(one)
    tracker.fail_all()
    assert (one.outcome, tracker.losses) == (UNKNOWN, 1)
    # The broker counts anew as well.
    tracker.add(two)
    tracker.ack(2, multiple=False)
    assert two.outcome is None
    tracker.ack(1, multiple=False)
    assert (one.outcome, two.outcome) == (UNKNOWN, ACKED)


def test_a_message_id_is_a_uuid() -> None:
    made = [new_message_id() for _ in range(200)]
    assert len(set(made)) == 200
    for text in made:
        one = UUID(text)
        assert (str(one), one.version, one.variant) == (text, 4, RFC_4122)
