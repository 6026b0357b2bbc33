from pathlib import Path

import pytest

from common.config import ConfigError
from launch.lab.trace_file import azure_conversation, read_trace


def written(folder: Path, text: str) -> str:
    path = folder / "trace"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        "arrival,prompt,output\n1.5,10,20\n1.0,30,40\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.7500000,10,20\n2023-11-16 18:15:46.2500000,30,40\n",
        '{"arrival": 1.5, "prompt": 10, "output": 20}\n\n{"arrival": 1.0, "prompt": 30, "output": 40}\n',
        "Output Length,x,timestamp,output_length,input_length\n,,1.5,20,10\n,,1,40,30\n",
    ],
    ids=["csv", "azure", "jsonl", "other columns"],
)
def test_a_trace_is_read_in_the_forms_that_go_around_and_starts_at_zero(tmp_path: Path, text: str) -> None:
    assert read_trace(written(tmp_path, text)) == [(0.0, 30, 40), (0.5, 10, 20)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "no column prompt"),
        ("arrival,prompt,output\nsoon,1,2\n", "soon"),
        ("arrival,prompt,output\n1,2,many\n", "many"),
        ("arrival,prompt,output\n", "no requests"),
        ('{"arrival": 1\n', "columns"),
    ],
)
def test_what_is_no_trace_is_refused_with_a_reason(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_trace(written(tmp_path, text))


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_trace("/nowhere/trace.csv")


def test_the_trace_that_we_ship_has_two_thousand_requests() -> None:
    rows = azure_conversation()
    assert len(rows) == 2000
    assert rows[0] == (0.0, 374, 44)
