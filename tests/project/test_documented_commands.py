"""What README, docs and help pages tell a user to type: it is there, and it runs as it stands.

A block of a page says what it is: `sh` commands, `python`, `yaml`, or `text`. Each command is in `COMMANDS`, to be run
from a copy of the checkout or left out for a reason; one with a placeholder (FILE, …, [--flag]) is a synopsis, of which
the flags are looked up. What is said of installing is read in test_install.py.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import QWEN3_TEMPLATE, ROOT, TINY

from qwen3llada_jax.cli import full_name
from qwen3llada_jax.errors import InputError
from train.config.parse import read_config
from train.config.schema import Config, flat

pytestmark = pytest.mark.xdist_group("documented commands")  # typed one after the other, in one copy
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
ROOMS = ("qwen3llada_jax", "converters", "train", "sample", "benchmarks")


class Run(NamedTuple):
    """A command that is run: with more behind it (smaller numbers, data from here), or lines for its input."""

    more: str = ""
    said: str | None = None


class Left(NamedTuple):
    """A command that is not run, and why."""

    reason: str


SHORT = "--training.max_steps 2 --training.batch_size 4 --training.micro_batch_size 2 --training.max_length 128 "
SMALL = "--training.batch_size 4 --training.micro_batch_size 4"
TEXT = SHORT + (
    "--dataset.name examples/data/shakespeare/valid.txt --dataset.config null "
    "--evaluation.eval_name examples/data/shakespeare/valid.txt --evaluation.eval_max_batches 1"
)
TALK = SHORT + (
    "--dataset.name examples/data/dialogue/train.jsonl --dataset.config null --evaluation.eval_split validation "
    "--evaluation.eval_name examples/data/dialogue/valid.jsonl --evaluation.eval_max_batches 1"
)

COMMANDS: dict[str, dict[str, Run | Left]] = {
    "README.md": {
        # configs/demo.yaml is given fewer updates in the copy; make is told that .venv is ready, and where Python is
        "make demo": Run(f"-o .venv/ready BIN={Path(sys.executable).parent}"),
        "make demo-real": Left("it loads 98 MB from the package index, and trains for ten minutes"),
        "make test": Left("it is what runs these tests"),
        # a folder of that name stands for the hub's model
        "python -m converters.from_hf --src Qwen/Qwen3-0.6B-Base --dst models/qwen3-0.6b --mask-token-id auto": Run(),
        "python -m train.run --mode pretrain --config configs/pretrain.yaml "
        "--model.qwen3llada_model_path models/qwen3-0.6b": Run(TEXT),
        "python -m train.run --mode sft --config configs/sft.yaml": Run(TALK),
        'python -m sample.generate --model runs/sft --chat --prompt "Why is the sky blue?" '
        "--steps 128 --gen-length 128 --block-length 32 --live --trace sky.html": Run(),
        "python -m sample.chat --model runs/sft --threshold 0.9": Run(said="Why is it blue?\nAnd at night?\n/quit\n"),
        "python -m sample.serve --model runs/sft --threshold 0.9": Left("ends when stopped; test_serving.py runs it"),
        "python -m converters.to_hf --src runs/sft --dst export": Run(),
    },
    "docs/adaptation.md": {
        "python -m examples.adaptation.run --out out/adaptation --quick": Run("--recipes joint"),
        "python -m examples.adaptation.run --out out/adaptation": Left("39 runs; the quick form is run"),
        "python -m examples.adaptation.run --out out/real --model out/smollm2/hf --text train.txt --held-out test.txt "
        "--recipes autoregressive,joint-clipped --seeds 1 --updates 300 --batch-size 4 --lr 3e-4 --windows 32 "
        "--samples 4 --prompts 16": Left(
            "an hour and a half on two cores, of weights that are loaded from the package index"
        ),
    },
    "CONTRIBUTING.md": {
        'pytest -m "not slow"': Left("make test runs the same tests"),
    },
    "docs/command_line.md": {
        "qwen3llada --print-completion bash > ~/.local/share/bash-completion/completions/qwen3llada": Left(
            "it writes into the home folder; test_command_line.py has bash complete with it"
        ),
        'alias generate="python -m sample.generate"': Left("a setting of a shell"),
        'eval "$(python -m sample.generate --print-completion bash)"': Run(),
    },
    "docs/evaluation.md": {
        "python -m sample.evaluate --model examples/tiny-qwen3 --tasks examples/lm_eval/shakespeare.yaml "
        "--limit 8": Run(),
        "python -m sample.evaluate --model runs/sft --tasks shakespeare --include-path examples/lm_eval --limit 8 "
        "--block-length 4 --visibility block_causal --out out/tasks": Run("--samples 2"),
    },
    "docs/buckets.md": {
        "pip install '.[gcs]'": Left("takes an index; the test extra holds the same"),
    },
    "docs/hosts.md": {
        "srun python -m train.run --config FILE --mesh.data 2 --mesh.fsdp 8": Left("SLURM"),
    },
    "docs/likelihood.md": {
        "python -m sample.evaluate --model runs/base --data held_out.txt --out out/likelihood": Run(
            "--samples 2 --window 64"
        ),
        "python -m sample.evaluate --model examples/tiny-qwen3 --data held_out.txt --block-length 4": Run(
            "--samples 2 --window 64"
        ),
        "python -m sample.evaluate --model runs/sft --data held_out.jsonl --chat": Run("--samples 2"),
    },
    "docs/performance.md": {
        "pip install '.[bench]'": Left("takes an index; the test extra holds the same"),
        "python -m benchmarks.run_all": Left("two hours of readings; test_benchmarks.py runs a row"),
        "python -m benchmarks.scaling": Left("an hour of readings; test_benchmarks.py runs a series"),
        "python -m benchmarks.accelerator": Left("test_benchmarks.py runs it"),
    },
    "docs/planning.md": {
        "pip install '.[plan]'": Left("takes an index; the test extra holds the same"),
        "pip install '.[cuda]'": Left("takes an index, and 3 GB"),
        "python -m train.plan --config configs/plan.yaml --model qwen3-8b --topology h200:8 "
        "--training.batch_size 8": Left("needs what the line before installs"),
        "python -m train.plan --config configs/plan.yaml --model qwen3-0.6b --topology v5e:4x4 "
        "--training.batch_size 16": Run("--training.max_length 1024"),
        "pytest -s -k never_holds tests/training/test_plan.py": Left("make test runs it"),
    },
    "docs/serving.md": {
        "python -m sample.serve --model runs/sft --block-length 32 --threshold 0.9": Left(
            "runs until it is stopped; test_serving.py asks it"
        ),
    },
    "docs/sampling.md": {
        "python -m sample.generate --model runs/sft --chat --prompts asks.jsonl --num-samples 4 --temperature 0.7 "
        "--out answers.jsonl": Run("--gen-length 16 --batch-size 4"),
        'python -m sample.generate --model runs/sft --prompt "My lord" --rule examples/custom_rule.py:Halves:'
        "share=0.3": Run("--gen-length 16"),
        'python -m sample.generate --model runs/base --infill "To be, or<mask:3> be, that is<mask:2> question"': Run(),
        "python -m sample.compare --model runs/sort --data held_out.jsonl --chat --gen-length 16 --rules "
        "low_confidence,margin,threshold=0.9,entropy+entropy_bound=0.3 --steps 16,8,4 --out out/compare": Run(),
    },
    "docs/training.md": {
        "python -m train.run --mode pretrain --model.base_model_path examples/tiny-qwen3 --model.mask_token_id auto "
        "--dataset.name examples/data/shakespeare/valid.txt --training.max_length 64 --training.max_steps 20 "
        "--objective block_diffusion --causal_context true --clean_loss 0.2 --shift true "
        "--training.block_attention.block_length 4 --do_eval_loss false --project.output_dir runs/joint": Run(SMALL),
        "python -m train.run --mode pretrain --model.base_model_path examples/tiny-qwen3 "
        "--model.mask_token_id auto --dataset.name examples/data/shakespeare/valid.txt --training.max_length "
        '64 --training.max_steps 20 --objective block_diffusion --mix "block_diffusion@0.7, masked@0.3" '
        "--shift true --training.block_attention.block_length 4 --do_eval_loss false --project.output_dir "
        "runs/mixed": Run(SMALL),
        "python -m train.run --mode pretrain --model.base_model_path examples/tiny-qwen3 "
        "--model.mask_token_id auto --dataset.name examples/data/shakespeare/valid.txt --training.max_length "
        "64 --training.max_steps 20 --objective block_diffusion --training.block_attention.block_length 1 "
        "--origin start --shift true --min_masking_rate 1 --random_length_prob 0 --do_eval_loss false "
        "--project.output_dir runs/autoregressive": Run(SMALL),
    },
}  # fmt: skip

# Names that a page's Python examples take for granted.
BEFORE_PYTHON = {
    "README.md": "tokens = [[1, 2, 3]]",
    # README's block has saved a model under the same name.
    "docs/importing.md": "import shutil; shutil.rmtree('models/mine', ignore_errors=True)\n"
    "tokens, path = [[1, 2, 3]], 'runs/sft'",
    "docs/likelihood.md": "",
    "docs/models.md": "",
    "docs/masks.md": "import qwen3llada_jax as q; model = q.load('runs/sft'); tokens, pad = [[1, 2, 3, 4, 5, 6]], 6",
    "docs/sampling.md": "prompts = [[1, 2, 3], [4, 5]]",
    "docs/training.md": "path, tokens, mask_token_id = 'examples/tiny-qwen3', [[1, 2, 3]], 1050",
}
BEFORE_PYTHON = {
    page: code + "\nimport jax.numpy as jnp; tokens = jnp.array(tokens)" * ("tokens" in code)
    for page, code in BEFORE_PYTHON.items()
}


def blocks(page: str, language: str | None = None) -> list[str]:
    """The fenced blocks of a page, those of a language or all languages' names."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
    return [text if language else kind for kind, text in found if language in (None, kind)]


