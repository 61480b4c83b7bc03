"""Files that are whole or absent: write under a temporary name, then rename; read tensors without unpickling code."""

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

LOCK, UNFINISHED = ".lock", ".unfinished-"  # names of files that only this module writes
CLAIMED: dict[Path, Any] = {}  # folders that this process holds until it ends


class DamagedFileError(RuntimeError):
    """A file of ours that cannot be read back; the message names it and the remedy."""


class StorageError(OSError):
    """A file that cannot be written, or a folder in use; the message names it and the remedy."""


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader meets the old file or the new one.

    Raises:
        StorageError: if the disk is full, the folder read-only, ...; what was there before is still there.
    """
    temporary = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")  # two processes never share one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        remedy = "free space, or choose a folder that can be written to; what was there before is unchanged"
        raise StorageError(f"{path} cannot be written ({error.strerror or error}): {remedy}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def save_tensors(path: Path, content: dict) -> None:
    """Write a dict of tensors, numbers, strings and lists of those, atomically; the same content as the same bytes.

    Raises:
        StorageError: if it cannot be written.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, torch writes its name, here with a process id, into the file
            try:
                torch.save(content, file)
            except RuntimeError as error:  # what torch makes of a full disk
                raise OSError(f"no space left, or: {error}") from error

    write_atomically(path, write)


def load_tensors(path: Path) -> dict:
    """Read what `save_tensors` wrote, onto the CPU; never runs code from the file.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if a bit of the file has changed since, or it is not ours.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch itself does not look at the checksums
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}")
        return content
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and torch raise a dozen types, depending on where the file breaks off
        raise DamagedFileError(f"{path} is damaged ({type(error).__name__}): delete it and run again") from error


def save_json(path: Path, content: dict) -> None:
    """Write readable JSON, atomically.

    Raises:
        StorageError: if it cannot be written.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def turn(folder: Path, patience: float = -1) -> Iterator[None]:
    """Hold a folder that other processes want to write into as well; the system lets go of it if this one is killed.

    What killed processes have left unfinished is deleted. A folder that cannot be written to is not held.

    Args:
        folder: made if it does not exist.
        patience: seconds to wait until another process lets go; without end if negative.

    Raises:
        StorageError: if another process still holds it.
    """
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience)
        for left in folder.glob(f"**/{UNFINISHED}*"):
            left.unlink()
    except Timeout:
        remedy = "wait for its end (or shut its notebook down), or choose another run_dir"
        raise StorageError(f"{folder} is in use by another run: {remedy}") from None
    except (OSError, NotImplementedError):  # a read-only folder, or a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


def claim(folder: Path) -> Path:
    """Keep other processes out of a folder until this one ends, however it ends; the folder itself.

    Raises:
        StorageError: if another process holds it.
    """
    folder = Path(folder)
    if (place := folder.resolve()) not in CLAIMED:
        held = turn(folder, patience=0)
        held.__enter__()
        CLAIMED[place] = held
    return folder


def cached(path: Path, fingerprint: list, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by name: read from `path` if it was written for this fingerprint and is intact, else made and kept there.

    A damaged file is named in a warning and rebuilt. Of two processes that need the same file, the second waits. Where
    nothing can be kept (no space, a read-only folder), a warning says so.

    Args:
        path: of the cache.
        fingerprint: what the content depends on, numbers and strings; another one makes the file stale.
        make: gives the tensors anew.
    """
    if (tensors := kept(path, fingerprint)) is not None:
        return tensors
    with turn(path.parent):
        if (tensors := kept(path, fingerprint)) is not None:
            return tensors
        tensors = make()
        try:
            save_tensors(path, {"fingerprint": fingerprint, "tensors": tensors})
        except StorageError as error:
            warnings.warn(f"every run has to decode the data again: {error}", stacklevel=2)
    return tensors


def kept(path: Path, fingerprint: list) -> dict[str, Tensor] | None:
    """What the cache holds; None if there is none, or one for another fingerprint or, with a warning, a damaged one."""
    try:
        content = load_tensors(path)
        return content["tensors"] if content["fingerprint"] == fingerprint else None
    except FileNotFoundError:
        return None
    except (DamagedFileError, KeyError) as error:
        warnings.warn(f"cache {path.name} is not used and will be rebuilt: {error}", stacklevel=3)
        return None
