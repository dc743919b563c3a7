"""Block lengths that change while training: `1@0.2, 4@0.5, 32` is 1 in the first fifth of the updates, 4 until half."""

import itertools

from qwen3llada_jax.errors import InputError, shown

Stages = tuple[tuple[int, float], ...]
_KEY = "training.block_attention.schedule"


def read_schedule(text: str) -> Stages:
    """((block length, the share of the updates until which it holds), …); the last holds until the end.

    Raises:
        InputError: what is no such list, or does not go forward.
    """
    parts = [part.strip() for part in text.split(",")]
    stages = []
    for number, part in enumerate(parts):
        length, at, until = part.partition("@")
        is_last = number == len(parts) - 1
        if is_last == bool(at) or not length.strip().isdecimal() or int(length) < 1:
            raise InputError(
                f"{_KEY} must be lengths, each but the last with the share of the updates until which it holds, as in "
                f"1@0.2, 4@0.5, 32; not {shown(text)}"
            )
        stages.append((int(length), 1.0 if is_last else _share(until, text)))
    shares = [until for _, until in stages]
    if any(a >= b for a, b in itertools.pairwise(shares)) or shares[0] <= 0:
        raise InputError(f"{_KEY}: the shares must rise, from above 0 to below 1; not {shown(text)}")
    return tuple(stages)


def _share(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{_KEY}: {shown(text.strip())} is no share of the updates, in {shown(whole)}") from None