def is_synopsis(command: str) -> bool:
    return bool(re.search(r"…|\[-|(?<![\w.$])[A-Z][A-Z_]+\b|\w\|\w|\\\|", re.sub(r'"[^"]*"', "", command)))


def commands(page: str) -> list[str]:
    """Every command of a page: the lines of its `sh` blocks, and what stands in the text in backticks."""
    found = []
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            found.append(" ".join(re.sub(r"(^|\s+)#.*", "", line).split()))
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    for span in re.findall(r"`([^`]+)`", text):
        if re.match(r"(python -m [\w.]+|pytest|xprof) ", span):
            found.append(" ".join(span.split()))
    return [c for c in found if c]


@pytest.mark.parametrize("page", PAGES)
def test_k11_every_block_says_what_it_is(page):
    assert set(blocks(page)) <= {"sh", "python", "yaml", "text"}


@pytest.mark.parametrize("page", PAGES)
def test_k11_every_documented_command_is_run_or_left_for_a_reason(page):
    typed = {c for c in commands(page) if not is_synopsis(c) or c in COMMANDS.get(page, {})}
    assert typed == set(COMMANDS.get(page, {}))


@pytest.mark.parametrize("page", PAGES)
def test_k11_every_python_example_is_run(page):
    assert bool(blocks(page, "python")) == (page in BEFORE_PYTHON)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_k11_every_yaml_example_is_read(page, tmp_path):
    for number, block in enumerate(blocks(page, "yaml")):
        (tmp_path / f"{number}.yaml").write_text(block)
        read_config(tmp_path / f"{number}.yaml", [("evaluation.do_eval_loss", "false"), ("base_model_path", "x")])


