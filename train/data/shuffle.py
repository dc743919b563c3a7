"""Which rows make up the batch of a step: functions of (seed, slot) alone, so that a resumed run needs only its step.

Slot s of a run is row s mod B of the batch of step s div B. A dataset's epochs are fresh permutations. Of several
datasets, every `DECK` slots are a freshly shuffled deck that holds each of them in the share of its weight.
"""

import functools

import jax
import numpy as np
from jaxtyping import Int

from qwen3llada_jax.errors import InputError

DECK = 10_000
_DECK_STREAM = 0x6D6978  # keeps the decks' random numbers apart from the permutations'


def row_numbers(slots: Int[np.ndarray, " B"], count: int, seed: int, source: int = 0) -> Int[np.ndarray, " B"]:
    """Which of `count` rows stand in these slots: each epoch is a fresh permutation, slots run on across epochs."""
    epochs = slots // count
    numbers = np.empty(len(slots), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        numbers[here] = _permutation(count, seed, int(epoch), source)[slots[here] % count]
    return numbers


def shares(weights: tuple[float, ...]) -> Int[np.ndarray, " S"]:
    """How many of a deck's `DECK` slots each source gets: its weight's part, rounded so that all are dealt.

    Raises:
        InputError: a weight that is not positive, or too small to get a slot.
    """
    if not all(w > 0 for w in weights) or not np.isfinite(sum(weights)):
        said = ", ".join(f"{w:g}" for w in weights)
        raise InputError(f"dataset.mixture: weights must be above 0 and their sum a number, not {said}")
    exact = np.asarray(weights) / sum(weights) * DECK
    cards = np.floor(exact).astype(np.int64)
    most_missing = np.argsort(cards - exact, kind="stable")[: DECK - cards.sum()]
    cards[most_missing] += 1
    if not cards.all():
        least = weights[int(np.argmin(cards))]
        raise InputError(
            f"dataset.mixture: weight {least:g} is less than 1/{DECK} of the sum {sum(weights):g}, so it would "
            "never be drawn; raise it, or leave that dataset out"
        )
    return cards


def deal(
    slots: Int[np.ndarray, " B"], weights: tuple[float, ...], seed: int
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """(source of each slot, how many earlier slots that source had)."""
    if len(weights) == 1:
        return np.zeros(len(slots), np.int64), np.asarray(slots, np.int64)
    cards = shares(weights)
    decks = slots // DECK
    source, place = np.empty(len(slots), np.int64), np.empty(len(slots), np.int64)
    for deck in np.unique(decks):
        here = decks == deck
        of_card, rank = _shuffled(tuple(cards.tolist()), seed, int(deck))
        source[here] = of_card[slots[here] % DECK]
        place[here] = int(deck) * cards[source[here]] + rank[slots[here] % DECK]
    return source, place


def host_slots(sharding: jax.sharding.Sharding, batch_size: int, devices: set | None = None) -> Int[np.ndarray, " b"]:
    """Rows of a batch that this process's devices hold, ascending; hosts that share a data shard get the same ones.

    Args:
        sharding: of an array whose first axis is the batch's rows.
        devices: default: those of this process.

    Raises:
        ValueError: `batch_size` does not divide over the sharding.
    """
    places = sharding.devices_indices_map((batch_size,))
    mine = sharding.addressable_devices if devices is None else devices
    every = np.arange(batch_size)
    return np.unique(np.concatenate([every[index[0]] for device, index in places.items() if device in mine]))


@functools.lru_cache(maxsize=16)
def _permutation(count: int, seed: int, epoch: int, source: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng([seed, epoch, source]).permutation(count)


@functools.lru_cache(maxsize=2)
def _shuffled(cards: tuple[int, ...], seed: int, deck: int) -> tuple[np.ndarray, np.ndarray]:
    """(source of each card of a deck, how many of that source lie before it)."""
    of_card = np.repeat(np.arange(len(cards)), cards)
    np.random.default_rng([seed, deck, 0, _DECK_STREAM]).shuffle(of_card)
    rank = np.empty(len(of_card), np.int64)
    for source, count in enumerate(cards):
        rank[of_card == source] = np.arange(count)
    return of_card, rank
