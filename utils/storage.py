"""Files that are whole or absent: write under a temporary name, then rename; read tensors without unpickling code."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class DamagedFileError(RuntimeError):
    """A file of ours that cannot be read back; the message names it and the remedy."""


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader meets the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")  # two processes never share one
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, content: dict) -> None:
    """Write a dict of tensors, numbers, strings and lists of those, atomically."""
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def load_tensors(path: Path) -> dict:
    """Read what `save_tensors` wrote, onto the CPU; never runs code from the file.

    Raises:
        DamagedFileError: if the file is truncated or is not ours.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises half a dozen types here, depending on where the file breaks off
        raise DamagedFileError(f"{path} is damaged ({type(error).__name__}): delete it and run again") from error


def save_json(path: Path, content: dict) -> None:
    """Write readable JSON, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