def mentions() -> dict[str, set[str]]:
    """Programs that pages, configurations, the Makefile and help pages name, with the flags they give them."""
    places = [*(ROOT / page for page in PAGES), *(ROOT / "configs").glob("*"), ROOT / "Makefile"]
    found: dict[str, set[str]] = {}
    for file in (*places, *(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))):
        text = file.read_text()
        if file.suffix == ".py":
            text = text.split('"""')[1].replace("\\\\\n", "\\\n")
        for module, rest in re.findall(r"-m ([a-z]\w+(?:\.\w+)+)((?:[^`\n\\]|\\\n|\\.)*)", text):
            found.setdefault(module, set()).update(re.findall(r"(?<![\w-])--([\w.-]+)", rest))
    return found


def test_k11_every_flag_that_is_named_exists(capsys, monkeypatch):
    named = mentions()
    assert len(named) >= 15
    for module, flags in named.items():
        monkeypatch.setattr(sys, "argv", [module, "--help"])
        with pytest.raises(SystemExit) as end:
            importlib.import_module(module).main()
        assert end.value.code in (0, None)
        known = {flag.replace("_", "-") for flag in re.findall(r"--([\w.-]+)", capsys.readouterr().out)}
        for flag in flags - {"any.key"}:
            if module in {"train.run", "train.plan"} and flag.replace("_", "-") not in known:
                try:
                    full_name(flag.replace("-", "_"), flat(Config()))
                except InputError as error:
                    pytest.fail(f"{module} --{flag}: {error}")
            else:
                assert flag.replace("_", "-") in known, f"{module} --{flag}"


