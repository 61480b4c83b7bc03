"""Files: whole or absent, whatever happens to disk, folder and process; damaged ones named; untrusted ones not run.

And freed memory, which is kept for the next tensor.
"""

import ctypes
import errno
import json
import os
import pickle
import platform
import subprocess
import sys
from contextlib import contextmanager
from errno import EACCES, EIO, EMFILE
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10

import utils
from tests.files import ONE_THREAD, ROOT
from utils.data import DataError, load_pictures
from utils.files import (
    UNFINISHED,
    DamagedFileError,
    StorageError,
    cached,
    folder_lock,
    load_tensors,
    lock_run_dir,
    save_json,
    save_tensors,
    write_atomically,
)

CONTENT = {"weights": torch.arange(300_000.0), "history": [{"loss": 0.5}], "name": "a"}


@contextmanager
def mounted(folder, options):
    """A file system of its own in a folder; where the system does not allow that, the test is left out."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    try:
        allowed = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """1 MB, of which a checkpoint of 1.2 MB is too much."""
    with mounted(tmp_path / "small", "size=1m") as folder:
        yield folder


@pytest.fixture
def read_only(tmp_path):
    """A folder with a cache and nothing else, that cannot be written to, not even by root."""
    with mounted(tmp_path / "fixed", "size=8m") as folder:
        save_tensors(folder / "cache.pt", {"fingerprint": [1], "tensors": {"x": torch.ones(3)}})
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        yield folder


def unfinished(folder):
    return list(folder.glob(f"**/{UNFINISHED}*"))


# --- Writing ----------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_and_the_same_content_makes_the_same_file(tmp_path):
    for name in ("one.pt", "another.pt"):
        save_tensors(tmp_path / "a" / name, CONTENT)
    loaded = load_tensors(tmp_path / "a" / "one.pt")
    assert torch.equal(loaded.pop("weights"), CONTENT["weights"])
    assert loaded == {"history": [{"loss": 0.5}], "name": "a"}
    assert (tmp_path / "a" / "one.pt").read_bytes() == (tmp_path / "a" / "another.pt").read_bytes()


@given(st.dictionaries(st.text(max_size=5), st.integers(-(2**40), 2**40) | st.text(max_size=5) | st.booleans()))
def test_any_dict_is_saved_and_loaded(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("saved")
    save_json(folder / "a.json", content)
    assert json.loads((folder / "a.json").read_text(encoding="utf-8")) == content
    save_tensors(folder / "a.pt", content)
    assert load_tensors(folder / "a.pt") == content


def test_a_full_disk_is_told_and_the_old_file_stays(small_disk):
    path = small_disk / "run.pt"
    save_tensors(path, {"epoch": 1})
    with pytest.raises(StorageError, match=r"run.pt cannot be written \(no space left.*free space"):
        save_tensors(path, CONTENT)
    with pytest.raises(StorageError, match=r"run.json cannot be written \(No space left on device\)"):
        save_json(small_disk / "run.json", {"numbers": list(range(500_000))})
    assert load_tensors(path) == {"epoch": 1}
    assert not unfinished(small_disk)


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, read_only):
    for path in (read_only / "a.json", read_only / "new" / "a.json"):
        with pytest.raises(StorageError, match=r"a.json cannot be written \(Read-only file system\)"):
            save_json(path, {})
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match=r"a.json cannot be written \(.*choose a folder"):
        save_json(tmp_path / "runs" / "a.json", {})


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    save_json(path, {"a": 1})

    def interrupted(temporary):
        temporary.write_text("{")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert not unfinished(tmp_path)


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_a_truncated_or_changed_file_is_refused_or_reads_the_same(tmp_path):
    path = tmp_path / "file.pt"
    save_tensors(path, {"weights": torch.arange(100.0), "epoch": 3})
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError, match=r"file.pt is damaged.*delete it and run again"):
            load_tensors(path)
    unnoticed = 0
    for place in range(0, len(whole), 13):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            content = load_tensors(path)
        except DamagedFileError:
            continue
        unnoticed += 1  # padding between the parts of the archive, or its dates
        assert content["epoch"] == 3
        assert torch.equal(content["weights"], torch.arange(100.0))
    assert unnoticed < len(whole) // 13 / 2


class Malice:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_no_code_of_a_file_is_run(tmp_path, save):
    path, trace = tmp_path / "file.pt", tmp_path / "trace"
    save({"weights": Malice(str(trace))}, path)
    with pytest.raises(DamagedFileError, match=r"file\.pt is damaged"):
        load_tensors(path)
    assert not trace.exists()


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    with pytest.raises(DamagedFileError, match=r"tensor\.pt is damaged"):
        load_tensors(tmp_path / "tensor.pt")


@pytest.mark.parametrize("error", [*(OSError(number, "") for number in (EACCES, EIO, EMFILE)), MemoryError()])
def test_a_file_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, error):
    def failing(*_, **__):
        raise error

    save_tensors(tmp_path / "file.pt", CONTENT)
    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(type(error)) as caught:
        load_tensors(tmp_path / "file.pt")
    assert caught.value is error


def test_a_pickled_batch_that_is_not_the_official_one_is_not_unpickled(tmp_path, monkeypatch):
    folder, trace = tmp_path / CIFAR10.base_folder, tmp_path / "trace"
    folder.mkdir()
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        (folder / name).write_bytes(pickle.dumps(Malice(str(trace))))

    def offline(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(DataError, match="the download failed"):
        load_pictures("cifar10", tmp_path)
    assert not trace.exists()


# --- Two at once ------------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_until_the_other_run_is_dead(tmp_path, other_run):
    with pytest.raises(StorageError, match=r"is in use by another run: wait for its end .* or choose another run_dir"):
        lock_run_dir(tmp_path)
    (tmp_path / f"{UNFINISHED}1-file.pt").write_bytes(b"half")
    other_run.kill()
    other_run.wait()
    assert lock_run_dir(tmp_path) == tmp_path
    assert lock_run_dir(tmp_path / "sub" / "..") == tmp_path / "sub" / "..", "a cell that is run again"
    assert not unfinished(tmp_path)


def test_a_file_is_no_folder_for_a_run(tmp_path):
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    with pytest.raises(StorageError, match="file is a file: name a folder"):
        lock_run_dir(tmp_path / "file")


def test_what_a_run_further_down_has_not_finished_is_left_to_it(tmp_path):
    below = [tmp_path / "one" / "results", tmp_path / "results"]
    for folder in below:
        folder.mkdir(parents=True)
        (folder / f"{UNFINISHED}1-file.json").write_text("half", encoding="utf-8")
    with folder_lock(tmp_path / "one"):
        (tmp_path / "one" / "results" / f"{UNFINISHED}1-file.json").write_text("half", encoding="utf-8")
        lock_run_dir(tmp_path)
        assert unfinished(tmp_path) == [tmp_path / "one" / "results" / f"{UNFINISHED}1-file.json"]


def test_of_two_that_need_the_same_cache_one_makes_it(tmp_path):
    program = (
        "import sys, time, torch; from pathlib import Path; from utils.files import cached\n"
        "def make(): print('made', flush=True); time.sleep(1); return {'x': torch.ones(2)}\n"
        "print(cached(Path(sys.argv[1]) / 'cache.pt', [1], make)['x'].tolist())"
    )
    command = [sys.executable, "-c", program, tmp_path]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = sorted(process.communicate()[0] for process in both)
    assert outputs == ["[1.0, 1.0]\n", "made\n[1.0, 1.0]\n"]


def test_a_lock_ends_with_its_block(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), folder_lock(tmp_path, patience=0):
            raise KeyError


@pytest.mark.skipif(sys.platform == "win32", reason="locks in another way")
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", failing)
    told = r"cannot be locked \(.*no locks available.*\): let one process at a time use it"
    with pytest.warns(UserWarning, match=told), folder_lock(tmp_path, patience=0):
        pass


# --- The cache --------------------------------------------------------------------------------------------------------


def never():
    raise AssertionError("made again")


def test_a_cache_in_a_read_only_folder_is_read_and_a_warning_says_that_none_is_kept(read_only):
    assert cached(read_only / "cache.pt", [1], never)["x"].tolist() == [1, 1, 1]
    with pytest.warns(UserWarning, match=r"every run has to decode the data again: .*Read-only file system"):
        made = cached(read_only / "cache.pt", [2], lambda: {"x": torch.zeros(1)})
    assert made["x"].tolist() == [0]


def test_a_full_disk_keeps_no_cache_and_loses_nothing(small_disk):
    with pytest.warns(UserWarning, match="every run has to decode the data again"):
        made = cached(small_disk / "cache.pt", [1], lambda: {"x": torch.ones(10**6)})
    assert made["x"].sum() == 10**6
    assert not unfinished(small_disk)


def test_a_cache_is_stale_with_another_fingerprint_and_rebuilt_if_damaged(tmp_path):
    path = tmp_path / "cache.pt"
    cached(path, [1], lambda: {"x": torch.zeros(1)})
    assert cached(path, [1], never)["x"].item() == 0
    assert cached(path, [2], lambda: {"x": torch.ones(1)})["x"].item() == 1
    for damage in (lambda: path.write_bytes(path.read_bytes()[:99]), lambda: save_tensors(path, {"x": torch.ones(1)})):
        damage()
        with pytest.warns(UserWarning, match=r"cache cache\.pt is not used and will be rebuilt"):
            assert cached(path, [2], lambda: {"x": torch.ones(1)})["x"].item() == 1
        assert cached(path, [2], never)["x"].item() == 1


# --- Freed memory, counted by the system itself, in two processes -----------------------------------------------------


def still_resident(first):
    """Bytes that a process holds on to of 24 MiB that it has freed."""
    program = (
        f"{first}; import torch; from resource import getpagesize\n"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * getpagesize()\n"
        "torch.ones(8); before = resident(); torch.ones(6 * 2**20); print(resident() - before)"
    )
    environment = os.environ | ONE_THREAD  # the stacks of other threads would count
    return int(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, env=environment))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_importing_the_course_keeps_freed_memory():
    assert still_resident("pass") < 2**22 < 2**24 < still_resident("import utils")


@pytest.mark.parametrize(
    ("allowed", "asked"),
    [
        (2**40, [(-3, 2**30), (-1, 2**30)]),
        (2**25, [(-3, 2**30), (-3, 2**25), (-1, 2**30)]),
        (0, [(-3, 2**30), (-3, 2**25)]),
    ],
)
def test_freed_memory_is_kept_as_far_as_the_c_library_allows(monkeypatch, allowed, asked):
    calls = []

    def mallopt(option, value):
        calls.append((option, value))
        return value <= allowed

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    utils.keep_freed_memory()
    assert calls == asked  # -3 is M_MMAP_THRESHOLD, -1 M_TRIM_THRESHOLD, which alone would be worse than none
