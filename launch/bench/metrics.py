"""A server's own metrics, read by a benchmark."""

from prometheus_client.parser import text_string_to_metric_families

from launch.bench.fetch import fetch


def read_metrics(url: str) -> dict[str, float]:
    """Every metric without labels, by name, of the Skipjoin with base URL `url`. Raises OSError."""
    families = text_string_to_metric_families(fetch(f"{url.removesuffix('/v1')}/metrics"))
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def increase(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What was added to each metric."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
