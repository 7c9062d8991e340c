"""Answering a caller who has proven himself: who this process is, and what it did."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import Any

from .performing import perform
from .process import here
from .project import Project
from .request import Request
from .wire import LARGEST_ANSWER, LARGEST_REQUEST, Stream, encode

__all__ = ["converse"]

logger = logging.getLogger("kombu_pools_ext.control")

#: Seconds for taking the answer.
ANSWER_TIMEOUT = 5.0


def converse(stream: Stream, project: Project) -> None:
    """Say who this process is, do what the caller wants, if anything, and tell him what came of it.

    :raises Stranger: if he speaks something else.
    :raises EOFError, OSError: if he hangs up, or is slow.
    """
    stream.send({"process": asdict(here())})
    given = stream.receive(LARGEST_REQUEST)
    try:
        request = Request.from_dict(given.get("request") if isinstance(given, dict) else None)
    except ValueError as error:
        answer: dict[str, Any] = {"outcome": "failed", "error": " ".join(str(error).split())}
    else:
        done = perform(request, project)
        logger.debug("control: %s: %s", request.command, done.outcome)
        answer = done.as_dict()
        # He knows that.
        del answer["process"]
    data = encode({"answer": answer})
    if len(data) > LARGEST_ANSWER:
        why = f"the answer has {len(data)} bytes, more than {LARGEST_ANSWER}; ask for fewer aliases at a time"
        data = encode({"answer": {"outcome": "failed", "error": why}})
    stream.deadline = time.monotonic() + ANSWER_TIMEOUT
    stream.send_bytes(data)
