"""The pool of producers: each is a face of a pooled connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kombu
from kombu.pools import ProducerPool as KombuProducerPool
from kombu.utils.functional import lazy

from ..engine import Lease, Pool, PoolOptions, Share
from ..engine.counters import Drained
from ..errors import LeaseError, PoolClosed
from ..settings import RetryPolicy
from .confirms import CONFIRM_TIMEOUT
from .connections import ConnectionPool, PoolFace
from .driver import ForeignDriver, KombuErrors
from .leftovers import keep_channel
from .made_once import MadeOnce
from .naming import describe_resource
from .producer_views import ProducerView, view_types
from .soundness import is_sound, verdict_on
from .validate import FLAGS, FOREVER, PLAIN, check_flag, valid_limit, valid_timeout
from .views import RELEASED_STATE, ConnectionView

__all__ = ["ProducerPool"]

_new = object.__new__


class ProducerPool(PoolFace, KombuProducerPool):
    """A pool of producers on the connections of another pool.

    Leasing a producer takes one lease of *connections*, whose limit bounds both; the producer and its channel
    stay with the connection between leases.

    :param connections: a :class:`ConnectionPool`, or kombu's own ``Connection(url).Pool(limit=…)``.
    :param limit: most producers at a time; ``None`` or 0 leaves it to *connections*.
    :param Producer: the class to make, by default :class:`kombu.Producer`.
    :param retry: when a publish whose connection broke is tried again on another one; ``None`` is never, unless it
        asks for that itself, as kombu's ``publish(retry=True)`` does.
    :param mandatory: whether a message that no queue takes is an error, where the publish does not say it:
        ``"default_exchange"`` for those to the default exchange alone. It takes confirms for somebody to hear of it.
    :param confirm_timeout: seconds for a publish with all its tries; by default those of *connections*.
    """

    Producer: Any = kombu.Producer
    close_after_fork = True

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
    ) -> None:
        # Not kombu's __init__: it registers a fork hook that shuts the parent's sockets down.
        PoolFace.__init__(self, preload, close_after_fork)
        self.connections = connections
        self.Producer = Producer or self.Producer
        # Whether nobody overrode prepare(), which is then needed for new producers only.
        self._plain = type(self).prepare is ProducerPool.prepare
        # Whether nobody overrode release(), which producers call then when they are released.
        self._plain_release = type(self).release is ProducerPool.release
        #: When a publish whose connection broke is tried again on another one.
        self.retry = retry
        #: Whether a message that no queue takes is an error, where the publish does not say it.
        self.mandatory = mandatory
        #: Seconds that a publish takes at most: all tries, and the broker's confirm.
        self.confirm_timeout: float = (
            confirm_timeout or getattr(connections, "confirm_timeout", None) or CONFIRM_TIMEOUT
        )
        #: Whether the connections are a pool of somebody else.
        self.foreign = not isinstance(connections, ConnectionPool)
        self._kind: type[Lease[Any]] = Lease if self.foreign else ConnectionView
        self._closed = False
        self._limit = valid_limit(limit)

    # What most pools of a process with many never need.

    def _make_foreign(self) -> ForeignDriver | None:
        return ForeignDriver(self.connections) if self.foreign else None

    def _make_engine(self) -> Pool[Any]:
        if self._foreign is None:
            self.connections.lends_producers = True
            engine: Pool[Any] = self.connections.engine
            return engine
        return Pool(
            self._foreign,
            name=f"producers of {self.connections!r}",
            limit=self._limit,
            options=PoolOptions(keep=False),
            errors=KombuErrors(),
        )

    def _make_share(self) -> Share | None:
        return None if self.foreign else Share(self._limit, self.connections.publishing)

    def _note_limit(self, made: Any) -> None:
        # Closes the race with a resize that came while engine or share was made, and did not see it.
        if made is None or self.foreign != isinstance(made, Pool):
            return
        if made.limit != self._limit:
            self._resize(self._limit, force=True)

    _foreign: ForeignDriver | None = MadeOnce(_make_foreign)  # type: ignore[assignment]  # a descriptor
    engine: Pool[Any] = MadeOnce(_make_engine, _note_limit)  # type: ignore[assignment]  # a descriptor
    #: The bound on some of the leases of the connection pool.
    _share: Share | None = MadeOnce(_make_share, _note_limit)  # type: ignore[assignment]  # a descriptor
    #: By thread that is in acquire(), the lease for create_producer() to use.
    _pending: dict[int, Any] = MadeOnce(  # type: ignore[assignment]  # a descriptor
        lambda pool: {} if pool.foreign else pool.connections.pending
    )
    #: Producers that close_resource() is looking at: it may release them itself.
    _leaving: set[ProducerView] = MadeOnce(lambda pool: set())  # type: ignore[assignment]  # a descriptor

    @property
    def name(self) -> str:
        """What errors, logs and tables call the pool: alias and URI, without a password."""
        return str(self.engine.name if self.foreign else self.connections.name)

    @property
    def is_over(self) -> bool:
        """Whether it was closed, or what it draws on."""
        return super().is_over or (not self.foreign and self.connections.is_over)

    # -- the limit: a share of the connection pool's ----------------------------------------------------

    def _bounded(self) -> Any:
        """What the limit is of, if it was made yet."""
        return MadeOnce.of(self, "engine" if self.foreign else "_share")

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
        if self.foreign:
            self.engine.resize(limit, force=force)
        else:
            self.engine.resize_share(bounded, limit)

    @property
    def lent(self) -> int:
        """Producers out at the moment."""
        bounded = self._bounded()
        if bounded is None:
            return 0
        return int(bounded.lent) if self.foreign else self.engine.lent_of(bounded)

    # -- acquire and release ----------------------------------------------------------------------------

    def acquire(self, block: bool = False, timeout: float | None = None) -> Any:
        """Lend a producer; to be given back with ``release()``, or by leaving its ``with`` block.

        :param block: wait without end, unless there is a *timeout*.
        :param timeout: seconds for everything together: waiting, connecting, checking. Implies waiting.
        :raises LimitExceeded: :class:`~.PoolExhausted`, :class:`~.PoolTimeout`, :class:`~.PoolFull`.
        :raises RuntimeError: :class:`~.PoolClosed`, after :meth:`force_close_all`.
        :raises OperationalError: :class:`~.BrokerUnreachable`.
        :raises TypeError, ValueError: for a *timeout* that is none, and a *block* that is meant as one: ``acquire(5)``.
        """
        if self._closed:
            raise PoolClosed(f"pool {self.name!r}: acquire on closed pool")
        if block not in FLAGS:
            check_flag("block", block)
        if timeout is not None and not (timeout.__class__ in PLAIN and 0 <= timeout < FOREVER):
            timeout = valid_timeout(timeout)
        if self._foreign is None or block or timeout is not None:
            lease = self.engine.acquire(block, timeout, self._share, self._kind)
        else:
            # The other pool is asked here: an opening in the background would wait for it.
            with self._foreign.not_waiting():
                lease = self.engine.acquire(block, timeout, self._share, self._kind)
        try:
            producer = self._producer_on(lease)
            view: ProducerView = _new(view_types[producer.__class__])
        except BaseException as error:
            lease.end(verdict_on(lease.item, error))
            raise
        # A copy: what the borrower sets is forgotten with the view.
        view.__dict__ = producer.__dict__.copy()
        view._lease = lease
        view._pool = self
        view._broken = False
        view._batch = None
        return view

    def give_up(self, view: ProducerView) -> None:
        """Take the connection of *view* away and close it; the view itself may get another one."""
        self._take_back(view, "broken")

    def renew(self, view: ProducerView, timeout: float) -> None:
        """Lend another connection to *view*, which was given up.

        :param timeout: seconds for everything together, as in :meth:`acquire`, whose errors it raises.
        """
        if self._closed:
            raise PoolClosed(f"pool {self.name!r}: acquire on closed pool")
        lease = self.engine.acquire(False, max(0.0, timeout), self._share, self._kind)
        try:
            producer = self._producer_on(lease)
        except BaseException as error:
            lease.end(verdict_on(lease.item, error))
            raise
        view.__dict__ = producer.__dict__.copy()
        view._lease = lease
        view._broken = False

    def reads_no_more(self, item: Any) -> None:
        """Called by a producer whose connection is of no use until its release.

        Nobody will read there that the broker takes messages again, so it must not keep the others waiting for that.
        """
        if not self.foreign and self.connections.publishing.reason is not None:
            self.connections.publishing_unblocked(item)

    def _producer_on(self, lease: Any) -> Any:
        """The producer that stays with the lent connection; made at the first lease."""
        item = lease._entry.item
        if self.foreign:
            producers = producer = None
        else:
            lease._pool = self.connections
            lease.__dict__ = item.__dict__
            producers = item.pooled_producers
            producer = producers.get(self)
            if producer is not None and self._plain and producer._channel is not None:
                return producer
        with self._lending(lease):
            if producer is None:
                producer = self.create_producer()
            producer = self.prepare(producer)
        if producer.__connection__ is not item:
            # A subclass acquired the connection itself: same lease, but a view of it, which ends with it.
            producer.revive(item)
        # Not shared with others of its class, which copies faster.
        producer.__dict__ = dict(producer.__dict__)
        if producers is not None:
            producers[self] = producer
            if item._default_channel is not None:
                keep_channel(producer)
            # For whoever publishes on its channel by himself.
            item.confirm_timeout = self.confirm_timeout
        return producer

    @contextmanager
    def _lending(self, lease: Lease[Any]) -> Iterator[None]:
        """Within, this thread's ``connections.acquire()`` gives what has been lent already, not a second one."""
        me = threading.get_ident()
        self._pending[me] = lease
        try:
            yield
        finally:
            del self._pending[me]

    def _acquire_connection(self) -> Any:
        lease = self._pending.get(threading.get_ident())
        if lease is None:
            return self.connections.acquire(block=True)
        return lease if isinstance(lease, ConnectionView) else lease.item

    def create_producer(self) -> Any:
        """Make a producer on a connection; to be overridden by subclasses that want another one.

        Called by :meth:`acquire` it uses the connection just lent; called from elsewhere it acquires one.
        """
        return self.Producer(self._acquire_connection())

    def prepare(self, p: Any) -> Any:
        """Make *p* ready for its borrower; called at every acquire."""
        if callable(p):
            p = p()
        if p._channel is None:
            p.revive(self._acquire_connection())
        return p

    def release(self, resource: Any) -> None:
        """Take a producer back; the second time does nothing.

        :raises LeaseError: if it is not a lease of this pool.
        """
        view = self._own(resource)
        if view._batch is not None:
            self._leave_batch(view)
        self._take_back(view, self._verdict(view, None))

    def replace(self, resource: Any) -> None:
        """Take a producer back and close its connection: the next borrower gets another one.

        :raises LeaseError: if it is not a lease of this pool.
        """
        view = self._own(resource)
        if view._batch is not None:
            self._leave_batch(view)
        self._take_back(view, "replaced")

    def _own(self, resource: Any) -> ProducerView:
        if not isinstance(resource, ProducerView) or resource._pool is not self:
            raise LeaseError(
                f"pool {self.name!r}: cannot take {describe_resource(resource)}, it is no lease of this pool; call its "
                "own release()"
            )
        return resource

    def _end(self, view: ProducerView, error: BaseException | None) -> None:
        """Called by a producer that is released, and left with *error*."""
        lease: Any = view._lease
        if view._batch is not None:
            self._leave_batch(view)
        if error is None and self._plain_release and not view._broken and not self._leaving:
            # What the rest would find of most leases, in fewer steps.
            entry = lease._entry
            if entry is None or entry.engine is None:
                return
            if is_sound(entry.item) and (self.foreign or not entry.item.untidy):
                view.__dict__ = RELEASED_STATE
                if not self.foreign:
                    lease.__dict__ = RELEASED_STATE
                lease._engine.release(lease)
                return
        verdict = self._verdict(view, error)
        if self._plain_release:
            self._take_back(view, verdict)
        elif not lease.ended:
            view._broken = verdict is not None
            self.release(view)

    def _leave_batch(self, view: ProducerView) -> None:
        """End the block that *view* is in, for it is about to be given back."""
        batch = view._batch
        try:
            if batch is not None:
                batch.leave()
        except BaseException:
            # A signal handler's: the caller's release does not get there.
            self._take_back(view, "broken")
            raise

    def _verdict(self, view: ProducerView, error: BaseException | None) -> str | None:
        entry = view._lease._entry
        if entry is None or entry.engine is None:
            return None
        return "broken" if view._broken else verdict_on(entry.item, error)

    def _take_back(self, view: ProducerView, verdict: str | None) -> None:
        lease = view._lease
        if lease.ended or view in self._leaving:
            return
        try:
            if verdict is not None:
                self._leaving.add(view)
                self.close_resource(view)
        finally:
            self._leaving.discard(view)
            view.__dict__ = RELEASED_STATE
            lease.end(verdict)

    def close_resource(self, resource: Any) -> None:
        """Called with a producer that will not be lent again; does nothing, and is there to be overridden."""

    # kombu's hooks around its queue, which is not there: they are called by nobody.
    def setup(self) -> None:
        """Kombu's; does nothing."""

    def new(self) -> Any:
        """Kombu's; makes a producer on a connection of its own when it is called."""
        return lazy(self.create_producer)

    def force_close_all(self, close_pool: bool = True) -> Drained:
        """Close the connections under the producers: the idle ones now, the lent ones as they come back.

        :param close_pool: refuse every later acquire of a producer; the connection pool stays usable.
        :returns: how many were closed, and how many are still lent.
        :raises TypeError: for a *close_pool* that is meant as a time-out; :meth:`drain` has one.
        """
        check_flag("close_pool", close_pool, "drain(timeout={})")
        self._closed = self._closed or close_pool
        if self.foreign:
            return super().force_close_all(close_pool=False)
        return self.connections.force_close_all(close_pool=False)  # type: ignore[no-any-return]  # kombu's may be given
