"""What the gateway says of itself."""

import pytest

from launch.gateway_rank import reachable


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1:8000"),
        ("0.0.0.0", "127.0.0.1:8000"),
        ("::", "[::1]:8000"),
        ("::1", "[::1]:8000"),
        ("10.0.0.7", "10.0.0.7:8000"),
    ],
)
def test_clients_on_the_same_host_are_told_where_it_is(host: str, address: str) -> None:
    assert reachable(host, 8000) == address
