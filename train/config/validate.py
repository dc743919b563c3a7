"""What a training configuration cannot be: values out of range, and keys that contradict each other."""

from typing import Any

from qwen3llada_jax.arguments import MOST_SEED
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.config import BLOCK_ORIGINS
from qwen3llada_jax.sampling.rules import CONFIDENCE_RULES

from .block_schedule import read_schedule
from .mix import read_mix, trains
from .schema import OBJECTIVES, Config, DatasetConfig, OptimConfig, TrainingConfig, flat

CHOICES: dict[str, tuple[str, ...]] = {
    "project.device": ("auto", "cpu", "gpu", "cuda", "tpu"),
    "training.mode": ("pretrain", "sft"),
    "training.objective": OBJECTIVES,
    "training.normalization": ("tokens", "rows", "noised"),
    "training.loss_impl": ("guidelines", "dllm", "soft_ce"),
    "training.remat": ("none", "dots", "full"),
    "training.attention": ("auto", "xla", "cudnn", "splash"),
    "training.on_nan": ("stop", "skip"),
    "training.on_spike": ("none", "stop", "skip"),
    "training.block_attention.visibility": ("block_bias", "block_causal"),
    "training.block_attention.origin": BLOCK_ORIGINS,
    "optim.name": ("adamw", "adamw8bit", "lion", "lion8bit", "adafactor", "muon"),
    "optim.scheduler": ("constant", "linear", "cosine", "wsd"),
    "optim.moment_dtype": ("float32", "bfloat16"),
    "dataset.template": ("chat", "plain"),
    "dataset.on_bad_row": ("skip", "stop"),
    "evaluation.remasking": tuple(CONFIDENCE_RULES),
    "distributed.initialize": ("auto", "always", "never"),
}
MAY_BE_NULL = ("training.block_attention.visibility", "training.block_attention.origin", "training.normalization")
AT_LEAST = {
    0: (
        "project.seed", "project.profile", "training.weight_decay", "training.clean_loss", "training.place_bias",
        "training.grad_clip", "evaluation.temperature", "distributed.process_id",
    ),
    1: (
        "training.max_steps", "training.batch_size", "training.micro_batch_size",
        "training.gradient_accumulation_steps", "training.max_length", "training.save_steps",
        "training.save_total_limit", "training.block_attention.block_length", "dataset.num_proc",
        "dataset.shuffle_buffer", "evaluation.steps", "evaluation.eval_every_steps", "evaluation.eval_max_batches",
        "evaluation.max_new_tokens", "evaluation.sampling_steps", "evaluation.block_length",
        "distributed.num_processes", "distributed.timeout",
    ),
}  # fmt: skip
ABOVE = {
    0: ("project.peak_tflops", "training.epochs", "training.lr", "optim.eps"),
    1: ("training.spike_factor",),
}
SHARES = {
    "[0, 1]": ("training.warmup_ratio", "training.causal_annealing", "optim.min_lr_ratio"),
    "[0, 1)": ("training.ema_decay", "training.loss_smoothing"),
    "(0, 1]": ("optim.decay_ratio",),
}
MOST = 2**31 - 1  # steps, rows and lengths are counted in 32 bits on the devices


def check(config: Config) -> None:
    """Refuse what cannot be done, before anything is loaded or compiled.

    Raises:
        InputError: naming the key and what it may be.
    """
    values = flat(config)
    for name, known in CHOICES.items():
        if values[name] not in known and (values[name] is not None or name not in MAY_BE_NULL):
            raise InputError(f"{name} {values[name]!r} is unknown; choose one of {', '.join(known)}")
    _check_ranges(values)
    t, o = config.training, config.optim
    if t.fp16:
        raise InputError("training.fp16 is not supported: it needs loss scaling that bf16 does not; set bf16: true")
    if not all(0 <= beta < 1 for beta in o.betas or ()):
        raise InputError(f"optim.betas must lie in [0, 1), not {list(o.betas or ())}")
    if not (config.model.base_model_path or config.model.qwen3llada_model_path):
        raise InputError("no model to start from: set model.base_model_path or model.qwen3llada_model_path")
    _check_dataset(config.dataset, t)
    _check_batches(t)
    _check_schedule(t, o)
    _check_objective(t)
    _check_processes(config)


def _check_ranges(values: dict[str, Any]) -> None:
    """Numbers alone; a key that is not set (null) has none."""

    def of(names: tuple[str, ...]) -> list[tuple[str, Any]]:
        return [(name, values[name]) for name in names if values[name] is not None]

    for least, names in AT_LEAST.items():
        for name, value in of(names):
            most = MOST_SEED if name == "project.seed" else MOST if isinstance(value, int) else float("inf")
            if value < least:
                raise InputError(f"{name} must be {f'at least {least}' if least else '0 or more'}, not {value}")
            if value > most:
                raise InputError(f"{name} must be at most {most}, not {value}")
    for least, names in ABOVE.items():
        for name, value in of(names):
            if value <= least:
                raise InputError(f"{name} must be above {least}, not {value}")
    for interval, names in SHARES.items():
        for name, value in of(names):
            is_open = (value == 0 and interval[0] == "(") or (value == 1 and interval[-1] == ")")
            if not 0 <= value <= 1 or is_open:
                raise InputError(f"{name} must lie in {interval}, not {value}")


