"""The pool of producers: each producer publishes on a pooled connection, and stays with it between two leases."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from kombu.exceptions import LimitExceeded
from kombu.messaging import Producer as KombuProducer
from kombu.pools import ProducerPool as KombuProducerPool
from kombu.utils.functional import lazy

from ..engine import Lease, Pool, Share
from ..engine.stats import Drained
from ..errors import LeaseError, PoolClosed
from ..settings import CONFIRM_TIMEOUT, RetryPolicy
from . import hooks
from .base_pool import BasePool
from .event_loops import loops, warn_of_blocking
from .lazy_attribute import LazyAttribute
from .leased_connection import LeasedConnection
from .leased_producer import LeasedProducer, view_types
from .leftovers import keep_channel
from .lent_settings import wrappers_among
from .naming import describe_resource
from .revived import note_revival
from .soundness import verdict_on
from .sources import source_of
from .standalone import StandaloneProducer, give_back, make_standalone
from .validate import FLAGS, FOREVER, PLAIN, check_flag, valid_limit, valid_timeout

__all__ = ["MOST_LEASED", "ProducerPool"]

#: Leases up to which each of the threads that publish at once is served sooner by one of its own than by a connection
#: for all. Measured on two cores: four threads publish 1.2 times as much over leases, eight 1.6 times as much over one
#: connection; and where eight processes have eight threads each, fewer leases are better still.
MOST_LEASED = 4

_new = object.__new__


class ProducerPool(BasePool, KombuProducerPool):  # type: ignore[misc, unused-ignore]  # no queue
    """A pool of producers on the connections of another pool.

    Leasing a producer takes one lease of *connections*, whose limit bounds both; the producer and its channel
    stay with the connection between leases.

    :param connections: a :class:`ConnectionPool`, or kombu's own ``Connection(url).Pool(limit=…)``.
    :param limit: most producers at a time; ``None`` or 0 leaves it to *connections*.
    :param Producer: the class to make, by default :class:`kombu.Producer`.
    :param retry: when a publish whose connection broke is tried again on another one; ``None`` is never, unless the
        call asks for it, as kombu's ``publish(retry=True)`` does.
    :param mandatory: whether a message that no queue takes is an error, where the publish does not say it:
        ``"default_exchange"`` for those to the default exchange alone. Without confirms no publish raises that error.
    :param confirm_timeout: seconds for one try of a publish, and for all of them unless the call says otherwise; by
        default those of *connections*.
    """

    Producer: Any = KombuProducer
    close_after_fork = True
    #: What ``in_flight`` messages are published on; made by ``publisher/`` with the first of them.
    shared_road: Any = None

    def __init__(
        self,
        connections: Any,
        limit: int | None = None,
        preload: Any = None,
        close_after_fork: Any = None,
        *,
        Producer: Any = None,  # noqa: N803  # kombu's name
        retry: RetryPolicy | None = None,
        mandatory: bool | str = False,
        confirm_timeout: float | None = None,
        in_flight: int | None = None,
    ) -> None:
        # Not kombu's __init__: it registers a fork hook that shuts the parent's sockets down.
        BasePool.__init__(self, preload, close_after_fork)
        self.connections = connections
        #: How many messages may be without an outcome on a connection that all threads share; ``None`` if they do not.
        self.in_flight = in_flight
        self.Producer = Producer or self.Producer
        # Whether nobody overrode prepare(), which is then needed for new producers only.
        self._plain = type(self).prepare is ProducerPool.prepare
        # Whether nobody overrode release(), which producers call then when they are released.
        self._plain_release = type(self).release is ProducerPool.release
        #: When a publish whose connection broke is tried again on another one.
        self.retry = retry
        #: Whether a message that no queue takes is an error, where the publish does not say it.
        self.mandatory = mandatory
        #: Seconds for one try of a publish, and for all of them unless the call says otherwise.
        self.confirm_timeout: float = (
            confirm_timeout or getattr(connections, "confirm_timeout", None) or CONFIRM_TIMEOUT
        )
        self._source = source_of(connections)
        self._kind: type[Lease[Any]] = self._source.kind
        self._closed = False
        self._limit = valid_limit(limit)
        self.setup()

    # How many attributes a lent producer has as long as its borrower adds none.
    _attributes = 0
    # Whether acquire() asks the engine itself. Else the connections are of a pool of kombu's, or of a subclass of ours
    # with hooks.
    _straight = True
    # Whether nobody overrode what the end of a lease calls.
    _plain_end = True
    # Whether a producer stays with its connection between two leases.
    _keeps_producers = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._hooks = hooks.hooks_of(cls, ProducerPool)

    def _note_hooks(self) -> None:
        """Note in the instance, where it is found fast, what acquire and release depend on. The pool is used soon."""
        source = self._source
        self._straight = source.is_straight
        self._plain_end = source.has_plain_end and not self._hooks & {"release", "release_resource"}
        self._keeps_producers = source.keeps_producers

    # What most pools of a process with many never need.

    def _make_engine(self) -> Pool[Any]:
        self._note_hooks()
        return self._source.make_engine(self._limit)

    def _make_share(self) -> Share | None:
        return self._source.make_share(self._limit)

    def _note_limit(self, made: Any) -> None:
        # Closes the race with a resize that came while engine or share was made, and did not see it.
        if made is not None and made is self._bounded() and made.limit != self._limit:
            self._resize(self._limit, force=True)

    engine: LazyAttribute[Pool[Any]] = LazyAttribute(_make_engine, _note_limit)
    #: The bound on some of the leases of the connection pool.
    _share = LazyAttribute(_make_share, _note_limit)
    #: What its producers are found by, on each connection: those must not hold a pool that was made for one publish.
    _me: LazyAttribute[weakref.ref[ProducerPool]] = LazyAttribute(weakref.ref)
    #: Producers that close_resource() is looking at: it may release them itself.
    _leaving: LazyAttribute[set[LeasedProducer]] = LazyAttribute(lambda pool: set())

    @property
    def name(self) -> str:
        """What errors, logs and tables call the pool: as a rule the URI of its broker, without the password."""
        return self._source.name

    @property
    def is_over(self) -> bool:
        """Whether it was closed, or what it draws on."""
        return super().is_over or self._source.is_over

    # -- the limit: a share of the connection pool's ----------------------------------------------------

    def _bounded(self) -> Any:
        """What the limit is of, if it was made yet."""
        return LazyAttribute.of(self, self._source.limited_by)

    def _get_limit(self) -> int | None:
        bounded = self._bounded()
        limit: int | None = self._limit if bounded is None else bounded.limit
        return limit

    def _resize(self, limit: int | None, *, force: bool) -> None:
        bounded = self._bounded()
        if bounded is not None and limit is not None and self.lent > limit and not force:
            raise RuntimeError(
                f"pool {self.name!r}: can't shrink producer pool when in use: was={bounded.limit} "
                f"now={limit}, {self.lent} lent; pass force=True"
            )
        # In this order: a thread that is making it looks at the limit when it can be seen here.
        self._limit = limit
        bounded = self._bounded()
        if bounded is None:
            return
        self._source.resize(self.engine, bounded, limit, force=force)

    @property
    def lent(self) -> int:
        """Producers out at the moment."""
        bounded = self._bounded()
        return 0 if bounded is None else self._source.lent(self.engine, bounded)

    @property
    def blocked(self) -> str | None:
        """Why the broker takes no messages; ``None`` if it does, as far as is known."""
        share = self._share
        return None if share is None else share.blocked

    def is_away_for(self, seconds: float) -> bool:
        """Whether no connection is there, and none could be opened for *seconds*. Nothing is opened or waited for."""
        return bool(self.engine.state.is_away_for(seconds))

    @property
    def is_crowded(self) -> bool:
        """Whether so many publish that a connection which they share serves them sooner than a lease for each."""
        road = self.shared_road
        if road is not None and road.publisher.live:
            # Until nobody is there: who takes a lease meanwhile would have to wait for it soon.
            return True
        state = self.engine.state
        most = MOST_LEASED if state.limit is None else min(state.limit, MOST_LEASED)
        return state.lent_count >= most

    def why_not_lent(self, seconds: float) -> Exception:
        """Return the error of a caller that has waited for so long, and got nothing. Nothing is opened."""
        engine = self.engine
        if engine.closed:
            reason = "closed"
        elif engine.state.suspended:
            reason = "suspended"
        else:
            reason = "timeout" if self.blocked is None else "blocked"
        error: Exception = engine.refuse(reason, seconds)
        return error

    # -- acquire and release ----------------------------------------------------------------------------

    def acquire(self, block: bool = False, timeout: float | None = None) -> LeasedProducer:
        """Lend a producer; to be given back with ``release()``, or by leaving its ``with`` block.

        :param block: wait without end, unless there is a *timeout*.
        :param timeout: seconds for everything together: waiting, connecting, checking. Implies waiting.
        :raises LimitExceeded: :class:`~.PoolExhausted`, :class:`~.PoolTimeout`, :class:`~.PoolFull`.
        :raises RuntimeError: :class:`~.PoolClosed`, after :meth:`force_close_all`.
        :raises OperationalError: :class:`~.BrokerUnreachable`.
        :raises TypeError, ValueError: if *timeout* is not a valid number of seconds, or if *block* is one, as in
            ``acquire(5)``.
        """
        if loops.running() is not None:
            warn_of_blocking("acquire()")
        if self._closed:
            raise PoolClosed(f"pool {self.name!r}: acquire on closed pool")
        if block not in FLAGS:
            check_flag("block", block)
        if timeout is not None and not (timeout.__class__ in PLAIN and 0 <= timeout < FOREVER):
            timeout = valid_timeout(timeout)
        try:
            engine = self.engine
            if self._straight:
                lease = engine.acquire(block, timeout, self._share, self._kind)
            else:
                lease = self._lease(block, timeout)
        except LimitExceeded as error:
            if isinstance(error, self.LimitExceeded):
                raise
            raise hooks.as_limit_exceeded(self.LimitExceeded, error) from error.__cause__
        try:
            producer = self._producer_on(lease)
            view: LeasedProducer = _new(view_types[producer.__class__])
        except BaseException as error:
            lease.end(verdict_on(lease.item.pooled_session, error))
            raise
        # A copy: what the borrower sets is forgotten with the view.
        view.__dict__ = producer.__dict__.copy()
        view._lease = lease
        view._pool = self
        view._broken = False
        view._batch = None
        return view

    def _lease(self, block: bool, timeout: float | None) -> Any:
        """Take a lease where the connections are of another kind of pool, or of a subclass of ours with hooks."""
        return self._source.lease(
            block,
            timeout,
            lambda: self.engine.acquire(block, timeout, self._share, self._kind),
            lambda: self._handing_down(self._share),
        )

    def give_up(self, view: LeasedProducer, kept: dict[str, Any]) -> None:
        """Take the connection of *view* away and close it; the view itself may get another one.

        :param kept: the attributes that the view has until then.
        """
        if not view._lease.ended:
            item = view._lease.item
            self._take_back(view, "broken")
            view.__dict__.update(kept)
            view._lost = item

    def renew(self, view: LeasedProducer, timeout: float, *, unless_down: bool = False) -> None:
        """Lend another connection to *view*, which was given up.

        :param timeout: seconds for everything together, as in :meth:`acquire`, whose errors it raises.
        :param unless_down: do not wait for a broker that is down.
        """
        if self._closed:
            raise PoolClosed(f"pool {self.name!r}: acquire on closed pool")
        self._check_lost(view)
        timeout = max(0.0, timeout)
        if self._straight:
            lease = self.engine.acquire(True, timeout, self._share, self._kind, not unless_down)
        else:
            lease = self._lease(False, timeout)
        try:
            producer = self._producer_on(lease)
            # Another thread may have released it meanwhile.
            self._check_lost(view)
        except BaseException as error:
            lease.end(verdict_on(lease.item.pooled_session, error))
            raise
        view.__dict__ = producer.__dict__.copy()
        view._lease = lease
        view._broken = False
        view._lost = None

    def _check_lost(self, view: LeasedProducer) -> None:
        if getattr(view, "_lost", None) is None:
            raise LeaseError(
                f"pool {self.name!r}: the producer was released while it was publishing; acquire another one"
            )

    def state_as_lent(self, view: LeasedProducer) -> dict[str, Any]:
        """The attributes that *view* had when it was lent; none, where that is not known."""
        item = view._lease.item
        producer = item.pooled_producers.get(self._me) if self._keeps_producers else None
        return {} if producer is None else vars(producer)

    def note_revival(self, view: LeasedProducer, given: Any, before: Any) -> None:
        """Called by a producer that was revived with *given*, a channel or a connection; its channel was *before*."""
        note_revival(view, given, before)

    def reads_no_more(self, item: Any) -> None:
        """Called by a producer whose connection is of no use until its release, so that nobody reads from it any more.

        If the broker takes no messages, nobody would learn from this connection that it does again: it must not keep
        the gate shut.
        """
        self._source.reads_no_more(item)

    def _producer_on(self, lease: Any) -> Any:
        """The producer that stays with the lent connection; made at the first lease."""
        item = lease.entry.item
        producers = producer = None
        if self._keeps_producers:
            lease._pool = self.connections
            producers = item.pooled_producers
            producer = producers.get(self._me)
            if producer is not None and self._plain and producer._channel is not None:
                return producer
        with self._handing_down(lease):
            if producer is None:
                producer = self.new() if "new" in self._hooks else self.create_producer()
            producer = self.prepare(producer)
        if producer.__connection__ is not item:
            # A subclass acquired the connection itself: same lease, but a view of it, which ends with it.
            producer.revive(item)
        # Not shared with others of its class, which copies faster.
        producer.__dict__ = dict(producer.__dict__)
        self._attributes = len(producer.__dict__)
        if producers is not None:
            producers.keep(self, producer)
            if item._default_channel is not None:
                keep_channel(producer)
            # For what is published on its channel without a leased producer.
            item.confirm_timeout = self.confirm_timeout
        return producer

    @contextmanager
    def _handing_down(self, what: Any) -> Iterator[None]:
        """Within, this thread's ``connections.acquire()`` has *what* at hand.

        :param what: the lease to return in place of another one, or the share to acquire with.
        """
        me, pending = threading.get_ident(), self._source.pending
        # A hook may acquire another producer of these connections.
        before = pending.get(me)
        pending[me] = what
        try:
            yield
        finally:
            pending.pop(me, None)
            if before is not None:
                pending[me] = before

    def _is_lending(self) -> bool:
        """Whether this thread is in acquire(), which has a connection already."""
        return threading.get_ident() in self._source.pending

    def _acquire_connection(self) -> Any:
        lease = self._source.pending.get(threading.get_ident())
        if lease is None:
            return self.connections.acquire(block=True)
        return lease if isinstance(lease, LeasedConnection) else lease.item

    def create_producer(self) -> Any:
        """Make a producer on a connection; to be overridden by subclasses that want another one.

        Called by :meth:`acquire` it uses the connection just lent; called from elsewhere it acquires one, which the
        producer's ``release()``, or :meth:`release`, gives back.
        """
        if self._is_lending():
            return self.Producer(self._acquire_connection())
        connection = self._acquire_connection()
        try:
            return make_standalone(self.Producer(connection))
        except BaseException:
            connection.release()
            raise

    def prepare(self, p: Any) -> Any:
        """Make *p* ready for its borrower; called at every acquire.

        Called from elsewhere it acquires a connection for a producer that has none, as :meth:`create_producer` does.
        """
        if callable(p):
            p = p()
        if p._channel is None:
            if self._is_lending():
                p.revive(self._acquire_connection())
                return p
            connection = self._acquire_connection()
            try:
                p.revive(connection)
                make_standalone(p)
            except BaseException:
                # A later prepare() must get another connection.
                p._channel = p.__connection__ = None
                connection.release()
                raise
        return p

    def release(self, resource: Any) -> None:
        """Take a producer back; the second time does nothing.

        :raises LeaseError: if it is not a lease of this pool.
        """
        if self._is_standalone(resource):
            give_back(resource)
            return
        view = self._own(resource)
        self._forget_lost(view)
        if view._batch is not None:
            self._leave_batch(view)
        self._take_back(view, self._verdict(view, None))

    def replace(self, resource: Any) -> None:
        """Take a producer back and close its connection: the next borrower gets another one.

        :raises LeaseError: if it is not a lease of this pool.
        """
        if self._is_standalone(resource):
            if resource.__connection__ is not None:
                self.connections.replace(resource.__connection__)
                resource.channel = resource.__connection__ = None
            return
        view = self._own(resource)
        self._forget_lost(view)
        if view._batch is not None:
            self._leave_batch(view)
        self._take_back(view, "replaced")

    def _is_standalone(self, resource: Any) -> bool:
        """Whether *resource* is a producer that was made here outside acquire(), by a subclass perhaps."""
        if not isinstance(resource, KombuProducer) or isinstance(resource, LeasedProducer):
            return False
        connection: Any = resource.__connection__
        if connection is None:
            # Given back before.
            return isinstance(resource, StandaloneProducer)
        return getattr(connection, "_pool", None) is self.connections

    def _own(self, resource: Any) -> LeasedProducer:
        if not isinstance(resource, LeasedProducer) or resource._pool is not self:
            raise LeaseError(
                f"pool {self.name!r}: cannot take {describe_resource(resource)}, it is no lease of this pool; call its "
                "own release()"
            )
        return resource

    def end_lease(
        self, view: LeasedProducer, error: BaseException | None, block_ends: bool = False
    ) -> None:
        """Called by a producer that is released, or whose block is left with *error*."""
        lease: Any = view._lease
        if view._batch is not None:
            self._leave_batch(view)
        state = view.__dict__
        if (
            error is None
            and self._plain_end
            and not view._broken
            and not self._leaving
            and len(state) == self._attributes
        ):
            # What the rest would find of most leases, in fewer steps.
            entry = lease.entry
            if entry is None or entry.lender is None:
                self._forget_lost(view)
                return
            item = entry.item
            if item.pooled_session.is_sound() and not (self._keeps_producers and item.untidy):
                state.clear()
                lease.lender.release(lease)
                return
        self._forget_lost(view)
        if block_ends and "release" in state:
            self._end_wrapped(view, error)
            return
        verdict = self._verdict(view, error)
        if self._plain_release:
            self._take_back(view, verdict)
        elif not lease.ended:
            view._broken = verdict is not None
            self.release(view)

    def _forget_lost(self, view: LeasedProducer) -> None:
        """Have a producer that has lost its connection publish no more, because it is released."""
        if view._lease.ended and getattr(view, "_lost", None) is not None:
            view._lost = None
            view.__dict__ = wrappers_among(view)

    def _end_wrapped(self, view: LeasedProducer, error: BaseException | None) -> None:
        """The block of *view* ends, whose borrower has put something in the place of its ``release``.

        It is called as kombu calls it. The block ends the lease, whatever that does.
        """
        view._broken = self._verdict(view, error) is not None
        try:
            view.release()
        finally:
            self.end_lease(view, error)

    def _leave_batch(self, view: LeasedProducer) -> None:
        """End the block that *view* is in, because it is about to be given back."""
        batch = view._batch
        try:
            if batch is not None:
                batch.leave()
        except BaseException:
            # A signal handler's: the caller's release does not get there.
            self._take_back(view, "broken")
            raise

    def _verdict(self, view: LeasedProducer, error: BaseException | None) -> str | None:
        entry = view._lease.entry
        if entry is None or entry.lender is None:
            return None
        return "broken" if view._broken else verdict_on(entry.item.pooled_session, error)

    def _take_back(self, view: LeasedProducer, verdict: str | None) -> None:
        lease = view._lease
        if lease.ended or view in self._leaving:
            return
        try:
            if verdict is not None:
                self._leaving.add(view)
                self.close_resource(view)
            elif not self._plain_end:
                self._leaving.add(view)
                self.release_resource(view)
        finally:
            self._leaving.discard(view)
            view.undo_revival()
            # The lease itself keeps its wrappers, because the borrower may remove them later.
            view.__dict__ = wrappers_among(view)
            lease.end(verdict)

    def close_resource(self, resource: Any) -> None:
        """Called with a producer that will not be lent again; does nothing, and is there to be overridden."""

    def release_resource(self, resource: Any) -> None:
        """Kombu's; does nothing. Called with a producer that is given back, and may be lent again."""

    def collect_resource(self, resource: Any) -> None:
        """Kombu's; does nothing. Called with each producer whose connection ``force_close_all()`` closes."""

    def new(self) -> Any:
        """Kombu's; returns what makes a producer when it is called. Called where a connection has none yet."""
        return lazy(self.create_producer)

    def _collecting(self) -> AbstractContextManager[None]:
        if "collect_resource" not in self._hooks:
            return super()._collecting()

        def tell(item: Any) -> None:
            producer = item.pooled_producers.get(self._me)
            if producer is not None:
                self.collect_resource(producer)

        return self._source.collecting(tell)

    def force_close_all(self, close_pool: bool = True) -> Drained:
        """Close the connections under the producers: the idle ones now, the lent ones as they come back.

        :param close_pool: refuse every later acquire of a producer; the connection pool stays usable.
        :returns: how many were closed, and how many are still lent.
        :raises TypeError: for a *close_pool* that is meant as a time-out; :meth:`drain` has one.
        """
        check_flag("close_pool", close_pool, "drain(timeout={})")
        self._closed = self._closed or close_pool
        drain = super().force_close_all
        with self._collecting():
            return self._source.close_connections(lambda: drain(close_pool=False))
