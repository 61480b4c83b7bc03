"""Parameters of the notebooks: what there is, and what values make no sense."""

import ast
import json
from math import isfinite
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class ParameterError(ValueError):
    """A parameter that no notebook has, or a value that it cannot take; the message says what it could be."""


def defaults(notebook: str) -> dict[str, Any]:
    """Names and default values, as they stand in the cell tagged 'parameters' of a notebook of the course."""
    cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
    [source] = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(source).body}


def check_parameters(notebook: str, values: dict[str, Any]) -> None:
    """Refuse values of another kind than the default, numbers below 0, NaN and infinity; other names are passed over.

    Raises:
        ParameterError: for the first such value.
    """
    for name, default in defaults(notebook).items():
        if name in values and not alike(values[name], default):
            raise ParameterError(f"{name} = {values[name]!r}: {described(default)} is needed, such as {default!r}")


def alike(value: Any, default: Any) -> bool:
    """Whether a value can stand in the place of the default."""
    if isinstance(default, list):
        return isinstance(value, list) and bool(value) and all(alike_part(part, default[0]) for part in value)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= 0
    if isinstance(default, str):
        return isinstance(value, str | Path)  # a path once the notebook has made one of it
    return type(value) is type(default) and value >= 0


def alike_part(value: Any, default: Any) -> bool:
    """The same for a part of a list: one that is a list itself has its length, too."""
    return alike(value, default) and (not isinstance(default, list) or len(value) == len(default))


def described(default: Any) -> str:
    """What a parameter takes, in words."""
    kinds = {bool: "true or false", int: "a whole number of 0 or more", float: "a number of 0 or more", str: "text"}
    return kinds.get(type(default), "a list of the same form")
