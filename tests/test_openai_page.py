"""docs/openai.md says what the server does with every field: with its own, and with those of the official client."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from gateway.api.errors import ApiError
from gateway.api.responses.records import ResponsesRequest
from gateway.api.schema import (
    REFUSED,
    ChatRequest,
    CompletionRequest,
    SamplingRequest,
    decode_chat,
    decode_completion,
)

PAGE = (Path(__file__).parents[1] / "docs" / "openai.md").read_text()
REQUESTS = {"chat/completions": ChatRequest, "completions": CompletionRequest}
CLIENTS = {
    "chat/completions": {"stream", *chat_create_params.CompletionCreateParamsBase.__annotations__},
    "completions": {"stream", *completion_create_params.CompletionCreateParamsBase.__annotations__},
}
# Any value will do: what is ignored is not even looked at.
ODD: list[Any] = ["odd", 7, {"a": [1]}, [None]]


def table(title: str) -> dict[str, str]:
    """Each field of a section's table, and what is done with it."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (served|ignored|refused) \|", section, re.MULTILINE)
    return {field: answer for fields, answer in rows for field in re.findall(r"`(\w+)`", fields)}


def answers(path: str) -> dict[str, str]:
    """With those of the section that both endpoints share; where both have a field, its own section wins."""
    return table("What other servers have, in all") | table(f"POST /v1/{path}")


def decode(path: str, **fields: Any) -> Any:
    if path == "completions":
        return decode_completion(json.dumps({"prompt": "x"} | fields).encode())
    return decode_chat(json.dumps({"messages": [{"role": "user", "content": "x"}]} | fields).encode())


@pytest.mark.parametrize("path", REQUESTS)
def test_every_field_of_a_request_is_on_the_page(path: str) -> None:
    fields = REQUESTS[path].__struct_fields__
    assert {field: answers(path).get(field) for field in fields} == {
        field: "refused" if field in REFUSED else "served" for field in fields
    }


def test_every_field_of_a_response_is_on_the_page_with_those_of_the_official_client() -> None:
    shared = {*SamplingRequest.__struct_fields__}
    own = {*ResponsesRequest.__struct_encode_fields__} - shared
    official = {*response_create_params.ResponseCreateParamsBase.__annotations__}
    named = table("POST /v1/responses")
    assert (own | official) - named.keys() == set()
    assert {field for field in own if named.get(field) != "served"} == {"conversation", "prompt"}
    assert {field for field in named if named[field] == "refused"} == {"conversation", "prompt"}
    assert named.keys() - own - official - shared == set()


@pytest.mark.parametrize("path", REQUESTS)
def test_every_field_of_the_official_client_is_on_the_page(path: str) -> None:
    assert CLIENTS[path] - answers(path).keys() == set()


@pytest.mark.parametrize("path", REQUESTS)
def test_what_the_page_calls_ignored_is_ignored(path: str) -> None:
    ignored = [field for field, answer in table(f"POST /v1/{path}").items() if answer == "ignored"]
    assert ignored
    for field in ignored:
        assert all(decode(path, **{field: value}) == decode(path) for value in ODD), field


@pytest.mark.parametrize("path", REQUESTS)
def test_what_the_page_calls_refused_is_refused_by_name(path: str) -> None:
    own = set(REQUESTS[path].__struct_fields__)
    refused = [field for field, answer in answers(path).items() if answer == "refused" and field in own]
    assert refused
    for field in refused:
        with pytest.raises(ApiError) as caught:
            decode(path, **{field: {"a": 1}})
        error = caught.value.body["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", field)


@pytest.mark.parametrize("path", REQUESTS)
def test_the_page_names_no_field_that_does_not_exist(path: str) -> None:
    everything = {field for kind in REQUESTS.values() for field in kind.__struct_fields__} | CLIENTS[path]
    assert {*answers(path)} - everything == set()