def test_every_file_of_code_that_a_page_names_is_there():
    for page in PAGES:
        for name in re.findall(r"`([\w/]+/[\w/]*\w\.py)`", (ROOT / page).read_text()):
            assert (ROOT / name).is_file() or (ROOT / "qwen3llada_jax" / name).is_file(), f"{page}: {name}"


def test_k11_every_target_of_make_that_is_named_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        for words in re.findall(r"(?:`|^)make ([a-z ]+)", (ROOT / page).read_text(), re.M):
            assert set(words.split()) <= targets, f"{page}: make {words}"


# ---- as typed, from a copy of the folder ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A copy of the checkout, with what the pages say a user has: a Qwen3 (with its own chat template), questions."""
    folder = tmp_path_factory.mktemp("copy") / "qwen3llada_jax"
    for name in (*ROOMS, "configs", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", folder)
    demo = folder / "configs" / "demo.yaml"
    demo.write_text(
        demo.read_text().replace("max_steps: 260", "max_steps: 4").replace("every_steps: 40", "every_steps: 4")
    )
    shutil.copytree(TINY, folder / "Qwen" / "Qwen3-0.6B-Base")
    shutil.copy(QWEN3_TEMPLATE, folder / "Qwen" / "Qwen3-0.6B-Base" / "chat_template.jinja")
    (folder / "asks.jsonl").write_text('{"prompt": "Who are you?", "id": 1}\n{"prompt": "What is a haiku?", "id": 2}\n')
    held_out = (folder / "examples" / "data" / "dialogue" / "valid.jsonl").read_text().splitlines()[:3]
    (folder / "held_out.jsonl").write_text("\n".join(held_out) + "\n")
    text = (folder / "examples" / "data" / "shakespeare" / "valid.txt").read_text()
    (folder / "held_out.txt").write_text(text[:500])
    return folder


def typed(home: Path, command: str, said: str | None = None, **more: str) -> str:
    """Type a command in the copy: it must end well, and nothing of others' complaints be in its output."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",  # as in conftest
    }
    del environment["JAX_PLATFORMS"]
    environment |= more
    done = subprocess.run(
        ["bash", "-c", command], check=False, cwd=home, env=environment, input=said, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    both = done.stdout + done.stderr
    assert done.returncode == 0, f"{command}\nexit {done.returncode}\n{both[-4000:]}"
    for word in ("Traceback", "PyTorch was not found", "Warning:", "TPU_"):
        assert word not in both, f"{command}\n{both[-4000:]}"
    return both


def type_page(home: Path, page: str) -> None:
    for command, how in COMMANDS[page].items():
        if isinstance(how, Run):
            typed(home, f"{command} {how.more}", how.said)


@pytest.fixture(scope="module")
def after_readme(home) -> Path:
    """The copy once README's commands were typed, one after the other."""
    type_page(home, "README.md")
    for name in ("base", "sort"):  # runs that the pages speak of
        shutil.copytree(home / "runs" / "sft", home / "runs" / name)
    return home


@pytest.mark.slow
@pytest.mark.journey
def test_k11_readmes_commands_run_as_they_stand(after_readme):
    for name in ("out/demo/loss.png", "out/demo/unmasking.png", "sky.html", "export/model.safetensors"):
        assert (after_readme / name).is_file()


@pytest.mark.slow
@pytest.mark.journey
def test_k11_the_same_command_goes_on_as_readme_says(after_readme):
    command = "python -m train.run --mode sft --config configs/sft.yaml"
    how = COMMANDS["README.md"][command]
    assert "2/2" not in typed(after_readme, f"{command} {how.more}")  # both updates are done


@pytest.mark.slow
@pytest.mark.journey
@pytest.mark.parametrize(
    "page", [p for p in PAGES[1:] if any(isinstance(c, Run) for c in COMMANDS.get(p, {}).values())]
)
def test_k11_the_docs_commands_run_as_they_stand(after_readme, page):
    type_page(after_readme, page)


@pytest.mark.slow
@pytest.mark.journey
@pytest.mark.parametrize("page", BEFORE_PYTHON)
def test_k11_the_docs_python_runs_as_it_stands(after_readme, page):
    (after_readme / "example.py").write_text("\n\n".join([BEFORE_PYTHON[page], *blocks(page, "python")]))
    typed(after_readme, "python example.py", JAX_PLATFORMS="cpu")  # as docs/planning.md says of libtpu without a TPU


@pytest.mark.slow
@pytest.mark.journey
def test_k11_the_example_program_runs(after_readme):
    said = typed(after_readme, "PYTHONPATH=. python examples/custom_rule.py runs/sft 'A prompt'")
    assert "least_surprise →" in said
