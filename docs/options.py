"""Writes the table of options into README.md, from the fields of Config and their docstrings: `make readme`."""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from common.config import Config

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- options: written by make readme -->\n", "<!-- end of options -->"


def rewritten(readme: str) -> str:
    """`readme` with the table as it should be."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


def table() -> str:
    """The options as Markdown, one a line."""
    return "".join(["| option | default | meaning |\n", "|---|---|---|\n", *rows()])


def rows() -> Iterator[str]:
    texts = docstrings()
    hints = get_type_hints(Config)
    for field in dataclasses.fields(Config):
        option = "`MODEL`" if field.name == "model" else f"`--{field.name.replace('_', '-')}`"
        yield f"| {option} | {default(field.default)} | {choices(hints[field.name])}{texts[field.name]} |\n"


def docstrings() -> dict[str, str]:
    """What stands below each field of Config, on one line."""
    (definition,) = ast.parse(inspect.getsource(Config)).body
    assert isinstance(definition, ast.ClassDef)
    name, texts = "", {}
    for statement in definition.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            texts[name] = " ".join(str(statement.value.value).split())
    return texts


def default(value: object) -> str:
    return "" if value in (None, ()) else f"`{value}`"


def choices(hint: Any) -> str:
    """The values of an option that has a few, as the beginning of its text."""
    return " ".join(f"`{value}`" for value in get_args(hint)) + ". " if get_origin(hint) is Literal else ""


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text()))
