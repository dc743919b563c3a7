"""What a Qwen3 diffusion model is: the architecture, read from and written to Hugging Face's `config.json`.

Whatever a config asks for and this project does not do (sliding windows, mixture of experts, another rope
kind, …) is refused by name, never ignored.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3llada_jax import arguments
from qwen3llada_jax.errors import InputError, brief, listed, shown
from qwen3llada_jax.families import records
from qwen3llada_jax.families.trained_with import trained_with
from qwen3llada_jax.io import buckets
from qwen3llada_jax.io.atomic_files import home, put_back
from qwen3llada_jax.io.safetensors_folder import GGUF
from qwen3llada_jax.model.rope_scaling import RopeScaling, read_rope

VISIBILITIES = ("full", "block_bias", "block_causal")
BLOCK_ORIGINS = ("prompt", "start", "aligned")

# Keys of any config.json that are no field of a `ModelConfig`: read apart, or without effect on a forward pass.
_OTHER_KEYS = frozenset(
    "architectures model_type transformers_version use_cache torch_dtype dtype name_or_path "  # noqa: SIM905
    "_name_or_path output_hidden_states output_attentions return_dict is_causal chunk_size_feed_forward "
    "problem_type id2label label2id is_encoder_decoder _attn_implementation attn_implementation "
    "hf_export rope_parameters hidden_act attention_dropout is_adapted".split()
)

_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings",
)  # fmt: skip
_REALS = ("rms_norm_eps", "rope_theta", "initializer_range")
_FLAGS = ("tie_word_embeddings", "attention_bias", "prompt_sees_answer", "shift", "causal_context", "enable_thinking")
_IDS = ("bos_token_id", "pad_token_id", "mask_token_id")
_MOST_SIZE = 2**31 - 1  # dimensions are counted in 32 bits in a program
_MOST_LAYERS = 10_000  # beyond it a config is damaged, and going through its layers would take for ever


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of an encoder and what makes it a diffusion model.

    `mask_token_id` is the token that stands for "not known yet". `live_vocab_size` is the number of leading
    embedding rows that a token owns (None: all); the rest can never be sampled. The following are what the model was
    trained with, and the default when sampling; of an autoregressive model (`is_autoregressive`): what it was until
    now.

    Attributes:
        model_type: its family (families/records.py), as in config.json.
        visibility, block_length, prompt_sees_answer: who sees whom (masks.py).
        shift: the token of a position is predicted at the position before it.
        block_origin: where blocks are counted from: the `prompt`'s end, the prompt being one block that sees itself
            whole; the `start`, position 0, so that a prompt is blocks too and the first block to write may begin with
            its tail; or `aligned`: the prompt's end too, with the prompt in blocks counted backward from it.
        causal_context: of `block_causal`, text before the block that is being written is read from left to right: a
            token of it sees those before it alone, as in an autoregressive model.
        enable_thinking: its answers in a chat begin with their reasoning.
        sampling: settings of the sampler by which its texts are written unless others are asked for, as
            (name, value); empty: what generation_config.json and its family say (text/sampling_defaults.py).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 40_960
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    mask_token_id: int | None = None
    live_vocab_size: int | None = None
    visibility: str = "full"
    block_length: int | None = None
    prompt_sees_answer: bool = False
    shift: bool = False
    block_origin: str = "prompt"
    causal_context: bool = False
    enable_thinking: bool = False
    model_type: str = "qwen3"
    sampling: tuple[tuple[str, float | str], ...] = ()

    def __post_init__(self) -> None:
        self._take(arguments.whole, *_SIZES, *_IDS, "live_vocab_size", "block_length")
        self._take(arguments.number, *_REALS)
        self._take(arguments.flag, *_FLAGS)
        eos = self.eos_token_id
        if eos is not None and not isinstance(eos, int):
            object.__setattr__(self, "eos_token_id", arguments.ids("config: eos_token_id", eos))
        object.__setattr__(self, "sampling", _as_pairs(self.sampling))
        for name in _SIZES:
            most = _MOST_LAYERS if name == "num_hidden_layers" else _MOST_SIZE
            if not 1 <= getattr(self, name) <= most:
                value = shown(getattr(self, name))
                raise InputError(f"config: {name} must be a whole number above 0 and at most {most}, not {value}")
        for name in _REALS:
            if not 0 < getattr(self, name) < float("inf") and (name, getattr(self, name)) != ("initializer_range", 0):
                raise InputError(f"config: {name} must be a number above 0, not {getattr(self, name)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"config: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise InputError(f"config: head_dim {self.head_dim} is odd; rotary embedding needs an even one")
        rows = f"the embedding table (0 … {self.vocab_size - 1})"
        if self.mask_token_id is not None and not 0 <= self.mask_token_id < self.vocab_size:
            raise InputError(
                f"mask_token_id {shown(self.mask_token_id)} is outside {rows}; choose an id inside it, or `auto` for "
                "its first row that no token uses"
            )
        if self.live_vocab_size is not None and not 0 < self.live_vocab_size <= self.vocab_size:
            raise InputError(
                f"config: live_vocab_size {shown(self.live_vocab_size)} is 0, or more rows than {rows} has"
            )
        if self.visibility not in VISIBILITIES:
            raise InputError(f"visibility {shown(self.visibility)} is unknown; choose one of {', '.join(VISIBILITIES)}")
        if self.block_length is not None and self.block_length < 1:
            raise InputError(f"block_length must be at least 1, not {shown(self.block_length)}")
        if self.visibility != "full" and not self.block_length:
            raise InputError(f"visibility {self.visibility} needs a block_length")
        if self.block_origin not in BLOCK_ORIGINS:
            origins = ", ".join(BLOCK_ORIGINS)
            raise InputError(f"block_origin {shown(self.block_origin)} is unknown; choose one of {origins}")
        if self.block_origin != "prompt" and self.visibility != "block_causal":
            raise InputError(f"block_origin {self.block_origin} needs visibility block_causal, not {self.visibility}")
        if self.causal_context and self.visibility != "block_causal":
            raise InputError(f"causal_context needs visibility block_causal, not {self.visibility}")
        if self.model_type not in records.FAMILIES:
            raise InputError(f"model_type {shown(self.model_type)} is unknown; known are {', '.join(records.FAMILIES)}")

    def _take(self, kind: Callable[[str, Any], Any], *names: str) -> None:
        """Values as Python's own; None stays where it may."""
        for name in names:
            value = getattr(self, name)
            if value is not None or getattr(type(self), name, ...) is not None:
                object.__setattr__(self, name, kind(f"config: {name}", value))

    @classmethod
    def from_hf(cls, source: Mapping[str, Any], said: Mapping[str, Any] | None = None) -> "ModelConfig":
        """Read the dict of a Hugging Face `config.json` (any transformers version).

        Args:
            said: fields that are not as the file has them, of those that tell what a model was trained with:
                `visibility`, `block_length`, `shift`, `block_origin`.

        Raises:
            InputError: another architecture, a missing key, or a feature this project does not have.
        """
        try:
            return cls._from_hf(dict(source), dict(said or {}))
        except InputError:
            raise
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"config.json: a value is of the wrong kind ({brief(error)})") from error

    @classmethod
    def _from_hf(cls, source: dict[str, Any], said: dict[str, Any]) -> "ModelConfig":
        family = records.family_of(source)
        source = family.read(source)
        source |= {name: fact.value for name, fact in trained_with(family, source, said).items()}
        if source["visibility"] != "block_causal":  # asked to see otherwise: it is a way to see
            source.pop("causal_context", None)
        _refuse_what_we_do_not_do(source)
        theta, scaling = read_rope(source, family)
        fields = {f.name for f in dataclasses.fields(cls)} - {"rope_theta", "rope_scaling", "model_type"}
        values = {k: source[k] for k in fields if k in source}
        if values.get("num_key_value_heads") is None and "num_attention_heads" in values:
            values["num_key_value_heads"] = values["num_attention_heads"]
        if values.get("head_dim") is None:
            values.pop("head_dim", None)
        if isinstance(values.get("eos_token_id"), list):
            values["eos_token_id"] = tuple(values["eos_token_id"])
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        missing = [name for name in required if values.get(name) is None]
        if missing:
            raise InputError(f"config.json lacks {listed(missing)}; is it the config of a {family.name} model?")
        return cls(**values, rope_theta=theta, rope_scaling=scaling, model_type=family.model_type)

    def to_hf(self, dtype: str | None = None) -> dict[str, Any]:
        """The dict of a `config.json` that transformers reads as the same (non-causal) model."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values.pop("model_type")  # the family writes its own
        if values.pop("sampling"):
            values["sampling"] = dict(self.sampling)
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": values.pop("rope_theta")}
        scaling = values.pop("rope_scaling")
        if scaling is not None:
            rope |= {k: v for k, v in dataclasses.asdict(scaling).items() if v is not None}
            rope["rope_type"] = rope.pop("kind")
            if scaling.kind != "yarn":
                rope.pop("truncate")
        # Older transformers (and other readers) know only these two, newer ones only the third.
        values["rope_theta"] = self.rope_theta
        values["rope_scaling"] = None if scaling is None else {k: v for k, v in rope.items() if k != "rope_theta"}
        values["rope_parameters"] = rope
        if isinstance(self.eos_token_id, tuple):
            values["eos_token_id"] = list(self.eos_token_id)
        return self.family.write(values) | ({} if dtype is None else {"dtype": dtype})

    @property
    def family(self) -> records.Family:
        """What its family does in its own way."""
        return records.FAMILIES[self.model_type]

    @property
    def is_autoregressive(self) -> bool:
        """Whether the model writes a token at a time, from those before it: blocks of one token, with shift."""
        return self.visibility == "block_causal" and self.block_length == 1 and self.shift

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a text, as a tuple."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)


def _as_pairs(sampling: Any) -> tuple[tuple[str, float | str], ...]:
    """Settings of the sampler, from an object of JSON or pairs; what they may be, the sampler knows."""
    try:
        pairs = tuple((name, value) for name, value in dict(sampling).items())
    except (TypeError, ValueError) as error:
        raise InputError(f"config: sampling must be an object with settings, not {shown(sampling)}") from error
    for name, value in pairs:
        if not isinstance(value, bool | int | float | str):
            raise InputError(f"config: sampling: {name} must be a number or a text, not {shown(value)}")
    return pairs


def unknown_keys(source: Mapping[str, Any]) -> list[str]:
    """Keys of a `config.json` that neither this project nor its family uses: worth a notice at import."""
    known = {f.name for f in dataclasses.fields(ModelConfig)} | _OTHER_KEYS | records.family_of(source).inert
    return sorted(set(source) - known)


def read_config_json(folder: Path) -> dict[str, Any]:
    """The parsed `config.json` of a model folder, or of the run that a checkpoint's folder belongs to.

    Raises:
        InputError: no such folder or file, or not JSON.
    """
    put_back(folder)
    path = home(folder) / "config.json"
    if not buckets.place(folder).is_dir():
        raise InputError(f"{folder}: no such folder")
    if not path.is_file():
        raise InputError(f"{folder}: no config.json in it; {_what_it_is(buckets.place(folder))}")
    source = _json_object(path)
    if source is None:
        raise InputError(f"{path}: not a JSON object; download it again")
    return source


def _json_object(path: Path) -> dict[str, Any] | None:
    """None: another kind of JSON."""
    try:
        source = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested too deeply
        raise InputError(f"{path}: not valid JSON ({brief(error)}); download it again") from error
    return source if isinstance(source, dict) else None


def _what_it_is(folder: Path) -> str:
    """What a folder without config.json holds, and the way out."""
    if (folder / "adapter_config.json").is_file():
        return "it is a LoRA adapter: merge it into its model (peft's merge_and_unload) and save and import that"
    if any(folder.glob("*.gguf")):
        return GGUF
    return "a model folder holds config.json beside its weights"


def named_config_json(folder: Path) -> dict[str, Any]:
    """What `ModelConfig.from_hf` reads: config.json, and beside it what the rest of the folder says of its model.

    That is its names, the surest first (`_name_or_path`), and what its tokenizer calls the mask token (`mask_token`).

    Raises:
        InputError: as `read_config_json`.
    """
    source = read_config_json(folder)
    # A model of the hub lies in models--WHOSE--NAME/snapshots/COMMIT.
    path = buckets.absolute(folder)
    called = path.parts[-3] if path.parent.name == "snapshots" and len(path.parts) > 3 else path.name
    source["_name_or_path"] = f"{called.replace(' ', '-')} {source.get('_name_or_path', '')}"
    tokenizer = home(folder) / "tokenizer_config.json"
    mask = (_json_object(tokenizer) or {}).get("mask_token") if tokenizer.is_file() else None
    return source | {"mask_token": mask.get("content") if isinstance(mask, dict) else mask}


def read_model_config(folder: Path, said: Mapping[str, Any] | None = None) -> ModelConfig:
    """The architecture of a model folder, of a training run, or of one of its checkpoints.

    Args:
        said: as `ModelConfig.from_hf` takes it.

    Raises:
        InputError: no such folder, or not the config of a family that this project knows.
    """
    source = named_config_json(folder)
    try:
        return ModelConfig.from_hf(source, said)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def _refuse_what_we_do_not_do(source: Mapping[str, Any]) -> None:
    layer_types = source.get("layer_types") or []
    if not isinstance(layer_types, list):
        raise InputError(f"config: layer_types must be a list, not {shown(layer_types)}")
    if source.get("use_sliding_window") or any(t != "full_attention" for t in layer_types):
        raise InputError("config: sliding-window layers are not supported; use_sliding_window must be false")
    refusals = {
        "hidden_act": ("silu", "only the SwiGLU activation 'silu' is supported"),
        "attention_dropout": (0, "dropout is not supported; set it to 0"),
        "partial_rotary_factor": (1, "rotary embedding of a part of the head is not supported"),
    }
    for key, (only, fix) in refusals.items():
        if source.get(key, only) not in (only, None):
            raise InputError(f"config: {key} is {shown(source[key])}; {fix}")
    for key in ("quantization_config", "quantization"):
        if source.get(key) is not None:
            how = source[key].get("quant_method") if isinstance(source[key], dict) else None
            kind = f" ({brief(how)})" if how else ""
            raise InputError(
                f"config: {key} is there: quantized weights{kind} are not supported; import the unquantized model"
            )


def _qwen3(hidden: int, mlp: int, layers: int, heads: int, *, tied: bool) -> ModelConfig:
    return ModelConfig(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        tie_word_embeddings=tied,
        bos_token_id=151_643,
        eos_token_id=151_645,
        live_vocab_size=151_669,
    )


PRESETS: dict[str, ModelConfig] = {
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, tied=True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, tied=True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, tied=True),
    "qwen3-8b": _qwen3(4096, 12_288, 36, 32, tied=False),
    "qwen3-14b": _qwen3(5120, 17_408, 40, 40, tied=False),
    "qwen3-32b": _qwen3(5120, 25_600, 64, 64, tied=False),
}
