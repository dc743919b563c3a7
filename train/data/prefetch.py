"""One thread that makes the next batches while the devices compute."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items in the same order, at most `depth` made ahead; an exception comes where its item would have.

    An item that must know how far its source had been read when it was made (to resume there) carries that itself:
    the source may be `depth` items further. Closing the iterator ends the thread.
    """
    waiting: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(is_item: bool, value: T | BaseException | None) -> bool:
        while not closed.is_set():
            try:
                waiting.put((is_item, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(True, item):
                    return
            put(False, None)
        except BaseException as error:  # handed over, to be raised where it is seen
            put(False, error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = waiting.get()
            if not is_item:
                if isinstance(value, BaseException):
                    raise value
                return
            yield value  # type: ignore[misc]
    finally:
        closed.set()
        thread.join(timeout=5)  # a source that hangs (a network) holds nobody up: the thread is a daemon
