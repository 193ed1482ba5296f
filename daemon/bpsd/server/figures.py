"""What the server counts, for ``health`` and for Prometheus."""

from __future__ import annotations

__all__ = ["COUNTERS", "HELP", "ClientsUse", "SocketFigures"]

import msgspec


class SocketFigures(msgspec.Struct):
    """Counts since the start, but for ``clients`` and ``requests_in_flight``, which are now."""

    clients: int = 0
    clients_accepted: int = 0
    clients_refused: int = 0
    clients_dropped: int = 0
    requests: int = 0
    requests_in_flight: int = 0
    requests_slow: int = 0
    internal_errors: int = 0
    messages_malformed: int = 0
    notifications_lost: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def as_dict(self) -> dict[str, float]:
        """Name to value."""
        return {name: float(getattr(self, name)) for name in self.__struct_fields__}


class ClientsUse(msgspec.Struct, frozen=True, kw_only=True):
    """The connections in use now, their limits, and the users who have them, the largest number first."""

    clients: int = 0
    limit: int = 0
    limit_per_user: int = 0
    by_user: dict[str, int] = {}


HELP = {
    "clients": "Connections now",
    "clients_accepted": "Connections that were let in",
    "clients_refused": "Connections that were turned away: not allowed, or too many",
    "clients_dropped": "Connections that were ended: half a message, nothing read, nothing asked",
    "requests": "Requests received",
    "requests_in_flight": "Requests that wait for their answer",
    "requests_slow": "Requests that used more than 50 ms of the event loop",
    "internal_errors": "Requests that failed by an error of the daemon",
    "messages_malformed": "Messages that were no request",
    "notifications_lost": "Notifications that a watcher was too slow for",
    "bytes_in": "Bytes received from clients",
    "bytes_out": "Bytes sent to clients",
}

COUNTERS = frozenset(HELP) - {"clients", "requests_in_flight"}
