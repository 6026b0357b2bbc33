"""A plain GET, for what a server says of itself: whether it is healthy, its metrics."""

from urllib.request import ProxyHandler, build_opener

_TIMEOUT_S = 30.0


def fetch(url: str) -> str:
    """The body. No proxies: they stand between no benchmark and its server. Raises OSError, also for other than 2xx."""
    with build_opener(ProxyHandler({})).open(url, timeout=_TIMEOUT_S) as response:
        return str(response.read().decode())
