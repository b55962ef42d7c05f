"""Folders of runs: one run each, also for processes that start together or were killed."""

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import mulfree_cupy as mf
from mulfree_cupy import files
from mulfree_cupy.report import curves
from mulfree_cupy.train import History, folder

TAKE = """
import sys
from mulfree_cupy.train import folder
with {} as out:
    print(out, flush=True)
    sys.stdin.readline()
    (out / "checkpoint.npz").touch()
"""


def started(take, cwd):
    """A process that takes a folder, prints it and keeps it till its stdin ends."""
    return subprocess.Popen(
        [sys.executable, "-c", TAKE.format(take)],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_start_together_get_a_folder_each(tmp_path):
    processes = [started("folder.next_free('run')", tmp_path) for _ in range(4)]
    taken = sorted(process.stdout.readline().strip() for process in processes)
    assert taken == ["run", "run-2", "run-3", "run-4"]
    for process in processes:
        _, errors = process.communicate("go on\n")
        assert process.returncode == 0, errors
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["checkpoint.npz"] * 4


def test_of_processes_that_want_the_same_folder_one_gets_it(tmp_path):
    processes = [started("folder.taken('run')", tmp_path) for _ in range(3)]
    lines = [process.stdout.readline().strip() for process in processes]
    assert sorted(lines) == ["", "", "run"]
    for line, process in zip(lines, processes, strict=True):
        _, errors = process.communicate("go on\n")
        assert (process.returncode == 0) == bool(line)
        assert line or "ValueError: another run is active in run; choose another" in errors


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_what_a_killed_run_left_is_gone(tmp_path):
    process = started("folder.taken('run')", tmp_path)
    process.stdout.readline()
    run = tmp_path / "run"
    unfinished = run / f".checkpoint.npz.{process.pid}", run / ".01-density-0.8.npz.7"
    others = run / ".gitignore", run / ".lock", run / ".notes.7", run / "notes.npz.7"
    for path in (*unfinished, *others):
        path.touch()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with folder.taken(run):
        assert not any(path.exists() for path in unfinished)
    assert all(path.exists() for path in others)
    assert not (run / ".mulfree.lock").exists()


@pytest.mark.parametrize("record", folder.RECORDS)
def test_a_folder_with_a_run_is_for_that_run_alone(tmp_path, record):
    (tmp_path / record).touch()
    for resumed in (None, "other.npz"):
        with (
            pytest.raises(ValueError, match=f"{tmp_path} holds .* choose another folder"),
            folder.taken(tmp_path, resumed=resumed),
        ):
            raise AssertionError
    with folder.taken(tmp_path, resumed=record) as out:
        assert out == tmp_path
        with (
            pytest.raises(ValueError, match="another run is active"),
            folder.taken(tmp_path, resumed=record),
        ):
            raise AssertionError
    assert os.listdir(tmp_path) == [record]


def test_a_folder_in_which_nothing_was_written_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for take in (lambda: folder.next_free("run"), lambda: folder.taken("run")):
        with pytest.raises(ZeroDivisionError), take():
            raise ZeroDivisionError
        assert os.listdir() == []
    os.mkdir("run")
    with pytest.raises(ZeroDivisionError), folder.taken("run"):
        raise ZeroDivisionError
    assert os.listdir() == ["run"]


def test_places_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").touch()
    places = [tmp_path / "file", tmp_path / "file" / "run"]
    if sys.platform == "linux":
        places.append("/proc/run")
    for place in places:
        with pytest.raises(OSError, match=f"^out: {place} cannot be the folder of a run: [^\\[]*$"):
            folder.taken(place).__enter__()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def unable(descriptor):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder, "_lock", unable)
    with (
        pytest.warns(RuntimeWarning, match="run cannot be locked, so two .*: No locks available"),
        folder.taken(tmp_path / "run"),
    ):
        pass


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    with files.replaced(path) as file:
        file.write(b"old")
    with pytest.raises(ZeroDivisionError), files.replaced(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["table.csv"]


def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    told = "cannot be written, and is as it was: No space left on device"
    history = History([1.0], [0.5], [0.5], [0.5], [1.0])
    with pytest.raises(OSError, match=f"curve.csv {told}"):
        curves.write(tmp_path / "curve.png", {"one": history})
    weights = mf.WinogradWeights.from_dense(np.ones((4, 4, 1, 1)))
    with pytest.raises(OSError, match=f"layer.npz {told}"):
        weights.save(tmp_path / "layer.npz")
    assert os.listdir(tmp_path) == []
