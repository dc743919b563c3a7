"""What a training run needs, and how fast it may be, on a machine one does not have.

    python -m train.plan --config pretrain --topology v6e:16x16 --model qwen3-8b \\
        --mesh.data 1 --mesh.fsdp 256 --training.batch_size 256 --training.micro_batch_size 256
    python -m train.plan --config pretrain --topology h100:8 --model qwen3-0.6b --mesh.data 1 --mesh.fsdp 8
    python -m train.plan --config pretrain --topology cpu:8 --model qwen3-0.6b --mesh.fsdp 8

The very step that train.run would run is compiled for the topology by the compiler for TPUs (install the `plan` extra)
or GPUs (`cuda`), without data, weights, TPUs or GPUs; cpu:N compiles for N simulated CPU devices instead. Any key of
the configuration is a flag, as for train.run. Exit code: 0 it fits, 1 it does not, 2 a mistake.
"""

import dataclasses
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwen3llada_jax import cli, sharding
from qwen3llada_jax.checkpoint.model_folder import read_config
from qwen3llada_jax.cli import flag
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import check_file, write_text
from qwen3llada_jax.io.buckets import place
from qwen3llada_jax.model import attention, model
from qwen3llada_jax.model.config import PRESETS, ModelConfig
from qwen3llada_jax.model.head import positions_at_once

from .checkpoint.base_model import blocks_of, check_length, settled, shift_of
from .config.mix import mix_of
from .config.parse import ConfigFlags
from .config.schema import Config
from .data.batches import lengths_of
from .monitor.model_flops import mean_training_flops_of_row
from .objective import readings_of, trained_objective
from .objectives.example import DeviceBatch
from .optim import bad_updates
from .planning import hlo_analysis, saved_activations
from .planning.hardware import Hardware, hardware_of
from .planning.jaxpr_analysis import traced
from .planning.plan_report import Memory, Plan, as_text, gib
from .step import DRAWN, make_train_step, rows_of_a_pass, rows_sharding, runtime_of, state_shardings

_MOST_COMPILES = 6
NOISED_SHARE = 0.5  # of the tokens go through the head: the mean noise level of a schedule symmetric in t


class DoesNotFitError(Exception):
    """The compiler ran out of a device's memory; `needed` bytes of it, where the compiler says so."""

    def __init__(self, message: str):
        super().__init__(message)
        used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", message)
        self.needed = int(float(used[1]) * 1024 ** (" KMGT".index(used[2]))) if used else None


