"""The sections ``metrics`` and ``notifications`` of the configuration: where the daemon tells others of itself.

What opens a door (a webhook's address and header, a mail server's password) is shown by no ``repr``, and each can be
read from a file of its own instead, when it is needed.
"""

from __future__ import annotations

__all__ = [
    "PROBLEMS",
    "Mail",
    "MetricsSettings",
    "NotificationKind",
    "Notifications",
    "Route",
    "Webhook",
    "loopback_address",
]

import ipaddress
import re
from functools import lru_cache
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from bpsd.patterns import Glob

NotificationKind: TypeAlias = Literal["finished", "failed", "held", "backend_down", "stale"]
"""What there is to tell. What mends it (``recovered``) is of the same kind."""

PROBLEMS: tuple[NotificationKind, ...] = ("failed", "held", "backend_down", "stale")
"""What a route tells of by default."""

_Host = Annotated[str, Meta(min_length=1, max_length=255)]


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Figures for Prometheus."""

    textfile: (
        Annotated[
            str,
            Meta(
                pattern=r"^/.*\.prom$",
                description="a file for the textfile collector of node_exporter (it reads names that end in .prom)",
            ),
        ]
        | None
    ) = None
    interval_s: Annotated[float, Meta(ge=1, description="how often that file is written")] = 15.0
    listen: (
        Annotated[
            str, Meta(description="a loopback address and port, as 127.0.0.1:9469, to be scraped at (GET /metrics)")
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        if self.listen is not None:
            loopback_address(self.listen)


def loopback_address(text: str) -> tuple[str, int]:
    """Host and port of ``127.0.0.1:9469`` or ``[::1]:9469``.

    Raises
    ------
    ValueError
        If it is something else, or an address that others than this host can reach.
    """
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        if not address.is_loopback or not 0 <= int(port) <= 65535:
            raise ValueError(text)
    except ValueError:
        raise ValueError(
            f"listen: {text!r} is no loopback address with a port, such as 127.0.0.1:9469 or [::1]:9469"
        ) from None
    return str(address), int(port)


def _has_good_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


_glob = lru_cache(maxsize=256)(Glob)


class Webhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An address that gets a POST of a JSON document."""

    url: Annotated[str, Meta(max_length=4096)] | None = None
    url_file: Annotated[str, Meta(pattern="^/")] | None = None
    bearer_file: Annotated[str, Meta(pattern="^/")] | None = None

    def __post_init__(self) -> None:
        if (self.url is None) == (self.url_file is None):
            raise ValueError("a webhook has either url or url_file")
        if self.url is not None and not re.fullmatch(r"https?://\S+", self.url):
            raise ValueError(
                "url does not begin with http:// or https://, or has blanks"
            )  # and is not shown: see above
        if self.url is not None and not _has_good_port(self.url):
            raise ValueError("the port in url is not a number from 1 to 65535")

    def __repr__(self) -> str:
        return "<Webhook>"


class Mail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"sender": "from"}):
    """A message over SMTP."""

    to: Annotated[list[Annotated[str, Meta(pattern=r"^[^\s<>,]+@[^\s<>,]+$")]], Meta(min_length=1, max_length=100)]
    sender: Annotated[str, Meta(pattern=r"^[^\s<>,]+@[^\s<>,]+$")]
    host: _Host = "localhost"
    port: Annotated[int, Meta(ge=1, le=65535)] = 25
    tls: Literal["none", "starttls", "tls"] = "none"
    user: Annotated[str, Meta(min_length=1)] | None = None
    password_file: Annotated[str, Meta(pattern="^/")] | None = None

    def __post_init__(self) -> None:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("a mail server wants both user and password_file, or neither")
        if self.user is not None and self.tls == "none":
            raise ValueError("a password does not go over the network unprotected: set tls to starttls or tls")

    def __repr__(self) -> str:
        return f"<Mail to {len(self.to)} over {self.host}>"


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is told of what. A filter that is left out lets everything through."""

    command: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)] | None = None
    webhook: Webhook | None = None
    mail: Mail | None = None
    tell: list[NotificationKind] = msgspec.field(default_factory=lambda: [*PROBLEMS])
    backends: list[str] = []
    users: list[str] = []
    pattern: Annotated[str, Meta(max_length=1024)] = "*"

    def __post_init__(self) -> None:
        if sum(outlet is not None for outlet in (self.command, self.webhook, self.mail)) != 1:
            raise ValueError("a route has exactly one of command, webhook and mail")
        if self.command is not None and not self.command[0].startswith("/"):
            raise ValueError(f"command: {self.command[0]!r} is not absolute")

    def __repr__(self) -> str:
        outlet = "command" if self.command else repr(self.webhook or self.mail)
        return f"<Route {outlet} on {', '.join(self.tell)}>"

    def takes(self, kind: str, backend: str, users: frozenset[str], names: frozenset[str]) -> bool:
        """Whether it is told of this; ``users`` and ``names`` are empty for what is about no run."""
        return (
            kind in self.tell
            and (not self.backends or backend in self.backends)
            and (not self.users or not users or not users.isdisjoint(self.users))
            and (not names or any(map(_glob(self.pattern).matches, names)))
        )


class Notifications(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Messages on changes of state."""

    routes: Annotated[dict[str, Route], Meta(description="each by its name; see below for what one may be")] = {}
    digest_s: Annotated[
        float, Meta(ge=0.1, description="how long is collected what then goes out as one message, grouped by cause")
    ] = 30.0
    again_after_s: Annotated[
        float, Meta(ge=1, description="a cause that was not heard of for so long counts as new; until then as again")
    ] = 86_400.0
    deadline_s: Annotated[float, Meta(ge=0.1, le=600, description="the longest that sending one message may take")] = (
        30.0
    )
    retry_initial_s: Annotated[float, Meta(ge=0.1, description="pause before a message is sent again; it doubles")] = (
        5.0
    )
    retry_max_s: Annotated[float, Meta(ge=0.1, description="the longest pause before a message is sent again")] = 300.0
    give_up_s: Annotated[float, Meta(ge=1, description="a message that could not be sent for so long is dropped")] = (
        86_400.0
    )