def _check_dataset(d: DatasetConfig, t: TrainingConfig) -> None:
    if d.name and d.mixture:
        raise InputError("dataset.name and dataset.mixture are both set; put the one dataset into the mixture")
    if not (d.name or d.mixture):
        raise InputError("dataset.name is not set: name a file, a folder or a dataset on the hub")
    for i, part in enumerate(d.mixture):
        if not part.name:
            raise InputError(f"dataset.mixture[{i}].name is not set: name a file, a folder or a dataset on the hub")
        if part.weight <= 0:
            raise InputError(f"dataset.mixture[{i}].weight must be above 0, not {part.weight:g}")
    if d.streaming and t.max_steps is None:
        raise InputError("dataset.streaming needs training.max_steps: how long an epoch of a stream is, is not known")
    if d.pack_boundaries and t.mode == "pretrain" and not d.pack_to_max_length:
        raise InputError("dataset.pack_boundaries needs pack_to_max_length: true; else every document has its own row")


def _check_batches(t: TrainingConfig) -> None:
    micro, pieces = t.micro_batch_size, t.gradient_accumulation_steps
    if (
        (micro and t.batch_size % micro)
        or (pieces and t.batch_size % pieces)
        or (micro and pieces and micro * pieces != t.batch_size)
    ):
        raise InputError(
            f"training: batch_size {t.batch_size} must be micro_batch_size × gradient_accumulation_steps "
            f"({micro or '·'} × {pieces or '·'}); leave one of them out"
        )


def _check_schedule(t: TrainingConfig, o: OptimConfig) -> None:
    fall = o.decay_ratio or 0.1
    if o.scheduler == "wsd" and t.warmup_ratio + fall > 1:
        raise InputError(f"training.warmup_ratio {t.warmup_ratio} and optim.decay_ratio {fall} exceed 1 together")


def _check_objective(t: TrainingConfig) -> None:
    blocks, noise = t.block_attention, t.noise
    if t.mix is not None:
        _check_mix(t)
    if blocks.schedule is not None:
        last = read_schedule(blocks.schedule)[-1][0]
        if blocks.block_length not in (None, last):
            raise InputError(
                f"training.block_attention: schedule ends with blocks of {last} and block_length is "
                f"{blocks.block_length}; leave block_length out"
            )
    if trains(t, "block_diffusion"):
        by = "training.objective" if t.mix is None else "training.mix with"
        asked = {"enabled": (False, "true"), "visibility": ("block_bias", "block_causal")}
        for name, (wrong, right) in asked.items():
            if getattr(blocks, name) == wrong:
                raise InputError(f"{by} block_diffusion needs block_attention.{name} {right}, or none")
        if noise.mask_contiguous_region_prob > 0:
            raise InputError(f"{by} block_diffusion noises single tokens: leave noise.mask_contiguous_region_prob out")
    if t.place_bias and noise.noise_type != "mask":
        raise InputError("training.place_bias noises with the mask token: leave noise.noise_type out")
    if t.complementary and (noise.noise_type != "mask" or noise.min_masking_rate > 0 or t.place_bias):
        raise InputError(
            "training.complementary noises each token once in two readings, with the mask token: leave out "
            "noise.noise_type, noise.min_masking_rate and training.place_bias"
        )


def _check_mix(t: TrainingConfig) -> None:
    names = [name for name, _ in read_mix(t.mix or "")]
    if t.objective not in names:
        raise InputError(
            f"training.objective {t.objective} is not in training.mix, and the held-out loss would be of what is not "
            f"trained: set it to one of {', '.join(names)}"
        )
    # What belongs to one objective, and leaves a model that the other one does not train.
    alone = {
        "block_attention.causal_context": t.block_attention.causal_context, "clean_loss": t.clean_loss,
        "causal_annealing": t.causal_annealing,
    }  # fmt: skip
    for name, value in alone.items():
        if value:
            raise InputError(f"training.{name} is not for mixed objectives: leave it out, or training.mix")


def _check_processes(config: Config) -> None:
    many = config.distributed
    by_hand = [many.coordinator_address, many.num_processes, many.process_id]
    if any(x is not None for x in by_hand) and (None in by_hand or many.initialize == "never"):
        raise InputError(
            "distributed: coordinator_address, num_processes and process_id go together, with initialize: auto"
        )
    if many.num_processes is not None and not (many.process_id or 0) < many.num_processes:
        raise InputError(f"distributed.process_id {many.process_id} is not below num_processes {many.num_processes}")