@dataclass(frozen=True, kw_only=True)
class Flags(ConfigFlags):
    topology: str = flag("v5e:4x4, v5p:4x4x4, v6e:16x16, tpu7x:2x2x1, …, h100:8, h200:8 or cpu:8")
    model: str | None = flag("architecture (default: that of the model folder)", None, choices=tuple(PRESETS))
    largest_batch: bool = flag(f"find the most rows that fit, by compiling at most {_MOST_COMPILES} more sizes", False)
    json: Path | None = flag("write the plan there, too", None, metavar="FILE")


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, print, and say whether it fits (0) or not (1)."""
    options = cli.parse(Flags, arguments)
    if options.json:
        if not options.json.absolute().parent.is_dir():
            raise InputError(f"--json {options.json}: its folder does not exist; make it, or choose another place")
        check_file(options.json)
    else:
        cli.check_output()
    if options.model is None:
        config = options.read()
    elif "model.base_model_path" in options.keys:
        raise InputError("--model and --model.base_model_path both name a model; leave one of the two out")
    else:  # the configuration must name a model to start from: this is it
        config = options.read(("model.base_model_path", options.model))
    architecture = architecture_of(config, options.model)
    config = settled(config, blocks_of(config, architecture)[0], shift=shift_of(config, architecture)[0])
    check_length(config.training.max_length, architecture)
    place = hardware_of(options.topology)
    if options.largest_batch and place.chip is None:
        raise InputError(f"--largest-batch: simulated devices ({place.topology}) have no memory that could be full")
    result = plan(config, architecture, place)
    print(as_text(result), flush=True)
    if options.largest_batch:
        result = dataclasses.replace(result, largest_batch=largest_batch(config, architecture, place, result))
        print(f"largest batch: {result.largest_batch} rows of {result.length} tokens a forward pass")
    if options.json:
        write_text(options.json, json.dumps(dataclasses.asdict(result), indent=1) + "\n")
    return 0 if result.refusal is None else 1


def plan(config: Config, architecture: ModelConfig, place: Hardware) -> Plan:
    """Compile the training step for a machine and read off what it holds, sends and computes.

    Raises:
        InputError: the mesh does not fit the machine, the model or the batch.
    """
    t, lengths = config.training, lengths_of(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, place.devices)
    rows, ways = rows_of_a_pass(config, mesh)
    program, shapes = traced_step(config, architecture, mesh)
    result = Plan(
        topology=place.topology,
        chip=place.chip,
        devices=len(place.devices),
        devices_per_chip=place.devices_per_chip,
        peak_flops=place.flops,
        mesh=dict(mesh.shape),
        parameters=model.parameter_count(architecture),
        rows=rows,
        micro_batches=config.micro_batches,
        length=lengths[-1],
        other_lengths=tuple(lengths[:-1]),
        dtype=config.dtype,
        remat=t.remat,
        attention=attention_of(config, architecture, mesh),
        memory=Memory(
            parameters=_local_bytes([shapes["params"], shapes.get("ema")]),
            moments=_local_bytes(shapes["opt"]),
            activations=saved_activations.saved_bytes(program.jaxpr, architecture.num_hidden_layers) // ways,
        ),
        ideal_flops=mean_training_flops_of_row(architecture, lengths[-1], readings_of(config)) * t.batch_size,
    )
    trip_counts = {"cross_entropy": trips_of_the_head(architecture, rows // ways * lengths[-1], mesh.shape["tensor"])}
    often = trip_counts, {f"{DRAWN}/cond": [share for _, share in mix_of(t)]}  # the latter in a mixture's step alone
    counted = traced(program.jaxpr, *often)
    started = time.perf_counter()
    try:
        with jax.set_mesh(mesh):
            compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = DoesNotFitError(str(error))
        memory = dataclasses.replace(result.memory, total=refusal.needed)
        return dataclasses.replace(result, memory=memory, refusal=str(refusal).strip().splitlines()[0])
    text, sizes, platform = compiled.as_text(), compiled.memory_analysis(), place.devices[0].platform
    kept = sizes.argument_size_in_bytes
    memory = dataclasses.replace(
        result.memory,
        arguments=kept,
        new_outputs=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        # On TPUs temp_size counts more than main memory, elsewhere the peak leaves the temporaries out.
        temporaries=sizes.peak_memory_in_bytes - kept if platform == "tpu" else sizes.temp_size_in_bytes,
        program=sizes.generated_code_size_in_bytes,
    )
    result = dataclasses.replace(
        result,
        memory=memory.summed(),
        traced_flops=counted,
        compiled_flops=hlo_analysis.matmul_flops(text, *often) * len(place.devices) + counted.kernels,
        kernels=hlo_analysis.kernels(text, *often),
        hbm_bytes=hlo_analysis.hbm_bytes(text, *often),
        collectives=tuple(hlo_analysis.by_purpose(text, *often)),
        least_sent=least_sent(config, shapes["params"], mesh),
        compile_seconds=time.perf_counter() - started,
    )
    needed, room = result.memory.total, result.capacity
    if platform == "gpu" and needed and room and needed > room:  # the compiler for GPUs refuses nothing
        too_much = f"{gib(needed)} are more than the {gib(room)} that JAX takes of a GPU's memory"
        return dataclasses.replace(result, refusal=too_much)
    return result


def traced_step(config: Config, architecture: ModelConfig, mesh: Mesh) -> tuple[Any, Any]:
    """(the training step of train.run, traced for a mesh of any devices, shapes of its state with shardings).

    Raises:
        InputError: the mesh does not divide the model.
    """
    t = config.training
    graphdef, _, roles = model.abstract(architecture, runtime=runtime_of(config))
    tx = bad_updates.run_optimizer(config, t.max_steps or 1000, roles)
    shapes, shardings = state_shardings(architecture, tx, mesh, ema=config.training.ema_decay > 0)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    live, mask_token = architecture.live_vocab_size, architecture.mask_token_id
    assert live is not None
    assert mask_token is not None
    objective = trained_objective(config, mask_token, live, updates=t.max_steps or 1000)
    step = make_train_step(graphdef, config, tx, shardings, jax.random.key(0), objective)
    with jax.set_mesh(mesh):
        return step.trace(state, abstract_batch(config, mesh)), state


def attention_of(config: Config, architecture: ModelConfig, mesh: Mesh) -> str:
    """The implementation that the step uses on this mesh.

    Raises:
        InputError: one that these devices do not have.
    """
    t = config.training
    with jax.set_mesh(mesh):
        return attention.choose(t.attention, jnp.dtype(config.dtype), lengths_of(config)[-1], architecture.head_dim)


def architecture_of(config: Config, preset: str | None) -> ModelConfig:
    """The preset, or the architecture of the configured model folder; with a mask token, whichever.

    Raises:
        InputError: no such folder on this disk.
    """
    if preset:
        found = PRESETS[preset]
    else:
        names = [name for name in (config.model.qwen3llada_model_path, config.model.base_model_path) if name]
        folder = next((place(name) for name in names if place(name).is_dir()), None)
        if folder is None:
            raise InputError(
                f"{' and '.join(names)}: no such folder on this disk, and a plan downloads nothing; name an "
                f"architecture with --model: {', '.join(PRESETS)}"
            )
        found = read_config(folder)
    live = found.live_vocab_size or found.vocab_size
    return dataclasses.replace(found, mask_token_id=min(live, found.vocab_size - 1), live_vocab_size=live)


def trips_of_the_head(architecture: ModelConfig, positions: int, tensor: int) -> int:
    """Slices of noised positions that go through the head on a device that holds `positions`, half of them noised."""
    at_once = min(positions, positions_at_once(positions, architecture.vocab_size // tensor))
    return math.ceil(NOISED_SHARE * positions / at_once)


def least_sent(config: Config, params: Any, mesh: Mesh) -> float | None:
    """Bytes that a device sends in an update, at least, by FSDP's rule: in each pass every weight is gathered forward
    and backward, and its gradient scattered, by rings; over `data` the shares' gradients are all-reduced.

    Vectors, which all devices have whole, are left out. None where the rule says too much or too little: frozen weights
    have no gradient, over `tensor` activations travel.
    """
    fsdp, data = mesh.shape["fsdp"], mesh.shape["data"]
    if config.training.freeze or mesh.shape["tensor"] > 1:
        return None
    spread = sum(x.size for x in jax.tree.leaves(params) if sharding.FSDP in x.sharding.spec)
    size = config.micro_batches * spread * jnp.dtype(config.dtype).itemsize
    return 3 * size * (fsdp - 1) / fsdp + 2 * size / fsdp * (data - 1) / data


def abstract_batch(config: Config, mesh: Mesh) -> DeviceBatch:
    """The shapes of a full batch, laid out as train.run lays it out."""
    rows, length = config.training.batch_size, lengths_of(config)[-1]

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows_sharding(mesh))

    tokens, of_row = array(rows, length), array(rows)
    divided = config.is_packed and config.dataset.pack_boundaries
    return DeviceBatch(tokens, of_row, of_row, of_row, *(2 * (tokens,) if divided else ()))


def largest_batch(config: Config, architecture: ModelConfig, place: Hardware, first: Plan) -> int:
    """The most rows of a forward pass for which the step still compiles, found by compiling a few sizes."""
    ways = first.mesh["data"] * first.mesh["fsdp"]

    def needs(rows_per_way: int) -> tuple[bool, int | None]:
        rows = rows_per_way * ways
        t = dataclasses.replace(
            config.training,
            batch_size=rows * config.micro_batches,
            micro_batch_size=None,
            gradient_accumulation_steps=config.micro_batches,
        )
        tried = plan(dataclasses.replace(config, training=t), architecture, place)
        print(f"  {rows} rows: {'fit' if tried.refusal is None else 'do not fit'}", file=sys.stderr, flush=True)
        return tried.refusal is None, tried.memory.total

    start = first.rows // ways
    known = {start: (first.refusal is None, first.memory.total)}
    return ways * most_that_fit(needs, known, first.memory.parameters + first.memory.moments, first.capacity or 0)


def most_that_fit(
    needs: Callable[[int], tuple[bool, int | None]],
    known: dict[int, tuple[bool, int | None]],
    fixed: int,
    capacity: int,
) -> int:
    """The largest n for which `needs(n)` says that it fits, or the largest found after a few tries; 0: not even 1.

    Args:
        needs: (fits, bytes) of n; costly, so the next n to try comes from a straight line through what is known.
        known: results so far.
        fixed: bytes that do not depend on n.
        capacity: bytes that there are.
    """
    known = dict(known)
    for _ in range(_MOST_COMPILES):
        low = max((n for n, (fits, _) in known.items() if fits), default=0)
        high = min((n for n, (fits, _) in known.items() if not fits), default=None)
        if high == low + 1:
            break
        sizes = sorted((n, size) for n, (_, size) in known.items() if size is not None)
        guess = 2 * low or (high or 2) // 2
        if sizes:
            (n1, size1), (n2, size2) = (0, fixed) if len(sizes) == 1 else sizes[-2], sizes[-1]
            if size2 > size1:
                guess = int(np.floor(n2 + (capacity - size2) * (n2 - n1) / (size2 - size1)))
        guess = max(guess, low + 1)
        guess = min(guess, high - 1 if high is not None else max(8 * low, 2))
        known[guess] = needs(guess)
    return max((n for n, (fits, _) in known.items() if fits), default=0)


def _local_bytes(tree: Any) -> int:
    """Bytes that one device holds of a tree of arrays with shardings."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


if __name__ == "__main__":
    cli.run(main)
