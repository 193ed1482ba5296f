"""The daemon's figures for Prometheus: what operators draw curves of and set alarms on.

Two kinds. What happens now and then (a poll, a command) is counted here, where it happens. What is counted elsewhere
anyway, or so often that a lock each time would cost (the socket's requests), is read when somebody asks: `Metrics.add`.

Labels have few values (backends, states, outcomes), never runs or users: a series for each would be kept for ever.
"""

from __future__ import annotations

__all__ = ["Metrics"]

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

POLL_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
LOOP_BUCKETS_S = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0)

PREFIX = "bpsd_"


class Metrics:
    """All figures, in a registry of their own.

    Parameters
    ----------
    version : `str`
        The daemon's.
    """

    def __init__(self, *, version: str) -> None:
        self._registry = CollectorRegistry()
        self.started_at = self._gauge("start_time_seconds", "When the daemon started, in seconds since 1970")
        self.loop_delay_s = Histogram(
            f"{PREFIX}loop_delay_seconds",
            "How much later than asked the event loop came back, sampled",
            buckets=LOOP_BUCKETS_S,
            registry=self._registry,
        )
        self.polls = self._counter("polls", "Polls that ended, by outcome: ok, partial or failed", "backend", "outcome")
        self.poll_s = Histogram(
            f"{PREFIX}poll_seconds",
            "How long polls took",
            labelnames=("backend",),
            buckets=POLL_BUCKETS_S,
            registry=self._registry,
        )
        self.backend_up = self._gauge("backend_up", "1 if the last poll of the backend went well", "backend")
        self.backend_last_good_at = self._gauge(
            "backend_last_good_timestamp_seconds", "When the backend was last polled well", "backend"
        )
        self.runs = self._gauge("runs", "Hot runs by state", "backend", "state")
        self.jobs = self._gauge("jobs", "Jobs of live runs by state", "backend", "state")
        self.commands = self._counter("commands", "Commands that are over, by verb and last state", "verb", "state")
        self.commands_open = self._gauge("commands_open", "Commands that are not over, by state", "state")
        self._gauge("build_info", "1, labelled with the daemon's version", "version").labels(version).set(1)

    def add(self, read: Callable[[], Mapping[str, float]], *, counters: Iterable[str], help: Mapping[str, str]) -> None:
        """Read more figures each time that somebody asks.

        Parameters
        ----------
        read : `~collections.abc.Callable`
            Returns name to value now; it must be quick, and may be called from any thread.
        counters : `~collections.abc.Iterable` [`str`]
            Names of those that only grow; the others are gauges.
        help : `~collections.abc.Mapping` [`str`, `str`]
            A sentence for each name. Only what is named here is shown.
        """
        self._registry.register(_Figures(read, frozenset(counters), dict(help)))

    def render(self) -> bytes:
        """Return all figures in the Prometheus text format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, help, labelnames=labels, registry=self._registry)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, help, labelnames=labels, registry=self._registry)


class _Figures(Collector):
    """Shows figures that somebody else keeps."""

    def __init__(
        self, read: Callable[[], Mapping[str, float]], counters: frozenset[str], help: Mapping[str, str]
    ) -> None:
        self._read, self._counters, self._help = read, counters, help

    def describe(self) -> Iterator[Metric]:
        """The names, so that the registry notices if two sources use the same."""
        return self._families(dict.fromkeys(self._help, 0.0))

    def collect(self) -> Iterator[Metric]:
        """The figures as they are now."""
        return self._families(self._read())

    def _families(self, figures: Mapping[str, float]) -> Iterator[Metric]:
        for name, text in self._help.items():
            family = CounterMetricFamily if name in self._counters else GaugeMetricFamily
            yield family(PREFIX + name, text, value=figures[name])
