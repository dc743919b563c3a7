"""Everything a training run can be told, as frozen dataclasses.

Sections and keys are those of the PyTorch Qwen3-LLaDA system, so that its YAML files run; keys that it had
not are marked "new". `parse.py` reads them from YAML and flags, and `validate.py` refuses what is
impossible.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from qwen3llada_jax.diffusion import NoiseConfig
from qwen3llada_jax.text.conversations import Columns


def key(default: Any, text: str) -> Any:
    """A configuration key with its default and the line that `--help` prints."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class ProjectConfig:
    seed: int = key(0, "seed of weights, noise and data order")
    output_dir: str = key("runs/qwen3-llada", "run folder: a model folder with checkpoints and metrics")
    log_dir: str | None = key(None, "folder of metrics.jsonl and samples.jsonl (default: output_dir)")
    device: str = key("auto", "auto, cpu, gpu or tpu")
    profile: int = key(0, "new: updates to trace with jax.profiler, into log_dir/profile (0: none)")
    peak_tflops: float | None = key(
        None, "new: peak TFLOP/s of one device, for the FLOP utilization (default: the published bf16 figure)"
    )


@dataclass(frozen=True)
class BaseModelConfig:
    base_model_path: str | None = key(None, "Qwen3 checkpoint to start from: a folder, or an id on the hub")
    qwen3llada_model_path: str | None = key(
        None, "model folder to start from instead (from converters.from_hf or a run)"
    )
    mask_token_id: str | int | None = key(
        None,
        "mask token: an id, or auto: the model's, else the tokenizer's, else a free row (default: the model's own)",
    )
    change_mask_token: bool = key(False, "new: train a model on that names one mask token with another one")
    from_scratch: bool = key(False, "new: draw fresh weights, keep only architecture and tokenizer")


OBJECTIVES = ("masked", "block_diffusion")
# Where neither the run nor its model says otherwise.
BLOCK_VISIBILITY, BLOCK_LENGTH, BLOCK_ORIGIN = "block_bias", 32, "prompt"


@dataclass(frozen=True)
class BlockAttentionConfig:
    enabled: bool | None = key(
        None,
        "hide other blocks while training (visibility below); false: everyone sees everyone (default: as the model was "
        "trained, and so for the keys below)",
    )
    block_length: int | None = key(None, "tokens of a block (else 32)")
    visibility: str | None = key(None, "new: block_causal or block_bias, the PyTorch system's (else block_bias)")
    prompt_sees_answer: bool | None = key(
        None, "new: under block_bias, prompt tokens see all answers, as the PyTorch system's did (else false)"
    )
    origin: str | None = key(
        None,
        "new: block_causal: where blocks are counted from: prompt (its end), start (position 0, the prompt in blocks "
        "too) or aligned (trained as start; prompts are padded to whole blocks when it writes) (else prompt)",
    )
    causal_context: bool | None = key(
        None,
        "new: block_diffusion: what stands before the block that is written is read from left to right, as by an "
        "autoregressive model (else false)",
    )
    schedule: str | None = key(
        None,
        "new: block lengths in place of block_length, each with the share of the updates until which it holds: "
        "1@0.2, 4@0.5, 32",
    )


