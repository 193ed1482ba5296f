"""The daemon's figures for Prometheus: what operators draw curves of and set alarms on.

Two kinds. What happens now and then (a poll, a command) is counted here, where it happens. What is counted elsewhere
anyway, or so often that a lock each time would cost (the socket's requests), is read when somebody asks: `Metrics.add`.

Labels have few values (backends, states, outcomes), never runs or users: a series for each would be kept for ever.
"""

from __future__ import annotations

__all__ = ["Metrics"]

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

POLL_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
LOOP_BUCKETS_S = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0)
COMMAND_BUCKETS_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)

PREFIX = "bpsd_"

OUTCOMES = ("ok", "partial", "failed")
"""How a poll may end."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # in the text format each would be a series of its own


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
        self.collected_at = self._gauge("collected_timestamp_seconds", "When these figures were taken")
        self.loop_delay_s = self._histogram(
            "loop_delay_seconds", "How much later than asked the event loop came back, sampled", LOOP_BUCKETS_S
        )
        self.polls = self._counter("polls", "Polls that ended, by outcome: ok, partial or failed", "backend", "outcome")
        self.poll_s = self._histogram("poll_seconds", "How long polls took", POLL_BUCKETS_S, "backend")
        self.backend_up = self._gauge("backend_up", "1 if the last poll of the backend went well", "backend")
        self.backend_state = self._gauge("backend_state", "1 for the state that the backend is in", "backend", "state")
        self.backend_breaker = self._gauge(
            "backend_breaker", "1 for the state that the breaker of the backend is in", "backend", "state"
        )
        self.backend_stale = self._gauge(
            "backend_stale", "1 if the backend was not seen well for longer than polling.stale_after_s", "backend"
        )
        self.backend_last_good_at = self._gauge(
            "backend_last_good_timestamp_seconds", "When the backend was last polled well", "backend"
        )
        self.backend_last_good_age_s = self._gauge(
            "backend_last_good_age_seconds", "How long ago that was when these figures were taken", "backend"
        )
        self.backend_cost_s = self._gauge(
            "backend_poll_cost_seconds", "What the last poll cost the WMS, by its own account", "backend"
        )
        self.backend_interval_s = self._gauge(
            "backend_poll_interval_seconds", "How long the daemon waits between polls at present", "backend"
        )
        self.runs = self._gauge("runs", "Hot runs by state", "backend", "state")
        self.jobs = self._gauge("jobs", "Jobs of hot runs by state", "backend", "state")
        self.commands = self._counter("commands", "Commands that are over, by verb and last state", "verb", "state")
        self.command_s = self._histogram(
            "command_seconds", "From the acceptance of a command to its end", COMMAND_BUCKETS_S, "verb"
        )
        self.commands_open = self._gauge("commands_open", "Commands that are not over, by state", "state")
        self.notifications = self._counter(
            "notifications", "Messages by route and outcome: sent, retried or dropped", "route", "outcome"
        )
        self.notifications_waiting = self._gauge(
            "notifications_waiting", "Causes that wait to be told, by route", "route"
        )
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

    def expect_commands(self, verbs: Iterable[str], states: Iterable[str]) -> None:
        """Begin to count commands from 0: of a series whose first value is 20, Prometheus sees no increase."""
        for verb, state in itertools.product(verbs, states):
            self.commands.labels(verb, state)

    def expect_backend(self, name: str) -> None:
        """Begin to count the polls of a backend from 0, as `expect_commands` does."""
        for outcome in OUTCOMES:
            self.polls.labels(name, outcome)

    def forget_backend(self, name: str) -> None:
        """Count nothing more of a backend that was taken out of the configuration."""
        self.polls.remove_by_labels({"backend": name})
        self.poll_s.remove_by_labels({"backend": name})

    def of_backends(self) -> tuple[Gauge, ...]:
        """What is told of each backend as it is now (by `bpsd.monitor`), not counted."""
        return (
            self.backend_up,
            self.backend_state,
            self.backend_breaker,
            self.backend_stale,
            self.backend_last_good_at,
            self.backend_last_good_age_s,
            self.backend_cost_s,
            self.backend_interval_s,
            self.runs,
            self.jobs,
        )

    def render(self) -> bytes:
        """Return all figures in the Prometheus text format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, help, labelnames=labels, registry=self._registry)

    def _histogram(self, name: str, help: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(PREFIX + name, help, labelnames=labels, buckets=buckets, registry=self._registry)

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
