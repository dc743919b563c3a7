"""The root logger as it was before an import.

orbax logs a line while it is imported, for which Python sets up a handler, and then `logging.basicConfig`, with which
the caller says where and how to log, does nothing.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def left_as_it_is() -> Iterator[None]:
    """Take off the handlers that come inside."""
    before = list(logging.root.handlers)
    try:
        yield
    finally:
        for handler in [h for h in logging.root.handlers if h not in before]:
            logging.root.removeHandler(handler)