@dataclass(frozen=True)
class TrainingConfig:
    mode: str = key("pretrain", "pretrain or sft")
    objective: str = key(
        "masked",
        "new: masked (noised tokens from the rest of the row) or block_diffusion (each block from clean text before "
        "it, over [noisy ; clean])",
    )
    mix: str | None = key(
        None,
        "new: several objectives, each with its share of the updates, of which every update draws one: "
        "block_diffusion@0.7, masked@0.3; the held-out loss is that of training.objective",
    )
    clean_loss: float = key(
        0.0,
        "new: block_diffusion with causal_context: weight of the next-token loss of the clean half (joint training)",
    )
    complementary: bool = key(False, "new: read every row twice, the second time with the other tokens noised")
    place_bias: float = key(
        0.0,
        "new: block_diffusion: doublings by which a block's last token is likelier to be noised than its first "
        "(NeMo: 4)",
    )
    causal_annealing: float = key(
        0.0, "new: masked: share of the updates over which the causal mask of the base model opens"
    )
    normalization: str | None = key(
        None,
        "new: what the loss is a mean over: tokens (of documents, or of all answers), rows (of their means) or noised "
        "tokens (default: tokens, in sft rows)",
    )
    loss_impl: str = key("guidelines", "guidelines, dllm (the same) or soft_ce (label smoothing)")
    loss_smoothing: float = key(0.1, "label smoothing of soft_ce")
    epochs: float = key(1.0, "passes over the data, when max_steps is not set")
    max_steps: int | None = key(None, "optimizer updates")
    batch_size: int = key(8, "rows of one update, over all devices and micro-batches")
    micro_batch_size: int | None = key(
        None, "rows of one forward pass (default: batch_size / gradient_accumulation_steps)"
    )
    gradient_accumulation_steps: int | None = key(
        None, "forward passes of one update (default: batch_size / micro_batch_size)"
    )
    max_length: int = key(1024, "tokens of a row")
    lr: float = key(1e-4, "peak learning rate")
    weight_decay: float = key(0.1, "of weight matrices; norms and biases are never decayed")
    warmup_ratio: float = key(0.05, "share of the updates over which the rate climbs to lr")
    grad_clip: float = key(1.0, "new: largest global gradient norm; 0: no limit")
    ema_decay: float = key(0.0, "new: keep a moving average of the weights, of this decay an update (0: none)")
    on_nan: str = key("stop", "new: at an update whose loss or gradient is not finite: stop, or skip it")
    on_spike: str = key("none", "new: at a spike of loss or gradient norm: none, stop, or skip the update")
    spike_factor: float = key(10.0, "new: a spike is this many times the running median of 64 updates")
    freeze: tuple[str, ...] = key((), "new: parameters not trained: embed_tokens, layers.q_proj, layers.0-11.*, …")
    fp16: bool = key(False, "refused: use bf16")
    bf16: bool = key(False, "compute in bfloat16; weights and moments stay float32")
    remat: str = key("none", "new: what the backward pass recomputes: none, dots (all but matmuls) or full")
    attention: str = key("auto", "new: auto, xla, cudnn or splash")
    save_steps: int = key(500, "updates between checkpoints")
    save_total_limit: int | None = key(3, "newest checkpoints kept (null: all)")
    keep_best: bool = key(
        True, "new: compute the held-out loss at every save too, and keep the checkpoint of the lowest as well"
    )
    resume_from: str | None = key(
        "auto",
        "auto: output_dir's newest checkpoint, if any; never; or another run, or one RUN/checkpoints/N",
    )
    shift: bool | None = key(
        None,
        "new: each token is predicted at the position before it (default: as the model was trained; of an "
        "autoregressive one false)",
    )
    eos_padding: bool = key(True, "new: pad answers with EOS that is trained on, which teaches the model to stop (sft)")
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    block_attention: BlockAttentionConfig = field(default_factory=BlockAttentionConfig)


@dataclass(frozen=True)
class OptimConfig:
    name: str = key("adamw", "adamw, adamw8bit, lion, lion8bit, adafactor or muon")
    betas: tuple[float, float] | None = key(None, "moment decays (default: 0.9, 0.95; of the lions 0.9, 0.99)")
    eps: float | None = key(None, "AdamW's epsilon (default: 1e-8)")
    moment_dtype: str = key("float32", "new: of the first moment of adamw, lion and muon: float32 or bfloat16")
    scheduler: str = key("cosine", "after the warm-up: constant, linear, cosine or wsd (constant, then linear)")
    min_lr_ratio: float = key(0.0, "new: where linear, cosine and wsd end, as a share of lr")
    decay_ratio: float | None = key(None, "new: wsd: share of the updates in which the rate falls (default: 0.1)")


@dataclass(frozen=True)
class SourceConfig:
    """One dataset of several."""

    name: str | None = None
    weight: float = 1.0
    config: str | None = None
    split: str | None = None
    text_field: str | None = None
    columns: Columns | None = None


@dataclass(frozen=True)
class DatasetConfig:
    name: str | None = key(None, "a file (.txt .json .jsonl .csv .parquet .arrow), a folder, or a dataset on the hub")
    mixture: tuple[SourceConfig, ...] = key(
        (),
        "new: several datasets in place of name: [{name: …, weight: …, config: …, split: …, text_field: …, columns: "
        "{…}}, …]; rows are drawn by weight (default 1), and what else is left out is taken from the keys here",
    )
    config: str | None = key(None, "configuration of a hub dataset")
    split: str = key("train", "split to train on, or a part of it: train[:90%]")
    text_field: str | None = key(None, "column of the text (default: the only text column, or `text`)")
    streaming: bool = key(False, "read rows as they come, without downloading and tokenizing first; needs max_steps")
    shuffle_buffer: int | None = key(
        None, "new: streaming: rows shuffled together (default 1024; 1: the stream's own order)"
    )
    num_proc: int | None = key(None, "processes that tokenize")
    pack_to_max_length: bool = key(True, "join documents and cut them into full rows; false: a padded row for each")
    pack_boundaries: bool = key(
        False, "new: documents of a packed row do not see each other, and each counts positions from 0 (pretrain)"
    )
    template: str = key("chat", "new: how sft writes conversations: chat (the tokenizer's template) or plain")
    enable_thinking: bool | None = key(
        None,
        "new: sft: answers begin with their reasoning (Qwen3's switch); false: the empty think block is prompt "
        "(default: the model's own, which is false until it is trained otherwise)",
    )
    columns: Columns = field(default_factory=Columns)
    turn_fields: tuple[str, ...] = key(
        (), "new: sft: of each turn, beside who speaks and what, use these fields only (default: all that are known)"
    )
    on_bad_row: str = key("skip", "new: a row that cannot be read: skip (left out, and counted) or stop")

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The datasets to train on: the mixture's, or the only one."""
        return tuple(
            SourceConfig(
                part.name, part.weight, part.config or self.config, part.split or self.split,
                part.text_field or self.text_field, part.columns or self.columns,
            )
            for part in self.mixture or (SourceConfig(self.name),)
        )  # fmt: skip


