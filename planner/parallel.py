"""Work shared out among processes: small numpy calls and small solver runs do not go side by side in threads."""

import multiprocessing
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Final, TypeVar

from threadpoolctl import threadpool_limits

from trady.planner.errors import TradyError

Item = TypeVar("Item")
Result = TypeVar("Result")
Handle = TypeVar("Handle")

#: Pieces of work given out ahead for each worker: results wait in memory.
_AHEAD: Final = 2


def in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int | None, *, anew: bool = False
) -> Generator[Result, None, None]:
    """Results in the items' order.

    On Linux the workers are forked, which takes milliseconds; elsewhere they start anew and import. An exception, or
    Ctrl-C, stops all of them.

    Args:
        work: A function that can be pickled.
        items: What to work on, asked for as workers become free.
        workers: Processes; one for each processor by default. One piece of work, or one worker, takes none.
        anew: Start workers anew on Linux too, for work that PyTorch's own threads would not survive a fork in.
    """
    most = len(items) if isinstance(items, Sized) else sys.maxsize
    number = min(most, workers or os.cpu_count() or 1)
    if number <= 1:
        yield from map(work, items)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" and not anew else "spawn")
    pool = ProcessPoolExecutor(number, context, _start, (work, None if anew else 1))

    def submit(item: Item) -> Future[Result]:
        with warnings.catch_warnings():
            # The children run numpy alone, which is made for it.
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            return pool.submit(_work_on, item)

    waiting: deque[Future[Result]] = deque()
    try:
        yield from _in_order(items, submit, Future.result, waiting, _AHEAD * number)
    finally:
        pool.shutdown(cancel_futures=True)


#: What this worker does with each item: handed over once, and by a fork not even copied.
_work: Callable[[Any], Any] | None = None


def _start(work: Callable[[Any], Any], threads: int | None) -> None:
    """Take over the work; matrix products on so many threads, for every processor has a worker of its own."""
    global _work
    _work = work
    threadpool_limits(threads)


def _work_on(item: Any) -> Any:
    if _work is None:
        raise RuntimeError("A worker was not given its work.")
    return _work(item)


def on_ray(work: Callable[[Item], Result], items: Iterable[Item], address: str | None) -> Generator[Result, None, None]:
    """Results in the items' order, worked out on a Ray cluster whose machines have Trady installed.

    Args:
        work: A function that can be pickled.
        items: What to work on, asked for as the cluster becomes free.
        address: Of the cluster; ``None`` for the one that is connected already, else one on this machine.

    Raises:
        TradyError: Ray is not installed, or the cluster cannot be reached.
    """
    ray = _ray()
    connected = ray.is_initialized()
    if not connected:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="warning")
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise TradyError(
                f"Ray cluster {address or 'on this machine'} cannot be reached: {error}. Check the address."
            ) from error
    remote = ray.remote(num_cpus=1)(work)
    number = max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    try:
        yield from _in_order(items, remote.remote, ray.get, waiting, _AHEAD * number)
    finally:
        for reference in waiting:
            ray.cancel(reference)
        if not connected:
            ray.shutdown()


def _in_order(
    items: Iterable[Item],
    submit: Callable[[Item], Handle],
    result: Callable[[Handle], Result],
    waiting: deque[Handle],
    ahead: int,
) -> Iterator[Result]:
    """Results in the items' order, so many given out ahead; ``waiting`` holds what is still under way."""
    for item in items:
        if len(waiting) >= ahead:
            yield result(waiting.popleft())
        waiting.append(submit(item))
    while waiting:
        yield result(waiting.popleft())


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise TradyError('A study on Ray needs ray, which is not installed. Run: pip install "trady[ray]"') from error
    return ray
