"""The model card of an export: what a model is, what it was made from and how, and how to sample; as far as known."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from qwen3llada_jax.io.atomic_files import home, run_of
from qwen3llada_jax.io.buckets import is_bucket, is_there, place, real
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.text.text_ends import with_text_ends

from .export_files import has_custom_generate

_SEES = {
    "full": "Every position sees every other.",
    "block_bias": "Each block of an answer sees the prompt and itself.",
    "block_causal": "Each block sees itself and what stands before it.",
}
_FROM = {
    "prompt": "Blocks are counted from the prompt's end, the prompt being one.",
    "start": "Blocks are counted from position 0, the prompt's too.",
    "aligned": "Blocks are counted from the prompt's end, the prompt's backward.",
}
# What of a run's training.yaml is its recipe: its keys, as they are told.
_RECIPE = {
    "mode": "objective", "loss_impl": "loss", "lr": "learning rate", "batch_size": "rows an update",
    "max_length": "tokens a row",
}  # fmt: skip
_TRANSFORMERS = ("qwen3", "qwen2", "llama")


def front_matter(readme: Path) -> dict[str, Any]:
    """The YAML at the head of a model card; empty where there is none."""
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        head = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return head if isinstance(head, dict) else {}


def provenance(folder: Path, is_of_hub: str | None = None) -> dict[str, str]:
    """What is known of where a model comes from, of `base_model` (an id on the hub) and `license`.

    Args:
        folder: a Hugging Face folder, a model folder, or a training run, of which its base's folder is looked at too.
        is_of_hub: the id by which it was fetched.
    """
    found = {"base_model": is_of_hub} if is_of_hub else {}
    for key, value in front_matter(home(folder) / "README.md").items():
        if key in ("base_model", "license") and isinstance(value, str):
            found.setdefault(key, value)
    noted = (_object(home(folder) / "config.json").get("hf_export") or {}) if folder.is_dir() else {}
    if isinstance(noted, dict):
        found |= {k: v for k, v in noted.items() if k in ("base_model", "license") and isinstance(v, str)}
    base = _base_of(_yaml(home(folder) / "training.yaml"))
    if base is not None and is_there(base) and real(base) not in (real(folder), real(home(folder))):
        return provenance(place(base)) | found
    return ({"base_model": base} if base is not None and _is_of_hub(base) else {}) | found


def _is_of_hub(name: str) -> bool:
    """Whether a name that may have been a folder's is a model's that was fetched from the hub."""
    from huggingface_hub import try_to_load_from_cache

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists():
        return False
    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def card(source: Path, name: str, config: ModelConfig, step: int | None) -> str:
    """The text of README.md.

    Args:
        source: the model folder or training run that is exported; `step`: updates of the checkpoint, of a run.
        name: of the export.
    """
    known = provenance(source)
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"} | known
    if not config.is_autoregressive:
        head["tags"] = ["diffusion", "masked-diffusion"]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {name}",
        _what_it_is(config, known.get("base_model")),
        _facts(with_text_ends(config, source)),
        _recipe(source, step),
        _how_to_sample(config, is_chat=_has_chat_template(home(source))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what_it_is(config: ModelConfig, base: str | None) -> str:
    made = f", made from [{base}](https://huggingface.co/{base})" if base else ""
    family = config.family.name
    if config.is_autoregressive:
        return f"An autoregressive language model with the layers and names of {family}{made}."
    return (
        f"A masked diffusion language model with the layers and names of {family}{made}. It writes by unmasking, "
        "several tokens a pass: an autoregressive `generate` gives nonsense."
    )


def _facts(config: ModelConfig) -> str:
    if config.is_autoregressive:
        return ""
    block = "none of its own" if config.block_length is None else str(config.block_length)
    origin = f" {_FROM[config.block_origin]}" if config.visibility == "block_causal" else ""
    context = " The text before a block is read from left to right." if config.causal_context else ""
    shift = "at the position before it" if config.shift else "at its own position"
    rows = {
        "who sees whom": f"`{config.visibility}`: {_SEES[config.visibility]}{origin}{context}",
        "block length": block,
        "a token is predicted": f"{shift} (shift: {'yes' if config.shift else 'no'})",
        "mask token": "" if config.mask_token_id is None else str(config.mask_token_id),
        "a text ends at": ", ".join(map(str, config.eos_token_ids)),
    }
    return _table(rows)


def _recipe(source: Path, step: int | None) -> str:
    """How a run trained it, and its last numbers."""
    settings = _yaml(home(source) / "training.yaml")
    if step is None or not settings:
        return ""
    training, data = _section(settings, "training"), _section(settings, "dataset")
    told = {name: str(training[key]) for key, name in _RECIPE.items() if training.get(key) is not None}
    parts = [part for part in data.get("mixture") or (data,) if isinstance(part, dict) and part.get("name")]
    names = [" ".join(_public(part[key]) for key in ("name", "config") if part.get(key)) for part in parts]
    rows: dict[str, str] = {"updates": str(step)} | told | {"data": ", ".join(f"`{name}`" for name in names)}
    base = _base_of(settings)
    rows["started from"] = f"`{_public(base)}`" if base else ""
    rows |= _last_numbers(run_of(source), settings, step)
    return f"## Training\n\n{_table(rows)}"


def _last_numbers(run: Path, settings: Mapping[str, Any], step: int) -> dict[str, str]:
    """The last evaluation up to a checkpoint."""
    told = str(_section(settings, "project").get("log_dir") or run)
    logs = place(told) if is_there(told) else run
    path = next((folder / "metrics.jsonl" for folder in (run, logs) if (folder / "metrics.jsonl").is_file()), None)
    last: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path else ():
        try:
            record = json.loads(line)
        except ValueError:  # cut short by a crash
            continue
        if isinstance(record, dict) and "eval_loss" in record and record.get("step", step + 1) <= step:
            last = record
    whole = (k for k in last if k.startswith("eval_") and not re.search(r"_t[0-9]+$", k))  # not those of noise levels
    numbers = {k: last[k] for k in whole if isinstance(last[k], int | float)}
    at = f" (after {last['step']} updates)" if last else ""
    return {f"{name}{at}": f"{value:.4g}" for name, value in numbers.items()}


def _has_chat_template(folder: Path) -> bool:
    return (folder / "chat_template.jinja").is_file() or "chat_template" in _object(folder / "tokenizer_config.json")


def _how_to_sample(config: ModelConfig, *, is_chat: bool) -> str:
    chat = " --chat" if is_chat else ""
    ours = (
        "## Sampling\n\nWith qwen3llada_jax, after `python -m converters.from_hf --src FOLDER --dst model`:\n\n"
        f'```sh\npython -m sample.generate --model model{chat} --prompt "…"\n```'
    )
    if config.is_autoregressive:
        return f"{ours}\n\nWith transformers: `model.generate`, as any other."
    if not has_custom_generate(config) or config.mask_token_id is None:
        return ours
    if config.model_type not in _TRANSFORMERS:
        return (
            f"{ours}\n\n`custom_generate/generate.py` unmasks with transformers where the code of {config.family.name} "
            "takes a four-dimensional `attention_mask`; it was checked with transformers' own Qwen3, Qwen2 and Llama."
        )
    S = config.block_length or 32
    length, steps = 4 * S, 4 * max(S // 2, 1)
    return f"""{ours}

With transformers (its attention `sdpa` or `eager`):

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (kind.from_pretrained("FOLDER") for kind in (AutoModelForCausalLM, AutoTokenizer))
inputs = tokenizer(["…"], return_tensors="pt", padding=True, padding_side="left")
ids = model.generate(
    **inputs, custom_generate="FOLDER", trust_remote_code=True, max_new_tokens={length}, steps={steps}, block_length={S}
)
print(tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True))
```"""


def _public(name: Any) -> str:
    """A path or name as others may read it: where it lies on this machine is left out."""
    return Path(str(name)).name if Path(str(name)).is_absolute() or is_bucket(str(name)) else str(name)


def _table(rows: Mapping[str, str]) -> str:
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value)


def _base_of(settings: Mapping[str, Any]) -> str | None:
    """The model that a run started from, as it was named to it."""
    model = _section(settings, "model")
    found = model.get("qwen3llada_model_path") or model.get("base_model_path")
    return str(found) if found else None


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