@dataclass(frozen=True)
class EvaluationConfig:
    steps: int = key(10, "updates between two lines of metrics (the PyTorch system's logging interval)")
    do_eval_loss: bool = key(True, "compute the loss on held-out rows, always under the same noise")
    eval_every_steps: int = key(200, "updates between two evaluations")
    eval_name: str | None = key(
        None, "new: file, folder or hub dataset of the held-out text (default: the training one's)"
    )
    eval_split: str = key("validation", "split to evaluate on, or a part of it: train[90%:]")
    eval_max_batches: int = key(8, "batches of an evaluation at most")
    tensorboard: bool = key(False, "new: metrics also as TensorBoard events, into log_dir/tensorboard")
    wandb: str | None = key(None, "new: metrics also to this Weights & Biases project")
    prompts: tuple[str, ...] = key((), "new: prompts answered after each evaluation, into samples.jsonl")
    max_new_tokens: int = key(64, "tokens of such an answer")
    sampling_steps: int = key(64, "forward passes of such an answer")
    block_length: int | None = key(None, "its block length (default: the model's, at most 32)")
    temperature: float = key(0.0, "its temperature")
    remasking: str = key("low_confidence", "its remasking rule")


@dataclass(frozen=True)
class MeshConfig:
    data: int = key(-1, "copies of the model that each take a share of the rows (-1: what is left)")
    fsdp: int = key(1, "ways weights and rows are split")
    tensor: int = key(1, "ways heads, MLP and vocabulary are split")


@dataclass(frozen=True)
class DistributedConfig:
    """New: several processes as one run."""

    initialize: str = key(
        "auto", "join other processes: auto (where SLURM, Open MPI or a TPU pod says so), always or never"
    )
    coordinator_address: str | None = key(None, "host:port of process 0 (default: what the cluster says)")
    num_processes: int | None = key(None, "processes of the run (default: what the cluster says)")
    process_id: int | None = key(None, "number of this process (default: what the cluster says)")
    timeout: int = key(300, "seconds to wait for the others")


@dataclass(frozen=True)
class Config:
    """A whole training run."""

    project: ProjectConfig = field(default_factory=ProjectConfig)
    model: BaseModelConfig = field(default_factory=BaseModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    @property
    def dtype(self) -> str:
        """The compute dtype."""
        return "bfloat16" if self.training.bf16 else "float32"

    @property
    def learns_answers(self) -> bool:
        """Whether rows are prompts with answers, of which the answers are learned; else documents."""
        return self.training.mode == "sft"

    @property
    def pads_answers(self) -> bool:
        """Whether answers are padded with EOS that is learned."""
        return self.learns_answers and self.training.eos_padding

    @property
    def is_packed(self) -> bool:
        """Whether all rows are full."""
        return not self.learns_answers and self.dataset.pack_to_max_length

    @property
    def micro_batches(self) -> int:
        """Forward passes of one update."""
        t = self.training
        return t.gradient_accumulation_steps or t.batch_size // (t.micro_batch_size or t.batch_size)


# Keys that may differ between a run and its continuation without changing what it computes.
FREE_ON_RESUME = [
    "project.output_dir",
    "project.log_dir",
    "project.device",
    "project.profile",
    "project.peak_tflops",
    "training.save_steps",
    "training.save_total_limit",
    "training.keep_best",
    "training.resume_from",
    "training.micro_batch_size",
    "training.gradient_accumulation_steps",
    "training.remat",
    "training.attention",
    "dataset.num_proc",
    "dataset.name",  # what it gives is compared, wherever it lies
    "model.base_model_path",
    "model.qwen3llada_model_path",
]
FREE_SECTIONS_ON_RESUME = ("evaluation", "mesh", "distributed")


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"training.lr": 1e-4, …}."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            out |= flat(value, f"{prefix}{f.name}.")
        else:
            out[prefix + f.name] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return dataclasses.asdict(value) if isinstance(value, SourceConfig) else value
