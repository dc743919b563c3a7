"""The flags that the sampling programs share, and what they stand for: a model, its mesh, the sampler's settings."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import qwen3llada_jax as q
from qwen3llada_jax import checkpoint, command_line, tokens
from qwen3llada_jax.config import VISIBILITIES, ModelConfig
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.rules import CONFIDENCE_RULES
from qwen3llada_jax.sampler_config import CACHES, EOS_RULES, REVISE_BY, SamplerConfig

# flag → (type or choices, help); the defaults are SamplerConfig's own.
SETTINGS: dict[str, tuple[Any, str]] = {
    "gen_length": (int, "tokens to write (default: 128)"),
    "block_length": (int, "tokens of a block (default: the model's, or 32)"),
    "steps": (int, "forward passes over all blocks (default: one for each token; under an adaptive rule, no limit)"),
    "temperature": (float, "0: the likeliest token (default: 0)"),
    "top_k": (int, "draw from the k likeliest tokens"),
    "top_p": (float, "draw from the likeliest tokens of this total probability"),
    "cfg_scale": (float, "classifier-free guidance; 0: off (default: 0)"),
    "repetition_penalty": (float, "above 1: ids that stand in the text become less likely (default: 1)"),
    "remasking": (tuple(CONFIDENCE_RULES), "who is written first (default: low_confidence)"),
    "threshold": (float, "adaptive: write all that are surer than this"),
    "factor": (float, "adaptive: write n at once while (n + 1)(1 - lowest probability) is below this"),
    "entropy_bound": (float, "adaptive: write n at once while their entropies, the largest apart, sum to at most this"),
    "revise": (int, "tokens of each block that may be masked again after they were written (default: 0)"),
    "revise_by": (REVISE_BY, "which: the least certain when written, or random ones (default: confidence)"),
    "eos": (EOS_RULES, "EOS: as any token, never, or last in a block (default: free)"),
    "min_length": (int, "no EOS among the first so many tokens (default: 0)"),
    "visibility": (VISIBILITIES, "who sees whom (default: what the model was trained with)"),
    "cache": (CACHES, "keys and values kept: exact under block_bias and block_causal, approximate under full "
              "(default: prefix where exact, else none)"),
    "mask_token_id": (int, "(default: the model's)"),
}  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """A model ready to write, its tokenizer, and how many rows its mesh wants at a time."""

    model: q.Qwen3LLaDA
    tokenizer: Any
    mesh: Any
    rows: int

    @contextmanager
    def on_mesh(self) -> Iterator[None]:
        """Everything inside runs on the mesh, if there is one."""
        if self.mesh is None:
            yield
        else:
            with jax.set_mesh(self.mesh):
                yield


def add_model_flags(parser: command_line.Parser) -> None:
    """--model, its dtype, and the sizes of a mesh."""
    parser.add_argument("--model", required=True, help="model folder, training run, or Hugging Face folder")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of weights and computation (default: as stored)"
    )
    for axis in ("data", "fsdp", "tensor"):
        parser.add_argument(f"--{axis}", type=int, help=f"size of the mesh axis {axis} (default: one device)")


def add_setting_flags(parser: command_line.Parser) -> None:
    """One flag for every setting of the sampler."""
    aliases = {"cfg_scale": ["--cfg"]}
    for name, (kind, text) in SETTINGS.items():
        options = {"choices": kind} if isinstance(kind, tuple) else {"type": kind}
        parser.add_argument(f"--{name.replace('_', '-')}", *aliases.get(name, []), dest=name, help=text, **options)
    parser.add_argument("--forbid", type=int, action="append", help="an id that is never written; may be repeated")
    parser.add_argument("--no-stop-at-eos", action="store_true", help="go on writing behind an EOS")
    parser.add_argument("--parallel-blocks", action="store_true", help="all blocks in the same passes (block_bias)")
    parser.add_argument("--block-attention", action="store_true", help="the same as --visibility block_bias")


def settings_of(flags: Any) -> SamplerConfig:
    """The sampler's settings, from flags.

    Raises:
        InputError: impossible ones.
    """
    if flags.block_attention and flags.visibility not in (None, "block_bias"):
        raise InputError(f"--block-attention means --visibility block_bias, not {flags.visibility}; give one of them")
    given = {name: getattr(flags, name) for name in SETTINGS if getattr(flags, name) is not None}
    if flags.block_attention:
        given["visibility"] = "block_bias"
    return SamplerConfig(
        **given,
        forbid=tuple(flags.forbid or ()),
        stop_at_eos=not flags.no_stop_at_eos,
        parallel_blocks=flags.parallel_blocks,
    )


def open_model(flags: Any, settings: SamplerConfig, *, infill: bool = False) -> tuple[Opened, SamplerConfig]:
    """The model, and the settings with the ids that end an answer; what cannot go together is refused first.

    Raises:
        InputError: nothing to open, or settings that do not fit the model.
    """
    folder = Path(flags.model)
    config = checkpoint.read_model_config(folder)
    if not infill:
        settings.for_model(config)
    tokenizer = tokens.load_tokenizer(folder)
    if settings.eos_token_ids is None:
        settings = dataclasses.replace(settings, eos_token_ids=tuple(sorted(stop_ids(tokenizer, config))))
    mesh = mesh_of(flags)
    model = q.load(folder, flags.dtype, mesh=mesh)
    if model.config.live_vocab_size is None:  # a plain Hugging Face folder does not say which rows are tokens
        live = min(tokens.live_vocab_size(tokenizer), model.config.vocab_size)
        model.config = dataclasses.replace(model.config, live_vocab_size=live)
    rows = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    return Opened(model, tokenizer, mesh, rows), settings


def mesh_of(flags: Any) -> Any:
    """The mesh that was asked for, or None: one device."""
    sizes = [getattr(flags, axis) for axis in ("data", "fsdp", "tensor")]
    if all(size is None for size in sizes):
        return None
    data, fsdp, tensor = (1 if size is None else size for size in sizes)
    return q.make_mesh(data, fsdp, tensor)


def say_if_approximate(settings: SamplerConfig, config: ModelConfig) -> None:
    """A line on standard error when a cache changes what is written."""
    if not q.is_exact(settings, config):
        visibility = settings.visibility or config.visibility
        print(
            f"cache {settings.cache}: approximate under visibility {visibility}, where keys and values of all tokens "
            "change with every written one; --cache none is exact",
            file=sys.stderr,
        )


def stop_ids(tokenizer: Any, config: ModelConfig) -> set[int]:
    """Ids that end an answer: the model's and the tokenizer's EOS, and the end of a chat turn."""
    end_of_turn = tokenizer.get_vocab().get("<|im_end|>")
    known = (*config.eos_token_ids, tokenizer.eos_token_id, end_of_turn)
    return {i for i in known if i is not None and i < config.vocab_size}
