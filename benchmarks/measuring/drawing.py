"""Milliseconds of a pass that draws from a large vocabulary, by what the draw asks for.

    python -m benchmarks.measuring.drawing [--vocabulary 151936] [--readings 3]

A drawn model of two narrow layers writes 32 tokens in a block of 32 places, one a pass, so that head, draw and choice
are most of what there is. The settings take turns; the first round compiles and does not count.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

import qwen3llada_jax as q
from benchmarks.measuring.table import range_of

PLACES = 32
SETTINGS: dict[str, dict[str, Any]] = {
    "the likeliest": {},
    "temperature 0.8": {"temperature": 0.8},
    "temperature 0.8, top_k 50": {"temperature": 0.8, "top_k": 50},
    "temperature 0.8, top_p 0.9": {"temperature": 0.8, "top_p": 0.9},
}


def texts_of(vocabulary: int) -> dict[str, Callable[[], object]]:
    """What writes a text under each of the settings."""
    model = q.Qwen3LLaDA(
        q.ModelConfig(vocabulary, 256, 768, 2, 8, 4, 32, mask_token_id=vocabulary - 1), rngs=nnx.Rngs(0)
    )
    prompt = np.random.default_rng(0).integers(0, vocabulary - 1, PLACES).tolist()
    common: dict[str, Any] = {
        "gen_length": PLACES, "block_length": PLACES, "steps": PLACES, "visibility": "block_causal", "cache": "prefix",
        "stop_at_eos": False,
    }  # fmt: skip

    def text(settings: dict[str, Any]) -> Callable[[], object]:
        config = q.SamplerConfig(**common, **settings)
        return lambda: q.generate(model, [prompt], config).answers()

    return {name: text(settings) for name, settings in SETTINGS.items()}


def milliseconds(vocabulary: int, readings: int) -> dict[str, list[float]]:
    """Of a pass, every reading."""
    texts = texts_of(vocabulary)
    found: dict[str, list[float]] = {name: [] for name in texts}
    for number in range(readings + 1):
        for name, text in texts.items():
            begin = time.perf_counter()
            text()
            if number:
                found[name].append((time.perf_counter() - begin) / PLACES * 1e3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151_936, help="(default: %(default)s)")
    parser.add_argument("--readings", type=int, default=3, help="(default: %(default)s)")
    flags = parser.parse_args()
    if flags.vocabulary < PLACES or flags.readings < 1:
        parser.error(f"--vocabulary must be at least {PLACES}, and --readings 1")
    print("ms a pass, median and range")
    for name, found in milliseconds(flags.vocabulary, flags.readings).items():
        median, least, most = range_of(found)
        print(f"{name:28}{median:8.1f}{least:8.1f} to {most:.1f}")


if __name__ == "__main__":
    main()
