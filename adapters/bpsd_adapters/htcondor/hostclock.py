"""The submit host's clock: how late it is there, and in which zone; with its hours that come twice. Pure."""

from __future__ import annotations

__all__ = ["HostClock", "zone_of"]

import io
import struct
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo

TURNED_BACK_S = 30.0
"""A log whose times go back by more than that was written over the hour that the clocks are turned back by."""

_HALF_YEAR_S = 180 * 86_400.0


class HostClock(NamedTuple):
    """A moment of a host's clock (epoch seconds), and the host's zone."""

    now: float = 0.0
    zone: tzinfo = UTC

    def moment(self, text: str, after: float, *, utc: bool = False) -> float:
        """Epoch seconds of a time as logs have it, ``2026-11-22 19:50:25``, written after another.

        An hour that comes twice, as clocks are turned back, is the second one if the log would go back otherwise.

        Raises
        ------
        ValueError
            If it is no time.
        """
        when = datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC if utc else self.zone)
        first = when.timestamp()
        return first if first > after - TURNED_BACK_S else when.replace(fold=1).timestamp()

    def moment_of_some_year(self, text: str, after: float) -> float:
        """The same for ``11/22 19:50:25``: of the last year in which it is not in the future, nor long past ``after``.

        A log may be followed for months: what is ``after`` an event may also be after ``now``.
        """
        latest = after + _HALF_YEAR_S if after else self.now + 86_400.0
        year = datetime.fromtimestamp(latest, self.zone).year
        month_day, clock = text.split(" ")
        date = month_day.replace("/", "-")
        found = self.moment(f"{year}-{date} {clock}", after)
        return found if found <= latest else self.moment(f"{year - 1}-{date} {clock}", after)


def zone_of(rules: bytes, now: float, utc_offset_s: float) -> tzinfo:
    """The zone of a host.

    Parameters
    ----------
    rules : `bytes`
        Its ``/etc/localtime``; may be empty or something else.
    now : `float`
        A moment, in epoch seconds.
    utc_offset_s : `float`
        How far east of Greenwich the host says to be at that moment: if the rules say otherwise, it is believed.
    """
    fixed = timezone(timedelta(seconds=utc_offset_s))
    try:
        zone = ZoneInfo.from_file(io.BytesIO(rules))
    except (ValueError, IndexError, struct.error):
        return fixed
    return zone if datetime.fromtimestamp(now, zone).utcoffset() == fixed.utcoffset(None) else fixed
