"""An engine: rows of one compiled program that requests take and leave while others are written.

What a request may choose (its prompt or text with holes, how much is written, every number of its rules, stop ids,
forbidden ids, key) is data of its row, so that requests of different settings share one program. What the program is
compiled for is the engine's: its slots, its length, and of its settings what `Structure` and the rules' classes say.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from qwen3llada_jax import arguments, sharding
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model import kv_cache as kv
from qwen3llada_jax.model.model import Qwen3LLaDA, is_converted_on_cpu
from qwen3llada_jax.sampling import layout, loop
from qwen3llada_jax.sampling.admission import admitted, mismatch
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.limits import check_memory
from qwen3llada_jax.sampling.passes.forward import still_of
from qwen3llada_jax.sampling.rows import keeping, looking
from qwen3llada_jax.sampling.rows.given import Given, blank_state
from qwen3llada_jax.sampling.rows.keeping import Prefix
from qwen3llada_jax.sampling.rows.looking import Written
from qwen3llada_jax.sampling.rules import AtEos
from qwen3llada_jax.sampling.state import (
    Canvas,
    Generation,
    NotFiniteError,
    answer_of,
    on_host,
    texts_of,
)


class Finished(NamedTuple):
    """A request that is done.

    Attributes:
        slot: that it had; it is free now.
        result: of this one row, as `generate` gives it.
        error: its logits were NaN or infinite; `result` is as far as it was written.
    """

    slot: int
    result: Generation
    error: NotFiniteError | None


class Engine:
    """Rows that are written side by side, each with its own request.

    Attributes:
        length: tokens that a row has room for, its prompt and what is written.
    """

    def __init__(
        self, model: Qwen3LLaDA, config: SamplerConfig = SamplerConfig(), *, slots: int = 8, length: int = 1024
    ):
        """Make room for requests.

        Args:
            config: of requests that bring none, and what all of them are compiled for: rules, cache, visibility, block
                length, and what is switched on (guidance, temperature, top-p, a penalty, …).
            slots: rows.
            length: of the longest row; rounded up.

        Raises:
            InputError: settings that do not go together, or more than memory holds.
        """
        length = arguments.whole("length", length)
        if length < 1:
            raise InputError(f"length: a row has room for at least one token, not {length}")
        self.config, self.length = config.for_model(model.config), layout.bucket(length)
        if self.config.parallel_blocks:
            raise InputError("parallel_blocks: an engine writes one block of a row after the other; leave it out")
        self._own = self.config.parameters(like=self.config)
        if not isinstance(self._own.stop, AtEos | None):
            raise InputError(
                "stop: a rule of one's own looks at a whole answer, and here answers differ in length; "
                "leave it out, or take q.rules.AtEos"
            )
        if jax.process_count() > 1:
            raise InputError("an engine runs in one process; several write with q.generate")
        self.config.check_rows(1)
        self._structure, self._is_late = self.config.structure(model.config), is_converted_on_cpu(model)
        self._given, self._context = model, keeping.blocks_of_context(self._structure, model.config)
        slots = self._checked(slots)
        self._model = loop.laid_out(model, self.config, self._is_late)
        self._start(slots)

    def _checked(self, slots: int) -> int:
        """A number of slots that mesh and memory have room for."""
        slots = arguments.whole("slots", slots)
        if slots < 1:
            raise InputError(f"slots: an engine has at least one, not {slots}")
        sharding.check_rows(slots)
        check_memory(self._given.config, slots, self.length, self.config)
        return slots

    def _start(self, slots: int) -> None:
        """Every slot free."""
        self._asked: dict[int, tuple[int, bool]] = {}  # slot → how many tokens its request writes, are they holes
        self._rows = Given(slots, self.length, self._given.config.vocab_size, self.config, self._own)
        self._state = loop.placed(blank_state(self._given, self._rows, self._own, self._structure), self._given)

    @property
    def free(self) -> list[int]:
        """Slots that no request has."""
        return [slot for slot in range(len(self._rows.is_new)) if slot not in self._asked]

    def takes(self, config: SamplerConfig, *, holes: int = 0) -> bool:
        """Whether `admit` takes requests of these settings: whether this engine's program can write them.

        Args:
            config: as `admit` takes it, so it need not be complete.
            holes: of a text to fill; 0: a prompt. They matter where nobody says the block length.

        Raises:
            InputError: settings that no engine over this model takes.
        """
        model = self._given.config
        if holes:
            settings = layout.for_holes(model, [[None] * holes], dataclasses.replace(config, steps=None))
        else:
            settings = config.for_model(model)
        settings.check_rows(1)
        return mismatch(settings, self.config, self._own) is None

    def admit(
        self,
        slot: int,
        request: Sequence[int | None],
        config: SamplerConfig | None = None,
        *,
        key: PRNGKeyArray | int | None = None,
        prefix: Prefix | None = None,
    ) -> int:
        """Give a slot to a request. It is written as `generate` (or `infill`) writes it alone, with the same key.

        Args:
            request: a prompt's ids, or a text with None for a hole.
            config: its settings; None: the engine's.
            prefix: what an engine kept (`keep`): as much of the prompt as it begins with is not encoded again.

        Returns:
            So many tokens of the prompt the prefix knows; 0 without one.

        Raises:
            InputError: a slot that is taken, an id out of range, a request that is too long, settings that another
                program would be needed for, or a prefix where none is of use (`keeps`) or of another model.
        """
        slot = arguments.whole("slot", slot)
        if slot not in self.free:
            raise InputError(f"slot {slot} is not free; free are {self.free}")
        model, rows = self._given.config, arguments.rows_of_ids("request", [request], holes=True)
        config = self.config if config is None else config
        if None in rows[0]:
            canvas, inputs, config = layout.infilling(model, rows, config, key)
        else:
            config = config.for_model(model)
            canvas, inputs = layout.continuation(model, rows, config, key)
        length = int(canvas.length[0])
        if length > self.length:
            raise InputError(
                f"the request has {length:,} tokens with what is written; this engine's rows {self.length:,}"
            )
        parameters = admitted(config, self.config, self._own)
        if not config.stop_at_eos and self._own.stop is not None:  # a row without ends has nothing to stop at
            inputs = inputs._replace(ends=inputs.ends[:, :0])
        known = 0 if prefix is None else self._began(slot, prefix, rows[0], int(still_of(canvas, self._structure)[0]))
        self._rows.put(slot, canvas, inputs, parameters, known)
        self._asked[slot] = config.gen_length, None in rows[0]
        return known

    def _began(self, slot: int, prefix: Prefix, prompt: list[int], still: int) -> int:
        """As much of a prefix as a prompt begins with, put into the slot's row of the cache."""
        if self._context is None:
            raise InputError("prefix: this engine keeps none (Engine.keeps); leave it out")
        cache = self._state.cache
        assert cache is not None
        many = keeping.in_common(prefix, prompt, still, cache.keys, self._context)
        if many:
            part: Any = (prefix.keys, prefix.values)
            self._state = self._state._replace(cache=loop.give(cache, kv.Cache(*part), np.int32(slot)))
        return many

    def advance(self, passes: int | None = None) -> list[int]:
        """Write until a request more is done, or so many passes: one program, and one look at its end from the host.

        If it fails (Ctrl-C, memory) in an engine with a cache, all slots are free again.

        Returns:
            The slots that are done, for `harvest`.

        Raises:
            InputError: less than one pass.
        """
        passes = loop.TO_THE_END if passes is None else arguments.whole("passes", passes)
        if not 1 <= passes <= loop.TO_THE_END:
            raise InputError(f"passes must be 1 … {loop.TO_THE_END}, not {passes}")
        if len(self._done()) < len(self._asked):
            self._run(passes)
        return self._done()

    def _done(self) -> list[int]:
        done = np.asarray(self._state.done)
        return [slot for slot in sorted(self._asked) if done[slot] and not self._rows.is_new[slot]]

    def harvest(self) -> list[Finished]:
        """Take what is done, and free its slots."""
        slots = self._done()
        canvas = on_host(self._state.canvas) if slots else None
        found = []
        for slot in slots:
            assert canvas is not None
            arrays: Any = [np.asarray(x)[slot : slot + 1] for x in canvas]
            (many, are_holes), given = self._asked.pop(slot), np.asarray(self._rows.inputs.is_given[slot : slot + 1])
            row: Any = answer_of(Canvas(*arrays), given, None if are_holes else many, self._structure)
            row = row._replace(places=np.minimum(row.places[:, :many], row.length[:, None]))
            result = texts_of(row)
            found.append(Finished(slot, result, NotFiniteError(result, [0]) if row.is_masked.any() else None))
        return found

    def look(self) -> dict[int, Written]:
        """How far the request of each slot is written, between two calls of `advance`."""
        if not self._asked:
            return {}
        canvas, (block, done) = on_host(self._state.canvas), map(np.asarray, (self._state.block, self._state.done))
        what_is_written_stays, found = looking.stays(self._own, self._structure), {}
        for slot, (many, are_holes) in sorted(self._asked.items()):
            is_new = bool(self._rows.is_new[slot])
            arrays: Any = (np.asarray(x)[slot] for x in (self._rows.canvas if is_new else canvas))
            row, is_given = Canvas(*arrays), np.asarray(self._rows.inputs.is_given[slot])
            end = int(row.length) if are_holes else min(int(row.prompt_length) + many, int(row.length))
            found[slot] = looking.written(
                row, is_given, end, 0 if is_new else int(block[slot]),
                is_done=not is_new and bool(done[slot]), what_is_written_stays=what_is_written_stays,
                structure=self._structure,
            )  # fmt: skip
        return found

    @property
    def keeps(self) -> int | None:
        """Tokens of a block in which context is read, where what a row wrote can be kept for another (`keep`): blocks
        that see nothing behind them (`block_origin` start, `causal_context`, an autoregressive model, `speculate`), a
        cache that remembers them, and no guidance. None: nothing can."""
        return self._context

    def keep(self, slot: int) -> Prefix:
        """The keys and values of what is final in a row's cache, for `admit` of a text that begins with the same: the
        prompt, and the answer but for its last block. Take it before `harvest` or `cancel` frees the slot.

        Raises:
            InputError: an engine that keeps nothing, a slot without a request or one that has not begun, or one whose
                logits were not finite.
        """
        slot = self._taken(slot)
        if self._context is None:
            raise InputError("this engine keeps nothing (Engine.keeps): the next text would be read in another way")
        if self._rows.is_new[slot]:
            raise InputError(f"slot {slot}: its request has not begun; advance first")
        arrays: Any = (np.asarray(x)[slot] for x in on_host(self._state.canvas))
        row, state, structure = Canvas(*arrays), self._state, self._structure
        block, step, is_done = (np.asarray(x)[slot] for x in (state.block, state.step, state.done))
        if is_done and np.any(row.is_masked):
            raise InputError(f"slot {slot}: its logits were not finite; nothing of it is kept")
        many = keeping.known_of(row, int(block), int(step), int(still_of(row, structure)), structure)
        many -= many % self._context
        part = loop.take(state.cache, np.int32(slot), min(layout.bucket(many), self.length))
        return Prefix(np.asarray(row.tokens)[:many].tolist(), part.keys, part.values, self._context)

    def _taken(self, slot: int) -> int:
        slot = arguments.whole("slot", slot)
        if slot not in self._asked:
            raise InputError(f"slot {slot} has no request; taken are {sorted(self._asked)}")
        return slot

    def cancel(self, slot: int) -> None:
        """Free a slot, whatever was written in it.

        Raises:
            InputError: nobody has it.
        """
        slot = self._taken(slot)
        del self._asked[slot]
        self._rows.clear(slot)

    def resize(self, slots: int) -> dict[int, int]:
        """Go on with another number of slots. Requests are written as if nothing had been; rows that stand empty cost a
        pass as much as others, so an engine of few requests is faster with few.

        A number of slots that the engine has had compiles nothing again.

        Returns:
            {slot before: slot now} of those that are taken. Where there still is such a slot, it is the same.

        Raises:
            InputError: more requests than slots, or slots that the mesh does not divide or memory does not hold.
        """
        slots = self._checked(slots)
        if len(self._asked) > slots:
            raise InputError(f"slots: {len(self._asked)} requests are being written; {slots} slots do not hold them")
        empty = (slot for slot in range(slots) if slot not in self._asked)
        now = {slot: slot if slot < slots else next(empty) for slot in sorted(self._asked)}
        before = {new: old for old, new in now.items()}
        index = np.array([before.get(slot, len(self._rows.is_new)) for slot in range(slots)])
        self._state = loop.regroup(self._state, index)
        self._rows = self._rows.regrouped([before.get(slot) for slot in range(slots)])
        self._asked = {now[slot]: asked for slot, asked in self._asked.items()}
        return now

    def _run(self, passes: int) -> None:
        rows, cache, state = self._rows, self._state.cache, self._state._replace(cache=None)
        try:
            self._state = loop.serve[self._is_late](
                cache, self._model, state, rows.canvas, rows.is_new, rows.known, rows.inputs, rows.parameters,
                np.int32(passes), self._structure,
            )  # fmt: skip
            jax.block_until_ready(self._state.done)  # what it was given is ours to change again
        except BaseException:
            if cache is not None and cache.keys.is_deleted():  # given away, and with it what all requests knew
                self._start(len(rows.is_new))
            raise
        rows.is_new = np.zeros_like(rows.is_new)
