"""`/metrics`: what the process measured, for Prometheus.

Lives here: the answer. Not here: names and labels (`observability/metric_names.py`), and who may ask (the doors).
"""

from __future__ import annotations

from antiphon.api.http import ApiResponse
from antiphon.observability.metrics import Metrics


async def show_metrics(metrics: Metrics) -> ApiResponse:
    """All metrics in the text format."""
    body = await metrics.scraped()
    return ApiResponse(
        200,
        (("content-type", metrics.content_type()), ("content-length", str(len(body))), ("cache-control", "no-store")),
        body,
    )
