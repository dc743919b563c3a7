"""Tasks of lm-evaluation-harness: found, made ready, handed over, and what came out as a table and as files.

The harness asks and judges, the model answers (harness.py). A task's own settings of generation hold where no flag says
otherwise; what it asks for and the sampler has not is refused by name.
"""

import contextlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from qwen3llada_jax import cli
from qwen3llada_jax.errors import InputError, brief, listed
from qwen3llada_jax.io.atomic_files import check_folder, make_folder
from qwen3llada_jax.likelihood.reading import reading_of
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling.config import SETTINGS, SamplerConfig, origin_of
from qwen3llada_jax.text.chat_template import ChatWriter
from qwen3llada_jax.writing.opening import Folder

from .. import inputs
from ..answers import check_place
from ..flags import settings_of
from ..progress import tracked
from . import faults, finding, report, until
from .scoring import rolling_window

FLAGS = ("include_path", "num_fewshot", "fewshot_as_multiturn", "system")  # that mean nothing without --tasks
_OF_BOTH = ("visibility", "block_length", "mask_token_id")  # settings that likelihoods have too
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DRAWS = ("top_k", "top_p")
_KEYS = ("until", "do_sample", "temperature", "repetition_penalty", *_DRAWS, *_LENGTHS)
_OFF = {"num_beams": 1}  # what some tasks say, and changes nothing
_LENGTH = 256  # tokens to write where a task does not say: the harness's own default
_RESAMPLES = 1000  # of metrics without a formula for their error; the harness's 100,000 take minutes in one process


class Plan(NamedTuple):
    """How a task's texts are written: settings, complete with their ends, stop strings, and tokens at most."""

    settings: SamplerConfig
    until: tuple[str, ...]
    most: int


def given_of_sampler(flags: Any) -> list[str]:
    """Settings of the sampler that the command names, but for those that likelihoods have too."""
    names = [name for name in SETTINGS if name not in _OF_BOTH and getattr(flags, name) is not None]
    return names + [name for name in ("rule", "block_attention") if getattr(flags, name)]


def run(flags: Any) -> None:
    """Measure a model in tasks; whatever can be refused is refused before the weights are read."""
    check(flags)
    harness = finding.imported()
    if flags.out:
        check_folder(flags.out)
    else:
        cli.check_output()
    found = finding.ready(flags.tasks, flags.include_path)
    leaves = finding.leaves_of(found)
    folder = inputs.open_model(flags)
    visibility = "block_bias" if flags.block_attention else flags.visibility
    how = reading_of(
        folder.config, visibility=visibility, block_length=flags.block_length, mask_token_id=flags.mask_token_id
    )
    rolling = replace(how, block_origin="start")
    window = rolling_window(folder.config, how, flags.window, flags.stride)
    check_kinds(leaves, flags)
    for task in leaves:
        if task.OUTPUT_TYPE == "generate_until":
            plan_of(task.config.generation_kwargs or {}, flags, folder, task.task_name)
    writer = ChatWriter(folder.tokenizer, "chat", folder.thinks(flags.enable_thinking)) if flags.chat else None
    inputs.say_if_bound_is_loose(folder, how.is_chain)
    answering = harness.Answering(
        how, rolling, window, flags.samples, flags.seed, flags.batch_size,
        lambda kwargs: plan_of(kwargs, flags, folder), finding.asks_greedy(leaves), writer, tracked,
    )  # fmt: skip

    def load() -> Qwen3LLaDA:
        if flags.out:  # once nothing else is refused: no empty folder is left
            make_folder(flags.out)
            check_place("--out", flags.out / "results.json", {}, folder.path)
        return folder.load(flags.dtype)

    model = harness.Harness(load, folder, answering)
    with faults.told({task.task_name for task in leaves}):
        results = judged(model, found, flags)
    if model.cut:
        print(
            f"{model.cut:,} contexts were longer than the model's positions and lost their beginning", file=sys.stderr
        )
    report.report(results, model.notes)
    if flags.out:
        report.write(results, model.notes, flags)


def check(flags: Any) -> None:
    """Refuse flags that do not go together.

    Raises:
        InputError: naming them.
    """
    for name in ("fewshot_as_multiturn", "system", "enable_thinking"):
        if getattr(flags, name) is not None and not flags.chat:
            raise InputError(f"--{name.replace('_', '-')} belongs to a chat; add --chat")
    if flags.num_fewshot is not None and flags.num_fewshot < 0:
        raise InputError(f"--num-fewshot must be 0 or more, not {flags.num_fewshot}")
    if flags.include_path is not None and not flags.include_path.is_dir():
        raise InputError(f"--include-path {flags.include_path}: no such folder")


