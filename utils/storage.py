"""Files that are whole or absent: write under a temporary name, then rename; read tensors without unpickling code."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
    """Write a dict of tensors, numbers, strings and lists of those, atomically; the same content as the same bytes."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, torch writes its name, here with a process id, into the file
            torch.save(content, file)

    write_atomically(path, write)


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


def cached(path: Path, fingerprint: list, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by name: read from `path` if it was written for this fingerprint and is intact, else made and kept there.

    A damaged file is named in a warning and rebuilt.

    Args:
        path: of the cache.
        fingerprint: what the content depends on, numbers and strings; another one makes the file stale.
        make: gives the tensors anew.
    """
    if path.exists():
        try:
            content = load_tensors(path)
            if content["fingerprint"] == fingerprint:
                if content["sums"] == sums(content["tensors"]):
                    return content["tensors"]
                raise DamagedFileError("its content does not match its checksum")
        except (DamagedFileError, KeyError) as error:
            warnings.warn(f"cache {path.name} is not used and will be rebuilt: {error}", stacklevel=2)
    tensors = make()
    save_tensors(path, {"fingerprint": fingerprint, "tensors": tensors, "sums": sums(tensors)})
    return tensors


def sums(tensors: dict[str, Tensor]) -> list[int]:
    """A cheap checksum: bytes as 64-bit integers, added up with wrap-around; up to 7 at the end are left out."""
    flat = [tensor.reshape(-1).view(torch.uint8) for tensor in tensors.values()]
    return [int(part[: len(part) // 8 * 8].view(torch.int64).sum()) for part in flat]
