"""Numbers about a service, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from seggpt_jax.app.engine import Engine
from seggpt_jax.app.limits import Budget
from seggpt_jax.app.prompt_sets import PromptStore

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
  """Counts requests, and reads the counts of the engines when it is asked.

  Args:
    engines: the engine of each network, by its name.
    store: the stored prompts.
    budget: the memory of requests.
  """

  def __init__(self, engines: Mapping[str, Engine], store: PromptStore, budget: Budget):
    self._engines, self._store, self._budget = engines, store, budget
    self._registry = CollectorRegistry()
    self._registry.register(self)
    ProcessCollector(registry=self._registry)
    self._requests = Counter(
      "seggpt_requests", "Requests, by endpoint and status.", ("endpoint", "status"), registry=self._registry
    )
    self._seconds = Histogram(
      "seggpt_request_seconds", "Time from a request to its answer.", ("endpoint",), registry=self._registry
    )

  def observe(self, endpoint: str, status: int, seconds: float) -> None:
    """Counts a request.

    Args:
      endpoint: name of the endpoint.
      status: status of the answer.
      seconds: time that it took.
    """
    self._requests.labels(endpoint, str(status)).inc()
    self._seconds.labels(endpoint).observe(seconds)

  def collect(self) -> Iterator[Metric]:
    """Yields the numbers of each engine, of the stored prompts and of the memory."""
    sets = self._store.list().values()
    for name, meaning, value in (
      ("images", "Images that were segmented.", lambda engine: engine.counts.images),
      ("batches", "Groups of images that went through the network together.", lambda engine: engine.counts.batches),
      ("shared_images", "Images that were in a group with others.", lambda engine: engine.counts.shared),
      ("failed_images", "Images that could not be segmented.", lambda engine: engine.counts.errors),
      ("abandoned_images", "Images whose clients stopped waiting.", lambda engine: engine.counts.abandoned),
      ("busy_seconds", "Time that the network worked.", lambda engine: engine.counts.seconds),
      ("queue_images", "Images that wait for the network.", lambda engine: engine.queue_length),
    ):
      family = GaugeMetricFamily if name == "queue_images" else CounterMetricFamily
      metric = family(f"seggpt_{name}", meaning, labels=["model"])
      for model, engine in self._engines.items():
        metric.add_metric([model], value(engine))
      yield metric
    for name, meaning, value in (
      ("request_memory_bytes", "Estimated memory of requests that are being answered.", self._budget.used),
      ("prompt_sets", "Stored sets of prompts.", len(sets)),
      ("prompt_bytes", "Memory of stored prompts.", sum(each.num_bytes for each in sets)),
    ):
      yield GaugeMetricFamily(f"seggpt_{name}", meaning, value)

  def text(self) -> bytes:
    """Returns all numbers in the text format of Prometheus."""
    return generate_latest(self._registry)
