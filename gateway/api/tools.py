"""What a chat request says about tools, and what it comes to: which functions the model may call, and must it?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.api.errors import ApiError, invalid_value, unsupported

MAX_TOOLS = 128

# The lookahead is the end, in JSON schema's regular expressions as well; `$` would let a newline pass.
FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}(?![\s\S])")]

# ---------------------------------------------------------------------------- records of the wire


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the client offers."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None  # a JSON schema
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    type: str
    function: Function | None = None


class NamedFunction(msgspec.Struct, frozen=True):
    name: str


class FunctionChoice(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    function: NamedFunction


class AllowedTools(msgspec.Struct, frozen=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice], Meta(min_length=1)]


class AllowedToolsChoice(msgspec.Struct, frozen=True, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | FunctionChoice | AllowedToolsChoice

# ---------------------------------------------------------------------------- what it comes to


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The functions that the model may call; none, when there are none or the client wants no call."""

    functions: Sequence[Function]
    must_call: bool  # at least once
    one_call: bool  # one call at most

    @property
    def names(self) -> frozenset[str]:
        return frozenset(function.name for function in self.functions)

    def for_template(self) -> list[dict[str, Any]]:
        """As chat templates expect it."""
        return [{"type": "function", "function": _for_template(function)} for function in self.functions]


NO_TOOLS = ToolUse([], must_call=False, one_call=False)


def tool_use(tools: list[Tool] | None, choice: ToolChoice | None, parallel: bool | None) -> ToolUse:
    """Raises ApiError for tools and choices that make no sense.

    Where a call must come, one is enough unless the client says that there may be more: a small model that has to call
    does not stop by itself.
    """
    functions = _functions(tools or [])
    if not functions:
        if choice not in (None, "none", "auto"):
            raise invalid_value("tool_choice asks for a call, but there are no tools", "tool_choice")
        return NO_TOOLS
    match choice:
        case "none":
            return NO_TOOLS
        case None | "auto" | "required":
            must_call = choice == "required"
        case FunctionChoice(named):
            functions = _chosen(functions, [named.name], "tool_choice.function.name")
            must_call = True
        case AllowedToolsChoice(allowed):
            names = [tool.function.name for tool in allowed.tools]
            functions = _chosen(functions, names, "tool_choice.allowed_tools.tools")
            must_call = allowed.mode == "required"
    return ToolUse(functions, must_call, one_call=not parallel if must_call else parallel is False)


def _functions(tools: list[Tool]) -> list[Function]:
    if len(tools) > MAX_TOOLS:
        raise invalid_value(f"tools has {len(tools)} entries; at most {MAX_TOOLS} are allowed", "tools")
    functions = []
    for i, tool in enumerate(tools):
        if tool.type != "function":
            raise unsupported(f"tools[{i}].type")
        if tool.function is None:
            raise invalid_value(f"tools[{i}].function is missing", f"tools[{i}].function")
        _check_parameters(tool.function, f"tools[{i}].function.parameters")
        functions.append(tool.function)
    name, count = Counter(function.name for function in functions).most_common(1)[0] if functions else ("", 0)
    if count > 1:
        raise invalid_value(f"tools has {count} functions with the name {name}", "tools")
    return functions


def _check_parameters(function: Function, param: str) -> None:
    kind = (function.parameters or {}).get("type", "object")
    if kind != "object":
        message = f"{param} of {function.name} must be a schema of an object, not of {str(kind)[:20]}"
        raise ApiError(400, message, code="invalid_function_parameters", param=param)


def _chosen(functions: list[Function], names: list[str], param: str) -> list[Function]:
    by_name = {function.name: function for function in functions}
    for name in names:
        if name not in by_name:
            raise invalid_value(f"{param}: no function in tools has the name {name!r}", param)
    return [by_name[name] for name in dict.fromkeys(names)]


def _for_template(function: Function) -> dict[str, Any]:
    described = {} if function.description is None else {"description": function.description}
    return {
        "name": function.name,
        **described,
        "parameters": function.parameters or {"type": "object", "properties": {}},
    }
