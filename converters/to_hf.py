"""Export a model folder or a training run as Hugging Face safetensors that transformers loads.

    python -m converters.to_hf --src runs/qwen3-llada --dst exports/qwen3-llada
    python -m converters.to_hf --src runs/blocks --dst exports/blocks --as sdar --dtype bfloat16

transformers then runs the same (bidirectional) network: config.json says `is_causal: false`. `--as` writes the names
and config.json of another family, for the programs that know that one; what it cannot say is refused. Beside them lie
a model card and, for transformers' `generate`, a sampler that unmasks.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from qwen3llada_jax import arguments, cli
from qwen3llada_jax.checkpoint import model_folder
from qwen3llada_jax.checkpoint.hf_names import flatten, hf_tensors, ours_of
from qwen3llada_jax.cli import flag
from qwen3llada_jax.errors import InputError, brief, shown
from qwen3llada_jax.io.atomic_files import new_folder, write_text
from qwen3llada_jax.io.buckets import is_under
from qwen3llada_jax.io.safetensors_folder import INDEX
from qwen3llada_jax.model import model
from qwen3llada_jax.model.config import ModelConfig, read_config_json

from . import export_as, export_files, model_card

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, kw_only=True)
class Flags:
    src: Path = flag("model folder or training run")
    dst: Path = flag("folder to write")
    as_: str | None = flag(
        "family whose names and config.json are written (default: the model's own)",
        None, names=("--as",), choices=export_as.CHOICES,
    )  # fmt: skip
    dtype: str | None = flag("of the tensors (default: as stored)", None, choices=("float32", "bfloat16", "float16"))
    max_shard_size: str = flag("largest file, as 500MB or 5GB (default: %(default)s)", "5GB")
    overwrite: bool = flag("replace a folder that stands at --dst", False)


def main() -> None:
    flags = cli.parse(Flags)
    export(
        flags.src,
        flags.dst,
        family=flags.as_,
        dtype=flags.dtype,
        max_shard_size=flags.max_shard_size,
        overwrite=flags.overwrite,
    )


def export(
    src: Path,
    dst: Path,
    *,
    family: str | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> None:
    """Write `dst` as a Hugging Face folder.

    Args:
        family: one of `export_as.CHOICES`; None: the model's own.

    Raises:
        InputError: nothing to export, nowhere to write it, or a model that is none of that family.
    """
    limit = _bytes(max_shard_size)
    if is_under(src, dst):
        raise InputError(f"{dst}: would overwrite its own source {src}; choose another --dst")
    source = read_config_json(src)
    own = model_folder.read_config(src)
    try:
        config = export_as.as_family(own, family)
    except InputError as error:
        raise InputError(f"{src}: {error}") from error
    params = flatten(model_folder.load_params(src, own, dtype))
    if own.tie_word_embeddings and not config.tie_word_embeddings:
        params["lm_head"] = params["embed_tokens"]
    dtypes, tied_head = _notes(src, source)
    dtypes = {_renamed(name, own, config): dtype for name, dtype in dtypes.items()}
    tied_head &= config.tie_word_embeddings
    plan = list(_tensors(params, config, dtypes if dtype is None else {}, tied_head=tied_head))
    shards = _shards(plan, limit)
    with new_folder(dst, overwrite=overwrite) as target:
        weight_map: dict[str, str] = {}
        total = 0
        for number, shard in enumerate(shards, 1):
            name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors = {hf: _tensor(params, entry) for hf, entry in shard.items()}
            try:
                save_file(tensors, target / name, metadata={"format": "pt"})
            except Exception as error:  # safetensors reports a full disk as its own SafetensorError
                raise InputError(f"{dst}: cannot be written ({brief(error)})") from error
            weight_map |= dict.fromkeys(shard, name)
            total += sum(t.nbytes for t in tensors.values())
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            write_text(target / INDEX, json.dumps(index, indent=2) + "\n")
        main_dtype = str(params["embed_tokens"].dtype)
        export_files.write_files(src, target, config)
        knows_live = export_files.knows_live_rows(target, config)
        written = export_as.config_json(config, main_dtype, knows_live=knows_live)
        write_text(target / "config.json", json.dumps(written, indent=2) + "\n")
        write_text(target / "README.md", model_card.card(src, dst.name, config, _updates(src)))
    print(f"{dst}: {len(weight_map)} tensors, {total / 1e6:,.0f} MB in {len(shards)} file(s)")


def _renamed(name: str, own: ModelConfig, config: ModelConfig) -> str:
    """What a tensor of the model's own family is called in the one that is written; unknown names stay."""
    ours, at = ours_of(name, own.family.names)
    return name if ours is None else config.family.names[ours].format(*at)


def _updates(src: Path) -> int | None:
    """Updates of the checkpoint that is exported; None: of no run."""
    item = model_folder.params_item(src)
    return int(item.parent.name) if item is not None and item.parent.parent.name == "checkpoints" else None


def _notes(src: Path, source: dict[str, Any]) -> tuple[dict[str, str], bool]:
    """(dtypes of tensors that lie among others of another dtype, whether a tied head was stored), by the import.

    Raises:
        InputError: config.json says something else in their place.
    """
    notes = source.get("hf_export") or {}
    dtypes = notes.get("dtypes", {}) if isinstance(notes, dict) else None
    tied_head = notes.get("tied_head_written", False) if isinstance(notes, dict) else None
    if not isinstance(dtypes, dict) or not isinstance(tied_head, bool):
        raise InputError(f"{src}: config.json: hf_export is not what an import wrote: {shown(notes)}; remove it")
    for name, dtype in dtypes.items():
        arguments.dtype(f"{src}: config.json: hf_export of {brief(name)}:", dtype)
    return dtypes, tied_head


def _tensors(
    params: dict[str, jax.Array], config: ModelConfig, dtypes: dict[str, str], *, tied_head: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(Hugging Face name, where it comes from) of every tensor to write."""
    roles, names = flatten(model.abstract(config)[2]), config.family.names
    for ours, array in params.items():
        for hf, (at, shape) in hf_tensors(ours, array.shape, roles[ours], names).items():
            yield hf, {"ours": ours, "at": at, "shape": shape, "dtype": np.dtype(dtypes.get(hf, array.dtype))}
    if tied_head:
        table = params["embed_tokens"]
        yield names["lm_head"], {"ours": "embed_tokens", "at": (), "shape": table.shape, "dtype": table.dtype}


def _tensor(params: dict[str, jax.Array], entry: dict[str, Any]) -> np.ndarray:
    part = np.asarray(params[entry["ours"]][entry["at"]])
    return np.ascontiguousarray(part.reshape(entry["shape"]).astype(entry["dtype"], copy=False))


def _shards(plan: list[tuple[str, dict[str, Any]]], limit: int) -> list[dict[str, dict[str, Any]]]:
    shards: list[dict[str, dict[str, Any]]] = [{}]
    size = 0
    for name, entry in sorted(plan):
        nbytes = int(np.prod(entry["shape"])) * entry["dtype"].itemsize
        if shards[-1] and size + nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = entry
        size += nbytes
    return shards


def _bytes(text: str) -> int:
    number, unit = text[:-2].strip(), text[-2:].upper()
    if unit not in _UNITS or not number.isdigit() or int(number) == 0:
        raise InputError(f"--max-shard-size {text!r} is not a size; write it as 500MB or 5GB")
    return int(number) * _UNITS[unit]


if __name__ == "__main__":
    cli.run(main)
