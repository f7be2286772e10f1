"""What a service counts, for Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from scpo_jax.serve_engine import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
HELP = {
    "texts": "texts scored",
    "tokens": "tokens of distinct texts scored",
    "batches": "batches computed",
}


class Metrics:
    """Counts requests, and asks the engine for what it has counted."""

    def __init__(self, engine: Engine):
        self._engine, self._registry = engine, CollectorRegistry()
        own = {"registry": self._registry, "namespace": "scpo_serve"}
        self._requests = Counter("requests", "requests answered", ["route", "status"], **own)
        self._seconds = Histogram("request_seconds", "from request to answer", ["route"], buckets=SECONDS, **own)
        self._registry.register(self)

    def collect(self):
        """The engine's counts, as `prometheus_client` asks for them."""
        for name, what in HELP.items():
            yield CounterMetricFamily(f"scpo_serve_{name}", what, value=self._engine.counts[name])
        queued = "texts that wait or are being scored"
        yield GaugeMetricFamily("scpo_serve_queued_texts", queued, value=self._engine.queued)
        late = "programs compiled after the warm-up: there should be none"
        yield CounterMetricFamily("scpo_serve_compilations", late, value=self._engine.compiled_after_warm_up)
        yield GaugeMetricFamily("scpo_serve_ready", "whether it is ready", value=self._engine.ready.is_set())

    async def endpoint(self, request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def around(self, app, routes):
        """An application whose requests are counted; paths that are none of `routes` are "other"."""

        async def counted(scope, receive, send):
            started, route = time.perf_counter(), scope["path"] if scope["path"] in routes else "other"

            async def noted(message):
                if message["type"] == "http.response.start":
                    self._requests.labels(route, message["status"]).inc()
                await send(message)

            try:
                await app(scope, receive, noted)
            finally:
                self._seconds.labels(route).observe(time.perf_counter() - started)

        return counted
