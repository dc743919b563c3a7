"""Whose fault it is when lm-evaluation-harness fails: a task's, told in a line, or ours, which keeps its traceback."""

import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from qwen3llada_jax.errors import InputError, brief, listed

_OURS = "harness"  # the module that the harness calls; everything else it runs is its own, a task's, or a data set's


@contextmanager
def told(names: Collection[str]) -> Iterator[None]:
    """Run the harness on tasks of these names.

    Raises:
        InputError: it failed while none of our code was at work, so the task asks for what is not there. What fails
            below our answers is raised as it is, and so is a lack of memory.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if any(frame.f_globals["__name__"] == f"{__package__}.{_OURS}" for frame in frames):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {brief(error, 160)}" if str(error) else type(error).__name__
        raise InputError(
            f"--tasks {_task_of(frames, names)}: the harness cannot run it as it is written ({said}; "
            f"{Path(last.filename).name}:{last.lineno})"
        ) from error


def _task_of(frames: list[FrameType], names: Collection[str]) -> str:
    """The task that was being asked or judged. The harness's errors name none, but what it was at work on does."""
    for frame in reversed(frames):
        task = frame.f_locals.get("task_name", getattr(frame.f_locals.get("self"), "task_name", None))
        if isinstance(task, str) and task in names:
            return task
    return listed(sorted(names))
