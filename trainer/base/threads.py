"""Threads that read, write and decode beside the one that computes, and that never keep the program from ending."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue


class DaemonPool(Executor):
    """As `ThreadPoolExecutor`, but of daemon threads: Python joins the threads of that one when the program ends, after
    they have done all that was submitted, which for files on a slow drive takes minutes after Ctrl-C.

    Only for work that may be broken off at any moment.

    Args:
        begin: called in each thread before its first work.
    """

    def __init__(self, size: int, name: str, begin: Callable[[], None] = lambda: None) -> None:
        self._size, self._name, self._begin = size, name, begin
        self._threads: list[threading.Thread] = []
        self._waiting: SimpleQueue = SimpleQueue()
        self._is_over = False
        self._lock = threading.Lock()

    def submit(self, work: Callable, /, *args, **kwargs) -> Future:
        """Have a thread call `work`; the Future holds what comes of it."""
        future = Future()
        with self._lock:
            if self._is_over:
                raise RuntimeError("cannot submit work after shutdown")
            self._waiting.put((future, partial(work, *args, **kwargs)))
            if len(self._threads) < self._size:
                thread = threading.Thread(target=_work, args=(self._waiting, self._begin), daemon=True,
                                          name=f"{self._name}_{len(self._threads)}")
                self._threads.append(thread)
                thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work; see Executor."""
        with self._lock:
            self._is_over = True
            with suppress(Empty):
                while cancel_futures:
                    if task := self._waiting.get_nowait():
                        task[0].cancel()
            for _ in self._threads:
                self._waiting.put(None)
        # daemon threads stand still while the interpreter ends, where a generator may still be closed
        if wait and not sys.is_finalizing():
            for thread in self._threads:
                thread.join()


def _work(waiting: SimpleQueue, begin: Callable[[], None]) -> None:
    begin()
    while (task := waiting.get()) is not None:
        _do(*task)
        del task  # else its result would stay in memory until the next one comes


def _do(future: Future, work: Callable) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
