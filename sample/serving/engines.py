"""Engines by need: one for each kind of settings and length of rows, with as many slots as are asked for.

A kind of settings is what a program is compiled for. Rows are of 128, 256, 512, … tokens and slots of three sizes, so
that few programs serve every request, and one that is alone does not pay for the slots that nobody has.
"""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.engine import Engine
from qwen3llada_jax.sampling.limits import least_memory, memory
from qwen3llada_jax.sampling.loop import compilations

from .jobs import Job

SHORTEST = 128  # tokens of a row
_KEPT = 4  # engines with memory of their own
_A_LOOK = 0.05  # seconds between two looks at what is written, or one pass
_MOST_PASSES = 64
_STRETCH = 4  # times as long as it needs a row may be


class Desk:
    """An engine, and whose its slots are.

    Attributes:
        jobs: by slot.
    """

    def __init__(self, model: Qwen3LLaDA, job: Job, length: int, slots: int):
        self.engine = Engine(model, _made_for(job), slots=slots, length=length)
        self.jobs: dict[int, Job] = {}
        self.seconds = 0.0  # of a pass
        self.last_used = time.monotonic()

    def advance(self) -> list[int]:
        """Write for about as long as a reader would wait for a look; the slots that are done."""
        passes = min(max(int(_A_LOOK / self.seconds), 1), _MOST_PASSES) if self.seconds else 1
        before, compiled = time.monotonic(), compilations()
        done = self.engine.advance(passes)
        if compilations() == compiled and not done:  # so many passes were made, and nothing else
            now = (time.monotonic() - before) / passes
            self.seconds = now if not self.seconds else 0.7 * self.seconds + 0.3 * now
        self.last_used = time.monotonic()
        return done


class Pool:
    """The engines of a server.

    Attributes:
        slots: the most of an engine, a multiple of `ways`.
        programs: kinds of settings and lengths that it may ever compile for.
    """

    def __init__(self, model: Qwen3LLaDA, *, slots: int, ways: int, programs: int):
        self.model, self.slots, self.ways, self.programs = model, slots, ways, programs
        self._desks: list[Desk] = []
        self._room = memory() - sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
        self._kinds: dict[Any, None] = {}  # in their order: the first is the server's own
        # 1, 4, 16, … (of each way that a mesh splits rows)
        self._sizes = sorted({*(ways * 4**i for i in range(10) if ways * 4**i < slots), slots})

    def __iter__(self) -> Iterator[Desk]:
        return iter(self._desks)

    def seat(self, job: Job, waiting: int) -> tuple[Desk, int] | None:
        """(an engine that can write the job, a slot of it that is free); None: not yet.

        Args:
            waiting: jobs that will want a slot too.

        Raises:
            InputError: it needs one more kind of program than the server may compile, or more memory than there is.
        """
        desk = self._made(job) or self._new(job)
        if desk is None:
            return None
        if not desk.engine.free:
            with suppress(InputError):  # more rows than memory holds: it waits for one of those that there are
                self._resize(desk, len(desk.jobs) + waiting)
        return (desk, desk.engine.free[0]) if desk.engine.free else None

    def fit(self, desk: Desk) -> None:
        """Take from an engine the slots that nobody has."""
        if desk.jobs and self._size(len(desk.jobs)) < self._slots(desk):
            self._resize(desk, len(desk.jobs))

    def drop(self, desk: Desk) -> None:
        """Forget an engine that failed."""
        self._desks.remove(desk)

    def warm(self, job: Job) -> None:
        """Compile what the job's kind of settings needs, with each number of slots."""
        desk = self._made(job) or self._new(job)
        assert desk is not None
        for size in self._sizes:
            desk.engine.resize(size)
            desk.engine.admit(desk.engine.free[0], job.request.ids, job.settings)
            while not desk.engine.advance(_MOST_PASSES):
                desk.engine.look()
            desk.engine.harvest()

    @property
    def taken(self) -> int:
        """Slots that are written in."""
        return sum(len(desk.jobs) for desk in self._desks)

    def _made(self, job: Job) -> Desk | None:
        """The engine of the shortest rows that will do; much longer ones cost more than to compile again."""
        row = _row(job.length)
        will_do = [
            desk
            for desk in self._desks
            if row <= desk.engine.length <= _STRETCH * row
            and desk.engine.takes(job.settings, holes=job.request.ids.count(None))
        ]
        return min(will_do, key=lambda desk: desk.engine.length, default=None)

    def _new(self, job: Job) -> Desk | None:
        length, complete = _row(job.length), _made_for(job).for_model(self.model.config)
        settings = jax.tree.structure(complete.parameters()), complete.structure(self.model.config)
        kind = length, settings
        is_usual = settings == next(iter(self._kinds), kind)[1]  # the server's own, in rows of whatever length
        if kind not in self._kinds and len(self._kinds) >= self.programs and not is_usual:
            raise InputError(
                f"these settings need a program of their own, and the server has compiled for {self.programs} kinds of "
                "settings and lengths, its most (--programs); leave out what is unusual"
            )
        if not self._make_room(self._need(complete, self.ways, length)):
            return None
        desk = Desk(self.model, job, length, self.ways)
        self._kinds.setdefault(kind)
        self._desks.append(desk)
        return desk

    def _make_room(self, need: int, grown: Desk | None = None) -> bool:
        """Forget engines that nobody writes with, the longest unused first, until a new one has room that needs so many
        bytes, or one that has grown so; whether it has. One alone may try."""
        while others := [desk for desk in self._desks if desk is not grown]:
            held = sum(self._need(desk.engine.config, self._slots(desk), desk.engine.length) for desk in others)
            if len(others) < _KEPT and held + need <= self._room:
                break
            idle = [desk for desk in others if not desk.jobs]
            if not idle:
                return False
            self._desks.remove(min(idle, key=lambda desk: desk.last_used))
        return True

    def _need(self, config: SamplerConfig, rows: int, length: int) -> int:
        return least_memory(self.model.config, rows, length, config, jnp.dtype(self.model.compute_dtype).itemsize)

    def _size(self, rows: int) -> int:
        return next((size for size in self._sizes if size >= rows), self.slots)

    def _slots(self, desk: Desk) -> int:
        return len(desk.jobs) + len(desk.engine.free)

    def _resize(self, desk: Desk, rows: int) -> None:
        size, before = self._size(rows), self._slots(desk)
        if size > before and not self._make_room(self._need(desk.engine.config, size, desk.engine.length), grown=desk):
            return
        if size != before:
            moved = desk.engine.resize(size)
            desk.jobs = {moved[slot]: job for slot, job in desk.jobs.items()}


def _made_for(job: Job) -> SamplerConfig:
    """What an engine is made for that can write the job: `admit` makes of the settings what a text's holes need."""
    if not job.fills:
        return job.settings
    return dataclasses.replace(job.settings, gen_length=job.settings.block_length or 1, steps=None)


def _row(tokens: int) -> int:
    """Length of the rows that are made for so many tokens."""
    return max(SHORTEST, 1 << (tokens - 1).bit_length())
