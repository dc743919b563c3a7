"""The root logger as it was before the library's imports.

orbax logs a line while it is imported, for which Python sets up a handler, and then `logging.basicConfig`, with which
the caller says where and how to log, does nothing.
"""

import logging

_BEFORE = list(logging.root.handlers)


def restore() -> None:
    """Take off the handlers that came since this module was imported."""
    for handler in [h for h in logging.root.handlers if h not in _BEFORE]:
        logging.root.removeHandler(handler)
