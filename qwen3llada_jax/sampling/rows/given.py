"""What the rows of an engine were given, on the host.

All of numpy: an operation of JAX for each array, outside a program, would cost more than a pass.
"""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from qwen3llada_jax.model import kv_cache as kv
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling import layout
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.parameters import Parameters, Structure
from qwen3llada_jax.sampling.passes import memory as memories
from qwen3llada_jax.sampling.passes.speculation import no_draft
from qwen3llada_jax.sampling.state import Canvas, GenerationInputs, SamplerState

LISTS = ("forbidden", "ends")


class Given:
    """Arrays with a row for each slot, changed in place between two programs.

    Attributes:
        canvas: what the rows `is_new` begin with.
        inputs: `keys` are their data.
        parameters: each number one a row.
        is_new: [B] rows that begin in the next pass.
        known: [B] tokens at the beginning of such a row that the cache knows already.
    """

    def __init__(self, rows: int, length: int, vocab_size: int, config: SamplerConfig, own: Parameters):
        """Rows with nothing to write.

        Args:
            config: the engine's, complete.
            own: its numbers.
        """
        self._made_of = length, vocab_size, config, own
        self._outside = vocab_size
        assert config.block_length is not None
        assert config.mask_token_id is not None
        places = -(-length // config.block_length) * config.block_length
        self.canvas = layout.blank(rows, length, places, config.mask_token_id)
        inputs: Any = (
            np.zeros((rows, length), bool),
            np.zeros((rows, length), np.int32) if config.visibility != "full" else None,
            np.zeros((rows, 2), np.uint32),
            np.ones(rows, np.int32),
            *(np.full((rows, 8), vocab_size, np.int32) for _ in LISTS),
        )
        self.inputs = GenerationInputs(*inputs)
        self.parameters: Parameters = jax.tree.map(lambda x: np.full(rows, x), own)
        self.is_new, self.known = np.zeros(rows, bool), np.zeros(rows, np.int32)

    def put(self, slot: int, canvas: Canvas, inputs: GenerationInputs, parameters: Parameters, known: int = 0) -> None:
        """A laid-out row, cut or filled up to the sizes here; lists of ids longer than any before make room."""
        blank, still = self._blank(1), cast(Any, canvas)
        L, outside = self.canvas.tokens.shape[1], still.tokens.shape[1]
        still = still._replace(places=np.where(np.asarray(still.places) == outside, L, still.places))
        every: Any
        for every, fill, row in zip(self.canvas, blank.canvas, still, strict=True):
            every[slot] = _fitted(row[0], fill[0])
        keys: Any = np.asarray(jax.random.key_data(inputs.keys) if inputs.keys.ndim == 1 else inputs.keys)
        self._make_room({name: getattr(inputs, name).shape[1] for name in LISTS})
        for name, row in inputs._replace(keys=keys)._asdict().items():
            if row is not None:
                both: Any = getattr(self.inputs, name)
                empty: Any = np.full(both.shape[1:], self._outside) if name in LISTS else getattr(blank.inputs, name)[0]
                both[slot] = _fitted(row[0], empty)
        jax.tree.map(lambda rows, x: rows.__setitem__(slot, np.reshape(x, ())), self.parameters, parameters)
        self.is_new[slot], self.known[slot] = True, known

    def clear(self, slot: int) -> None:
        """A row with nothing to write."""
        blank = self._blank(1)
        self.put(slot, blank.canvas, blank.inputs, self._made_of[-1])

    def regrouped(self, slots: Sequence[int | None]) -> "Given":
        """Rows of these slots, one after another; None: with nothing to write."""
        blank = self._blank(1)
        blank._make_room({name: getattr(self.inputs, name).shape[1] for name in LISTS})
        blank.is_new[:] = True
        at, found = np.array([-1 if slot is None else slot for slot in slots]), self._blank(len(slots))
        for name in ("canvas", "inputs", "parameters", "is_new", "known"):
            both = getattr(self, name), getattr(blank, name)
            setattr(found, name, jax.tree.map(lambda x, last: np.concatenate([x, last])[at], *both))
        return found

    def _blank(self, rows: int) -> "Given":
        return Given(rows, *self._made_of)

    def _make_room(self, wanted: dict[str, int]) -> None:
        lists: dict[str, Any] = {}
        for name, many in wanted.items():
            rows: Any = getattr(self.inputs, name)
            more = np.full((len(rows), max(many - rows.shape[1], 0)), self._outside, np.int32)
            lists[name] = np.concatenate([rows, more], axis=1)
        self.inputs = self.inputs._replace(**lists)


def blank_state(model: Qwen3LLaDA, given: Given, own: Parameters, structure: Structure) -> SamplerState:
    """Rows that are done, with an empty cache; not yet where the passes leave them."""
    (rows, length), vocab_size = given.canvas.tokens.shape, model.config.vocab_size
    zero, zeros, cache = np.zeros(rows, np.int32), np.zeros((rows, 1), np.int32), None
    if structure.cache != "none":
        keys, _ = kv.blank(model, rows * structure.cfg_branches, length)
        cache = kv.Cache(keys, jnp.zeros_like(keys))  # of its own memory, to be given away
    memory = memories.blank(own, rows, structure.block_length, vocab_size)
    full, draft = None if own.edit is None else zero, no_draft(model, rows, own, structure)
    canvas = jax.tree.map(np.copy, given.canvas)
    state: Any = (canvas, zero, zero, zeros, zeros, np.ones(rows, bool), cache, memory, full, draft)
    return SamplerState(*state)


def _fitted(row: Any, empty: Any) -> Any:
    """A row cut, or filled up with what an empty one has."""
    if not np.ndim(empty):
        return row
    found = np.array(empty)
    found[: len(row)] = row[: len(found)]
    return found
