"""Files that are whole or absent: write under a temporary name, then rename; read tensors without unpickling code."""

import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import EACCES, EINVAL, EPERM, EROFS
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

LOCK, UNFINISHED = ".lock", ".unfinished-"  # a lock; what names of files begin with until these are whole
RUN_LOCKS: dict[Path, ExitStack] = {}  # run folders that this process holds until it ends


class DamagedFileError(RuntimeError):
    """A file of ours that cannot be read back; the message names it and the remedy."""


class StorageError(OSError):
    """A file that cannot be written, or a folder in use; the message names it and the remedy."""


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader meets the old file or the new one.

    Raises StorageError if the disk is full, the folder read-only, ...; what was there before is still there.
    """
    temporary = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")  # two processes of a machine never share one
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


def of_system(error: Exception) -> bool:
    """Whether the system failed (no permission, no memory, too many open files, ...), so that a file may be intact."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) not in (None, EINVAL)  # a broken file's seek


def save_tensors(path: Path, content: dict) -> None:
    """Write a dict of tensors, numbers, strings and lists of those, atomically; the same content as the same bytes."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, torch writes its name, here with a process id, into the file
            try:
                torch.save(content, file)
            except RuntimeError as error:  # what torch makes of a full disk
                raise OSError(f"no space left, or: {error}") from error

    write_atomically(path, write)


def load_tensors(path: Path) -> dict:
    """Read what `save_tensors` wrote, onto the CPU; never runs code from the file.

    Raises DamagedFileError if a bit of the file has changed, or it is not ours, and what `of_system` names.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch itself does not look at the checksums
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # zipfile and torch raise a dozen types, depending on where the file breaks off
        if of_system(error):
            raise
        raise DamagedFileError(f"{path} is damaged ({type(error).__name__}): delete it and run again") from error


def save_json(path: Path, content: dict) -> None:
    """Write readable JSON, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def folder_lock(folder: Path, patience: float = -1) -> Iterator[None]:
    """Hold a folder, made if absent, that other processes write into as well; a killed process lets go of it.

    What killed processes have left unfinished is deleted. A folder that cannot be written to is not held, nor is one
    that cannot be locked; a warning says so. `patience` is how many seconds to wait for another process, without
    end if negative; then StorageError is raised.
    """
    lock = FileLock(folder / LOCK)
    if folder.is_file():
        raise StorageError(f"{folder} is a file: name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience)
        delete_unfinished(folder)
    except Timeout:
        remedy = "wait for its end (or shut its notebook down), or choose another run_dir"
        raise StorageError(f"{folder} is in use by another run: {remedy}") from None
    except (NotImplementedError, OSError) as error:
        if getattr(error, "errno", None) not in (EACCES, EPERM, EROFS):  # a read-only folder needs no lock
            warnings.warn(f"{folder} cannot be locked ({error}): let one process at a time use it", stacklevel=3)
    try:
        yield
    finally:
        lock.release()


def delete_unfinished(folder: Path) -> None:
    """Delete what killed processes have left in a folder that is held, except in folders below that have locks."""
    for left in [*folder.glob(f"**/{UNFINISHED}*")]:
        below = (place for place in left.parents if folder in place.parents)
        if not any((place / LOCK).exists() for place in below):  # of a run further down, it is that one's
            with suppress(OSError):  # what cannot be deleted does no harm
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def lock_run_dir(folder: Path) -> Path:
    """Hold a folder until this process ends, however it ends; the folder itself. StorageError if in use, or a file."""
    if (resolved := folder.resolve()) not in RUN_LOCKS:
        held = ExitStack()
        held.enter_context(folder_lock(folder, patience=0))
        RUN_LOCKS[resolved] = held
    return folder


def cached(path: Path, fingerprint: list, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by name: read from `path` if it is intact and has this fingerprint, else made anew and kept there.

    The fingerprint is a list of the numbers and strings that the content depends on. Of two processes that need the
    same file, the second waits. A warning says that a damaged file is rebuilt, or that nothing can be kept.
    """
    with folder_lock(path.parent):
        try:
            content = load_tensors(path)
            if content["fingerprint"] == fingerprint:
                return content["tensors"]
        except FileNotFoundError:
            pass
        except (DamagedFileError, KeyError) as error:
            warnings.warn(f"cache {path.name} is not used and will be rebuilt: {error}", stacklevel=2)
        tensors = make()
        try:
            save_tensors(path, {"fingerprint": fingerprint, "tensors": tensors})
        except StorageError as error:
            warnings.warn(f"every run has to decode the data again: {error}", stacklevel=2)
    return tensors
