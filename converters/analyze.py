"""Lay a Hugging Face checkpoint beside this model: every tensor, where it goes, and what does not fit.

    python -m converters.analyze --src HF_DIR [--dst OUR_DIR]

With --dst every value is compared too. Exit code 1 when anything is missing, unexpected or different.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from qwen3llada_jax import cli
from qwen3llada_jax.checkpoint import hf_import
from qwen3llada_jax.checkpoint import model_folder as checkpoint
from qwen3llada_jax.checkpoint.hf_names import flatten, hf_tensors
from qwen3llada_jax.cli import Place, flag
from qwen3llada_jax.families.trained_with import NO_MATTER
from qwen3llada_jax.io.hub import model_folder
from qwen3llada_jax.io.safetensors_folder import StoredTensor, reader, stored_tensors
from qwen3llada_jax.model import model


@dataclass(frozen=True, kw_only=True)
class Flags:
    src: Place = flag("folder of a checkpoint, or its id on the hub")
    dst: Path | None = flag("a model folder or training run of ours to compare with", None)


def main() -> int:
    flags = cli.parse(Flags)
    cli.check_output()
    return analyze(model_folder(flags.src), flags.dst)


def analyze(src: Path, dst: Path | None = None) -> int:
    """Print the table; 0 when all is well, 1 when something is off."""
    config = checkpoint.read_config(src, NO_MATTER)
    stored = stored_tensors(src)
    ours = None
    if dst is not None:
        ours = flatten(checkpoint.load_params(dst, checkpoint.read_config(dst, NO_MATTER)))
    title = f"{src}: a {config.family.name}"
    table = Table("Hugging Face", "shape", "dtype", "ours", "shape ", "dtype ", "verdict", title=title)
    problems: list[str] = []
    seen = set()
    _, shapes, roles = model.abstract(config)
    flat_roles, names = flatten(roles), config.family.names
    with reader(t.file for t in stored.values()) as read:
        for name, leaf in flatten(shapes).items():
            for hf, (at, shape) in hf_tensors(name, leaf.shape, flat_roles[name], names).items():
                seen.add(hf)
                verdict = _verdict(stored.get(hf), shape, ours, name, at, read)
                have = stored.get(hf)
                table.add_row(
                    hf,
                    _shape(have.shape) if have else "-",
                    have.dtype.name if have else "-",
                    f"{name}{list(at) or ''}",
                    _shape(leaf.shape[len(at) :]),
                    str(ours[name].dtype) if ours and name in ours else "-",
                    verdict,
                )
                if verdict != "ok":
                    problems.append(f"{hf}: {verdict}")
    for hf in sorted(set(stored) - seen):
        is_tied = hf == names["lm_head"] and config.tie_word_embeddings
        verdict = "ok" if is_tied else "unexpected"
        if is_tied and names["embed_tokens"] in stored and not hf_import.tied_head_matches(stored, config.family):
            verdict = "not the embedding, though tied"
        goes_to = "embed_tokens (tied)" if is_tied else "-"
        table.add_row(hf, _shape(stored[hf].shape), stored[hf].dtype.name, goes_to, "", "", verdict)
        if verdict != "ok":
            problems.append(f"{hf}: {verdict}")
    problems += [f"{name}: only in --dst" for name in sorted(set(ours or ()) - set(flatten(shapes)))]
    Console(width=None if Console().is_terminal else 180).print(table)
    count = model.parameter_count(config)
    print(f"{config.family.name}: {len(stored)} tensors, {count:,} parameters; {len(problems)} problem(s)")
    for problem in problems:
        print(f"  {problem}")
    return 1 if problems else 0


def _verdict(have: StoredTensor | None, shape, ours, name, at, read) -> str:  # noqa: ANN001 - see analyze
    if have is None:
        return "missing"
    if have.shape != shape:
        return f"shape differs: the config says {_shape(shape)}"
    if ours is None:
        return "ok"
    if name not in ours:
        return "missing in --dst"
    mine = np.asarray(ours[name][at])
    if mine.size != np.prod(shape):
        return f"shape differs in --dst: {_shape(mine.shape)}"
    theirs = np.empty(mine.shape, have.dtype)
    read.fill([(have, theirs)])
    difference = np.abs(mine.astype(np.float64) - theirs.astype(mine.dtype).astype(np.float64)).max(initial=0.0)
    return "ok" if difference == 0 else f"values differ by up to {difference:.3g}"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


if __name__ == "__main__":
    cli.run(main)
