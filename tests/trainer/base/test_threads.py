"""Work in threads that never keeps the program from ending."""

import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest

from wantune.tests.conftest import ROOT
from wantune.trainer.base.threads import DaemonPool

ENDING = f"""
import sys, time, types
pack = types.ModuleType("wantune")
pack.__path__ = [{str(ROOT)!r}]
sys.modules["wantune"] = pack
from wantune.trainer.base.threads import DaemonPool

def reading():
    pool = DaemonPool(2, "slow")
    try:
        for _ in pool.map(time.sleep, [0, *[60] * 100]):
            yield
    finally:
        pool.shutdown(cancel_futures=True)
        print("closed", flush=True)

scan = reading()
next(scan)
kept = [scan, globals()]  # as in a module: closed only while the interpreter ends
"""


def test_the_program_ends_while_there_is_work_to_do():
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "") and time.monotonic() - began < 20


def test_work_is_done_in_order_by_so_many_threads_that_were_prepared():
    names, begun = set(), []

    def work(number: int) -> int:
        names.add(threading.current_thread().name)
        time.sleep(0.001)
        return number * number

    pool = DaemonPool(3, "test", lambda: begun.append(threading.current_thread().name))
    assert list(pool.map(work, range(50))) == [number * number for number in range(50)]
    assert names <= {"test_0", "test_1", "test_2"} and len(begun) == 3
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result()
    pool.shutdown()
    with pytest.raises(RuntimeError):
        pool.submit(work, 1)
    assert not {thread.name for thread in threading.enumerate()} & {"test_0", "test_1", "test_2"}


def test_what_has_not_begun_is_cancelled_and_what_has_is_waited_for():
    pool, may_end, begun = DaemonPool(1, "test"), threading.Event(), threading.Event()
    first = pool.submit(lambda: (begun.set(), may_end.wait(30)))
    others = [pool.submit(time.sleep, 60) for _ in range(20)]
    assert begun.wait(30)
    threading.Timer(0.2, may_end.set).start()
    pool.shutdown(cancel_futures=True)
    assert first.done() and not first.cancelled() and all(each.cancelled() for each in others)


def test_a_result_is_kept_in_memory_by_whoever_asked_for_it_alone():
    class Large:
        pass

    pool = DaemonPool(1, "test")
    future = pool.submit(Large)
    held = weakref.ref(future.result())
    del future
    for _ in range(100):
        if held() is None:
            break
        time.sleep(0.02)
        gc.collect()
    assert held() is None
    pool.shutdown()
