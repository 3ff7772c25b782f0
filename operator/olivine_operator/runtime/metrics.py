"""Prometheus metrics. Their labels have few values: no names of objects."""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from olivine_api.adapterbundle import BundlePhase
from olivine_api.status import Phase


class Metrics:
    """All metrics of one operator, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            "olivine_reconciles", "Looks at a FineTuneJob or AdapterBundle, by result.", ["result"], registry=self.registry
        )
        self.reconcile_seconds = Histogram(
            "olivine_reconcile_seconds",
            "Duration of a look, writes included.",
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10),
            registry=self.registry,
        )
        self.leader = Gauge("olivine_leader", "1 where this replica leads, else 0.", registry=self.registry)
        self.queue_depth = Gauge(
            "olivine_queue_depth", "FineTuneJobs and AdapterBundles that wait for a look.", registry=self.registry
        )
        self.api_requests = Counter(
            "olivine_api_requests",
            "Requests to the API server, by verb, kind and status.",
            ["verb", "kind", "code"],
            registry=self.registry,
        )
        self.status_posts = Counter("olivine_status_posts", "Reports from trainers, by result.", ["result"], registry=self.registry)
        self.finished = Counter(
            "olivine_finetunejobs_finished", "FineTuneJobs that ended, by outcome.", ["outcome"], registry=self.registry
        )
        self.stale_objects = Counter(
            "olivine_stale_objects",
            "Objects that a periodic listing found to be newer than the watch told.",
            ["kind"],
            registry=self.registry,
        )

    def observe_watches(self, watches: Callable[[], Iterable["WatchReading"]], listing_age: Callable[[], float]) -> None:
        """Tells of the watches whenever somebody asks."""
        self.registry.register(_Watches(watches, listing_age))

    def observe_phases(self, jobs: Callable[[], Iterable[str]], bundles: Callable[[], Iterable[str]]) -> None:
        """Counts the resources by phase whenever somebody asks."""
        self.registry.register(_Phases("olivine_finetunejobs", "FineTuneJobs by phase.", Phase, jobs))
        self.registry.register(_Phases("olivine_adapterbundles", "AdapterBundles by phase.", BundlePhase, bundles))


@dataclass(frozen=True, kw_only=True)
class WatchReading:
    """How the watch of a kind does."""

    kind: str
    told: int
    """Events so far."""
    behind: int
    """Listings in a row that showed what it had not told."""


class _Watches(Collector):
    def __init__(self, watches: Callable[[], Iterable[WatchReading]], listing_age: Callable[[], float]) -> None:
        self._watches = watches
        self._listing_age = listing_age

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """The readings of now."""
        told = CounterMetricFamily("olivine_watch_events", "Events that the watch of a kind told.", labels=["kind"])
        behind = GaugeMetricFamily(
            "olivine_watch_behind", "Listings in a row that showed what the watch of a kind had not told.", labels=["kind"]
        )
        for reading in self._watches():
            told.add_metric([reading.kind], reading.told)
            behind.add_metric([reading.kind], reading.behind)
        age = GaugeMetricFamily(
            "olivine_listing_age_seconds", "Since the cache was last compared with the API server.", value=self._listing_age()
        )
        return told, behind, age


class _Phases(Collector):
    def __init__(self, name: str, what: str, known: type[Phase] | type[BundlePhase], phases: Callable[[], Iterable[str]]) -> None:
        self._name = name
        self._what = what
        self._known = known
        self._phases = phases

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The gauge, counted now."""
        family = GaugeMetricFamily(self._name, self._what, labels=["phase"])
        counted: Mapping[str, int] = Tally(self._phases())
        for phase in self._known:
            family.add_metric([phase.value], counted.get(phase.value, 0))
        yield family