def check_kinds(leaves: Sequence[Any], flags: Any) -> None:
    """Refuse what these tasks have no use for, and tasks that are not run here.

    Raises:
        InputError: naming the flag or the task.
    """
    for task in leaves:
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(f"--tasks: {task.task_name} runs code that the model has written, which is not done here")
        if getattr(task, "MULTIMODAL", False):
            raise InputError(f"--tasks: {task.task_name} shows pictures or sounds; the model reads text")
        _check_metrics(task)
        if flags.num_fewshot and task.config.num_fewshot == 0:  # which the harness leaves as it is
            raise InputError(f"--num-fewshot: {task.task_name} is asked without examples; leave it out")
    kinds = {task.OUTPUT_TYPE for task in leaves}
    if "generate_until" not in kinds and (given := given_of_sampler(flags)):
        raise InputError(f"--{given[0].replace('_', '-')} is of writing, and no task of --tasks writes; leave it out")
    if "loglikelihood_rolling" not in kinds:
        for name in ("window", "stride"):
            if getattr(flags, name) is not None:
                raise InputError(f"--{name} is of whole texts, and no task of --tasks reads any; leave it out")


def _check_metrics(task: Any) -> None:
    """Refuse what the harness would find missing once all questions are answered."""
    if task.config.process_results is not None:  # the task's own code says what its metrics are
        return
    for what, of_task in (("metric", "_metric_fn_list"), ("aggregation of the metric", "_aggregation_list")):
        for name, function in getattr(task, of_task, {}).items():
            if function is None:
                raise InputError(f"--tasks {task.task_name}: the harness does not know the {what} {name!r}")


# ---- how texts are written -----------------------------------------------------------------------------------


def plan_of(kwargs: Mapping[str, Any], flags: Any, folder: Folder, name: str = "") -> Plan:
    """How texts of a task are written: by flags, else by its generation_kwargs, else by the model's own settings.

    Raises:
        InputError: a key that the sampler has not, or settings that do not go together.
    """
    where = f"--tasks {name}: " if name else ""
    unknown = [key for key in kwargs if key not in _KEYS and kwargs[key] != _OFF.get(key, kwargs)]
    if unknown:
        raise InputError(
            f"{where}generation_kwargs has {unknown[0]!r}, which the sampler has not; there are {listed(_KEYS)}"
        )
    stops = kwargs.get("until") or []
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
        raise InputError(f"{where}generation_kwargs: until is a text or a list of them, not {brief(stops, 60)}")
    for key in (*_LENGTHS, "temperature", "repetition_penalty", *_DRAWS):
        if not isinstance(kwargs.get(key) or 0, int | float):
            raise InputError(f"{where}generation_kwargs: {key} is a number, not {brief(kwargs[key], 60)}")
    most = next((int(kwargs[key]) for key in _LENGTHS if kwargs.get(key) is not None), _LENGTH)
    most = flags.gen_length or most
    temperature = float(kwargs.get("temperature") or 0.0) if kwargs.get("do_sample") is not False else 0.0
    if kwargs.get("do_sample") and temperature == 0 and flags.temperature is None:
        raise InputError(f"{where}generation_kwargs has do_sample and no temperature above 0; give --temperature")
    said: dict[str, Any] = {"temperature": temperature, "gen_length": most}
    drawn = _DRAWS if temperature > 0 else ()
    said |= {key: kwargs[key] for key in ("repetition_penalty", *drawn) if kwargs.get(key) is not None}
    said = {key: value for key, value in said.items() if getattr(flags, key) is None}
    try:
        settings = folder.ending(settings_of(replace(flags, **said), folder.config))
        added = folder.tokenizer.added_tokens_decoder.items()
        special = [i for i, token in added if token.special and token.content in stops]  # no text shows them
        ends = dict.fromkeys((*(settings.eos_token_ids or ()), *special))
        settings = replace(settings, eos_token_ids=tuple(ends), gen_length=_in_blocks(most, settings, folder.config))
        settings.for_model(folder.config)
        if until.room(settings, folder.config) < 1:
            raise InputError(
                f"{most:,} tokens to write leave no place for a question among the model's "
                f"{folder.config.max_position_embeddings:,} positions; give --gen-length"
            )
    except InputError as error:
        raise InputError(f"{where}{error}") from error
    return Plan(settings, tuple(stop for stop in stops if stop), most)


def _in_blocks(most: int, settings: SamplerConfig, config: ModelConfig) -> int:
    """Tokens to write, in whole blocks where a text is that."""
    block = settings.block_length or config.block_length or min(32, most)
    if settings.speculate or origin_of(settings, config) == "start":
        return most
    return -(-most // block) * block


# ---- the harness's part ----------------------------------------------------------------------------------------


def judged(model: Any, found: Sequence[Any], flags: Any) -> dict[str, Any]:
    """What the harness makes of the answers."""
    from lm_eval import evaluator, simple_evaluate
    from lm_eval.tasks import TaskManager

    evaluator.get_git_commit_hash = str  # of the user's folder, where git complains if it is no repository
    # Its processes would be forks of one that runs JAX.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its resampling
        return simple_evaluate(
            model=model,
            tasks=list(found),
            task_manager=TaskManager(include_defaults=False),  # all are found; else it reads its thousands, for seconds
            num_fewshot=flags.num_fewshot,
            limit=flags.limit,
            bootstrap_iters=_RESAMPLES,
            apply_chat_template=flags.chat,
            fewshot_as_multiturn=flags.fewshot_as_multiturn is not False,
            system_instruction=flags.system,
        )
