"""Locks of cells: one holder at a time, taken over when it has ended, and only then."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from mas.experiments import locks as module
from mas.experiments.locks import BEAT, STALE, WATCHED, CellLocks, Holder, host, locks_of

HOLD = """
import sys, time
from pathlib import Path
from mas.experiments.locks import CellLocks
locks = CellLocks(Path(sys.argv[1]))
print(locks.take("a"), flush=True)
time.sleep(600)
"""


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of the cell ``a``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def file_of(folder, name="a"):
    return folder / "locks" / f"{name}.json"


def write_lock(folder, holder, *, age=0.0):
    """Write a lock as another process would have left it."""
    (folder / "locks").mkdir(exist_ok=True)
    file_of(folder).write_text(json.dumps({"holder": asdict(holder), "progress": {}}))
    renewed = time.time() - age
    os.utime(file_of(folder), (renewed, renewed))


def elsewhere():
    return Holder("another-machine", 1, 0.0, "theirs")


def test_only_one_process_takes_a_lock_until_it_is_given_back(tmp_path):
    first, second = CellLocks(tmp_path), CellLocks(tmp_path, clock := Clock())
    assert first.take("a")
    assert not second.take("a")
    assert second.take("b")
    first.release("a")
    clock.now += 2
    assert second.take("a")
    first.release("a")  # it has none any more
    assert file_of(tmp_path).exists()


def test_at_the_end_every_lock_is_given_back(tmp_path):
    def breaks():
        with CellLocks(tmp_path) as locks:
            assert locks.take("a")
            assert locks.take("b")
            assert len(locks_of(tmp_path / "locks")) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks()
    assert locks_of(tmp_path / "locks") == []


def test_a_lock_of_a_living_process_is_left_and_taken_over_at_once_when_it_is_killed(other, tmp_path, clock):
    locks = CellLocks(tmp_path, clock)
    assert not locks.take("a")
    other.send_signal(signal.SIGKILL)
    other.wait()
    clock.now += 2
    assert locks.take("a")
    assert json.loads(file_of(tmp_path).read_text())["holder"]["pid"] == os.getpid()


def test_a_process_that_has_ended_but_is_not_waited_for_holds_nothing(other, tmp_path, clock):
    locks = CellLocks(tmp_path, clock)
    other.send_signal(signal.SIGKILL)
    time.sleep(0.3)
    assert locks.take("a")


def test_a_process_number_that_was_given_again_is_another_process(tmp_path):
    me = CellLocks(tmp_path).me
    assert not me.is_gone()
    assert replace(me, started=me.started - 60).is_gone()
    assert not replace(me, started=me.started - 60, host="another-machine").is_gone()


@pytest.mark.parametrize(("age", "watched", "taken"), [(-5, 1, False), (5, 0.5, False), (5, 1, True)])
def test_a_lock_of_another_machine_is_taken_over_after_it_was_not_renewed(age, watched, taken, tmp_path, clock):
    write_lock(tmp_path, elsewhere(), age=STALE + age)
    locks = CellLocks(tmp_path, clock)
    assert not locks.take("a")
    clock.now += watched * WATCHED
    assert locks.take("a") is taken


def test_after_a_sleep_of_the_computer_a_holder_has_time_to_renew_its_lock(tmp_path, clock):
    write_lock(tmp_path, elsewhere(), age=3600)
    locks = CellLocks(tmp_path, clock)
    assert not locks.take("a")
    clock.now += BEAT
    write_lock(tmp_path, elsewhere())
    assert not locks.take("a")
    clock.now += WATCHED
    assert not locks.take("a")


def test_a_lock_that_is_damaged_is_stale_when_it_is_old(tmp_path, clock):
    (tmp_path / "locks").mkdir()
    file_of(tmp_path).write_text("{")
    locks = CellLocks(tmp_path, clock)
    assert not locks.take("a")
    os.utime(file_of(tmp_path), (time.time() - 2 * STALE,) * 2)
    clock.now += 2
    assert not locks.take("a")
    clock.now += WATCHED
    assert locks.take("a")


def test_who_has_lost_a_lock_sees_it_and_changes_it_no_more(tmp_path):
    locks = CellLocks(tmp_path)
    assert locks.take("a")
    assert not locks.is_lost("a")
    write_lock(tmp_path, elsewhere())
    before = file_of(tmp_path).read_bytes()
    assert locks.is_lost("a")
    locks.note("a", {"epoch": 3})
    locks.beat()
    locks.release("a")
    assert file_of(tmp_path).read_bytes() == before


def test_a_renewal_tells_how_far_the_cell_is(tmp_path):
    locks = CellLocks(tmp_path)
    locks.take("a")
    os.utime(file_of(tmp_path), (time.time() - 50,) * 2)
    assert 49 < locks_of(tmp_path / "locks")[0].age < 60
    locks.note("a", {"epoch": 3})
    locks.beat()
    (lock,) = locks_of(tmp_path / "locks")
    assert (lock.id, lock.progress, lock.holder) == ("a", {"epoch": 3}, locks.me)
    assert lock.age < 5
    assert not lock.is_stale


def test_a_lock_is_renewed_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.05)
    with CellLocks(tmp_path) as locks:
        locks.take("a")
        os.utime(file_of(tmp_path), (time.time() - 50,) * 2)
        time.sleep(0.5)
        assert locks_of(tmp_path / "locks")[0].age < 5


def test_a_renewal_does_not_bring_back_a_lock_that_was_given_back(tmp_path):
    locks = CellLocks(tmp_path)
    locks.take("a")
    locks.release("a")
    locks.beat()
    assert not file_of(tmp_path).exists()


def test_of_many_that_take_over_a_stale_lock_one_gets_it(tmp_path):
    gone = Holder(host(), 2**22 - 1, 0.0, "theirs")
    for _ in range(10):
        write_lock(tmp_path, gone)
        all_locks = [CellLocks(tmp_path) for _ in range(8)]
        gate, taken = threading.Barrier(8), []

        def take(locks, gate=gate, taken=taken):
            gate.wait()
            taken.append(locks.take("a"))

        threads = [threading.Thread(target=take, args=(locks,)) for locks in all_locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(taken) == 1
        file_of(tmp_path).unlink()
        for locks in all_locks:
            locks.__exit__(None, None, None)


def test_many_locks_are_listed_once_a_second_and_not_for_each_cell(tmp_path, clock, monkeypatch):
    write_lock(tmp_path, elsewhere())
    looked = []
    monkeypatch.setattr(module, "locks_of", lambda folder: looked.append(folder) or locks_of(folder))
    locks = CellLocks(tmp_path, clock)
    for _ in range(1000):
        assert not locks.take("a")
    assert len(looked) == 1
