"""Stages of several contenders, which one fault strikes at the same time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from .stage import Pace, Record, Stage

__all__ = ["Ensemble"]


class Ensemble:
    """Contenders that publish beside each other; a fault does to all what it does to one stage.

    :param stages: one for each contender, all with the same broker and pace.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self.pace: Pace = stages[0].pace

    def _all(self, call: Callable[[Stage], Any]) -> list[Any]:
        """What *call* returns for each stage, all at the same time."""
        with ThreadPoolExecutor(len(self.stages)) as threads:
            return list(threads.map(call, self.stages))

    def __enter__(self) -> Self:
        begun: list[Stage] = []
        try:
            self._all(lambda stage: begun.append(stage.__enter__()))
        except BaseException:
            for stage in begun:
                stage.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for stage in self.stages:
            stage.__exit__()

    # -- what a fault does -----------------------------------------------------------------------------

    def strikes(self) -> None:
        """The fault begins now."""
        for stage in self.stages:
            stage.strikes()

    def is_over(self) -> None:
        """The broker is there again, from now on."""
        for stage in self.stages:
            stage.is_over()

    def recovers(self) -> None:
        """Let the fault last until all publish in spite of it, or do not."""
        self._all(Stage.recovers)

    def outage(self, seconds: float | None = None) -> None:
        """Let the fault last."""
        time.sleep(self.pace.outage if seconds is None else seconds)

    @contextlib.contextmanager
    def told(self, order: str) -> Iterator[None]:
        """The processes see this file in their folders, within."""
        with contextlib.ExitStack() as told:
            for stage in self.stages:
                told.enter_context(stage.told(order))
            yield

    def kill_one(self) -> None:
        """SIGKILL the first process of each stage."""
        for stage in self.stages:
            stage.kill(stage.names[0])

    def fork(self) -> None:
        """Have every process fork."""
        for stage in self.stages:
            stage.fork()

    def freeze(self, seconds: float) -> None:
        """Stop every process where it stands, and let it go on."""
        self._all(lambda stage: stage.freeze(seconds))

    # -- the count -------------------------------------------------------------------------------------

    def settle(self) -> list[Record]:
        """Wait until all publish again, end the processes, and count."""
        return self._all(Stage.settle)
