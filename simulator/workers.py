"""Work shared out among processes: small numpy calls do not run side by side in threads."""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Pieces of work given out ahead for each worker: results wait in memory.
_AHEAD = 2


def in_processes(work: Callable[[Item], Result], items: Sequence[Item], workers: int | None) -> Iterator[Result]:
    """Results in the items' order.

    On Linux the workers are forked, which takes milliseconds; elsewhere they start anew and import. An exception, or
    Ctrl-C, stops all of them.

    Args:
        work: A function that can be pickled.
        items: What to work on.
        workers: Processes; one for each processor by default. One piece of work, or one worker, takes none.
    """
    number = min(len(items), workers or os.cpu_count() or 1)
    if number <= 1:
        yield from map(work, items)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(number, mp_context=context)
    waiting: list[Future[Result]] = []
    try:
        for item in items:
            if len(waiting) >= _AHEAD * number:
                yield waiting.pop(0).result()
            with warnings.catch_warnings():
                # The children run numpy alone, which is made for it.
                warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
                waiting.append(pool.submit(work, item))
        while waiting:
            yield waiting.pop(0).result()
    finally:
        pool.shutdown(cancel_futures=True)
