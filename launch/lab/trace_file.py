"""Trace files: rows of (arrival in s, prompt tokens, output tokens) from CSV or JSON lines, and the one we ship."""

import csv
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache
from importlib import resources
from io import StringIO
from pathlib import Path

from common.config import ConfigError

Row = tuple[float, int, int]

# Names that traces in circulation use, ours first. Compared in lower case.
_ARRIVAL = ("arrival", "arrival_s", "timestamp", "time", "request_time")
_PROMPT = ("prompt", "prompt_tokens", "contexttokens", "input_tokens", "input_length", "request tokens")
_OUTPUT = ("output", "output_tokens", "generatedtokens", "output_length", "response tokens")


def read_trace(path: str) -> list[Row]:
    """The rows of a CSV file with a header line, or of a file of JSON objects, one a line; ordered by arrival.

    Arrivals may be seconds or ISO dates; the first becomes 0. Raises ConfigError where that is not what is there.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from None
    return _rows(text, path)


@cache
def azure_conversation() -> list[Row]:
    """The first requests of Azure's 2023 conversation trace; see azure-conversation.md beside it for its licence."""
    file = resources.files("launch.lab") / "azure-conversation.csv"
    return _rows(file.read_text(), file.name)


def _rows(text: str, name: str) -> list[Row]:
    records: Iterable[Mapping[str, object]]
    if text.lstrip().startswith("{"):
        records = (json.loads(line) for line in text.splitlines() if line.strip())
    else:
        records = csv.DictReader(StringIO(text))
    try:
        rows = sorted(map(_row, records))
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{name}: {error}; a trace has the columns arrival, prompt and output") from None
    if not rows:
        raise ConfigError(f"{name} has no requests")
    start_s = rows[0][0]
    return [(arrival_s - start_s, prompt, output) for arrival_s, prompt, output in rows]


def _row(record: Mapping[str, object]) -> Row:
    fields = {str(name).strip().lower(): value for name, value in record.items()}
    prompt, output = int(str(_pick(fields, _PROMPT))), int(str(_pick(fields, _OUTPUT)))
    return _seconds(str(_pick(fields, _ARRIVAL))), max(1, prompt), max(1, output)


def _pick(fields: Mapping[str, object], names: tuple[str, ...]) -> object:
    for name in names:
        if name in fields:
            return fields[name]
    raise KeyError(f"no column {names[0]}")


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text[:26]).timestamp()  # to microseconds: more digits are not ISO to Python
