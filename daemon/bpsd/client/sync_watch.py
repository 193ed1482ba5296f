"""Following runs over a connection of its own, through restarts of the daemon."""

from __future__ import annotations

__all__ = ["Watch"]

import time

from bpsd.client import endpoint
from bpsd.client.failures import ClientError, OutOfTime, TimedOut

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Any, Self

    from bpsd.client.connection import Connection

    Item = dict[str, Any]


class Watch:
    """A subscription: a snapshot, then every event, in order and without holes.

    Iterating blocks until the next item; `read` waits a limited time. Items are dictionaries with a ``kind``:

    ``snapshot``
        ``runs``: rows of all live runs that are watched, of named ones and, after a break, of those that ended in it;
        ``seq``; ``complete``: false if there are more than a message holds. The first item, and again whenever events
        were missed.
    the kinds of `bpsd.messages.Event`
        Its fields.
    ``client.lost``, ``client.back``
        The daemon went away (``data["error"]``) or is back (after ``data["away_s"]`` seconds).

    Parameters
    ----------
    connection : `~bpsd.client.connection.Connection`
        For this watch alone; it is closed with it.
    runs, backend : sequence of `str`
        What to follow; nothing: everything.
    mine : `bool`
        Only my runs.
    jobs : `bool`
        Also every job.
    since : `int`, optional
        Resume after this sequence number, without a snapshot if the daemon still has what came after.
    patience_s : `float`, optional
        Seconds that a daemon may be away; by default any.
    """

    def __init__(
        self,
        connection: Connection,
        runs: Sequence[str] = (),
        *,
        backend: Sequence[str] = (),
        mine: bool = False,
        jobs: bool = False,
        since: int | None = None,
        patience_s: float | None = None,
    ) -> None:
        from collections import deque

        self.seq = since
        """The last sequence number seen."""
        self._connection = connection
        self._what = endpoint.given(runs=[*runs], backend=[*backend], mine=mine, jobs=jobs)
        self._patience_s = patience_s
        self._ready: deque[Item] = deque()
        self._id: int | None = None
        self._away_since: float | None = None
        self._pause = endpoint.RETRY_FIRST_S
        try:
            self._subscribe()
        except BaseException as error:
            if isinstance(error, ClientError) and connection.hello and endpoint.is_lost(error):
                self._lose(error)
                return
            connection.close()  # refused, or Ctrl-C: nobody will have the watch to close it
            raise

    def __repr__(self) -> str:
        state = f"at {self.seq}" if self._id is not None else "daemon away"
        return f"<Watch of {', '.join(self._what.get('runs', [])) or 'all runs'}, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        item = self.read()
        assert item is not None
        return item

    def close(self) -> None:
        """End the subscription."""
        self._connection.close()

    def read(self, timeout_s: float | None = None) -> Item | None:
        """Return the next item, or `None` if there is none within ``timeout_s`` seconds (by default: wait).

        Raises
        ------
        OutOfTime
            The connection's ``deadline`` has passed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._ready:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            if self._connection.deadline is not None:
                whole = self._connection.deadline - time.monotonic()
                if whole <= 0:
                    raise OutOfTime("the time is over")
                left = whole if left is None else min(left, whole)
            if self._id is None:
                self._return(left)
            else:
                self._listen(left)
        return self._ready.popleft()

    def _subscribe(self) -> None:
        params = {**self._what, **endpoint.given(since=self.seq)}
        answer = self._connection.request("watch", params, self._connection.timeout_s)
        self._id, self.seq = answer["watch"], answer["seq"] if not answer["resumed"] else self.seq
        if not answer["resumed"]:
            complete = answer.get("complete", True)
            self._ready.append(
                {"kind": "snapshot", "seq": answer["seq"], "runs": answer["snapshot"], "complete": complete}
            )

    def _listen(self, left: float | None) -> None:
        try:
            message = self._connection.receive(left)
        except TimedOut:
            return
        except ClientError as error:
            self._lose(error)
            return
        params = message.get("params")
        if message.get("method") != "event" or not isinstance(params, dict) or params.get("watch") != self._id:
            return
        if params.get("lost"):
            # Some of what happened was dropped on the way (we were too slow): go on after what came last.
            self._id = None
            self._connection.close()
            self._return(0.0)
            return
        event = params["event"]
        self.seq = event["seq"]
        self._ready.append(event)

    def _lose(self, error: ClientError) -> None:
        if not endpoint.is_lost(error):
            raise error
        self._connection.close()
        self._id, self._away_since, self._pause = None, time.monotonic(), endpoint.RETRY_FIRST_S
        self._ready.append({"kind": "client.lost", "data": {"error": error.message}})

    def _return(self, left: float | None) -> None:
        """Try once to subscribe again, and pause a little if that failed."""
        try:
            here = len(self._ready)
            self._subscribe()
            if self._away_since is not None:
                away_s = time.monotonic() - self._away_since
                self._ready.insert(here, {"kind": "client.back", "data": {"away_s": away_s}})
            self._away_since = None
        except ClientError as error:
            self._connection.close()
            now = time.monotonic()
            self._away_since = self._away_since or now
            if not (endpoint.is_lost(error) or isinstance(error, OutOfTime)):
                raise
            if self._patience_s is not None and now - self._away_since >= self._patience_s:
                raise
            time.sleep(self._pause if left is None else max(0.0, min(self._pause, left)))
            self._pause = min(self._pause * 2, endpoint.RETRY_MOST_S)
