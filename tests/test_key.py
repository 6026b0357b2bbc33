"""`skipjoin key`: its table is a key file, and the key opens the door."""

from pathlib import Path

import pytest

from common.config import Config
from gateway.api.keys import load_keys
from launch.cli import main


def test_the_printed_table_lets_the_key_in_with_its_limits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["key", "alice smith", "--requests-per-minute", "5"]) == 0
    printed = capsys.readouterr()
    path = tmp_path / "keys.toml"
    path.write_text(printed.out)
    key = printed.err.split()[-1]
    assert key.startswith("sk-")
    assert key not in printed.out
    account = load_keys(Config(api_key_file=str(path)), {}).account_of(key)
    assert account is not None
    assert account.name == "alice smith"
    assert account.requests is not None
    assert account.requests.per_minute == 5
    assert account.tokens is None


def test_keys_can_be_collected_in_one_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    for name in ("alice", "bob"):
        main(["key", name])
        with path.open("a") as file:
            file.write(capsys.readouterr().out)
    assert [account.name for account in load_keys(Config(api_key_file=str(path)), {}).accounts.values()] == [
        "alice",
        "bob",
    ]


def test_limits_that_a_server_would_not_take_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "bob", "--requests-per-minute", "-5"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no such limit" in printed.err
    assert "requests_per_minute" in printed.err
