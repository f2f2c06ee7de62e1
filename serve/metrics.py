"""What Prometheus is told."""

from collections.abc import Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Counts of one server's process."""

    media = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("tfm_requests", "Requests answered.", ["path", "status"], registry=self._registry)
        self._seconds = Histogram(
            "tfm_request_seconds", "Time of a request.", ["path"], buckets=_SECONDS, registry=self._registry
        )
        self._loads = {
            "waiting": Gauge("tfm_waiting", "Tokens, or texts, that wait.", ["model"], registry=self._registry),
            "running": Gauge("tfm_running", "Texts being generated.", ["model"], registry=self._registry),
        }

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self, loads: Mapping[str, Mapping[str, int]]) -> bytes:
        """Write all of it, with how much waits now."""
        for name, load in loads.items():
            for what, count in load.items():
                self._loads[what].labels(name).set(count)
        return generate_latest(self._registry)
