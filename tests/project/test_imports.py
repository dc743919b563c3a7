"""A program imports what its path needs: what takes long to import is not there where nothing uses it."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, SOON_COMPILED, TINY, write

HEAVY = {"torch", "transformers", "datasets", "pandas", "pyarrow", "orbax", "tensorstore", "lm_eval", "matplotlib",
         "tensorboardX", "wandb", "gcsfs"}  # fmt: skip


def imported(*words: str, code: int = 0) -> set[str]:
    """Packages that `python -m …` imports, of those that take long; it ends with this code."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *words], check=False, cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": SOON_COMPILED}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    names = {line.rpartition("|")[2].strip() for line in lines}
    return {name.partition(".")[0] for name in names} & HEAVY | names & {"google.cloud.storage"}


@pytest.mark.slow
@pytest.mark.parametrize("program", ["sample.generate", "sample.chat", "sample.compare", "sample.evaluate"])
@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("--no-such-flag", 2)])
def test_help_and_slips_wake_nothing(program, word, code):
    assert imported(program, word, code=code) == set()


@pytest.mark.slow
def test_a_text_from_safetensors_needs_a_tokenizer_alone():
    asked = ("--model", str(TINY), "--prompt", "ROMEO:", "--gen-length", "4")
    assert imported("sample.generate", *asked) == {"transformers"}


@pytest.mark.slow
def test_a_run_needs_data_and_checkpoints(tmp_path):
    text = write(tmp_path / "text.jsonl", [{"text": "to be or not to be " * 20}] * 20)
    settings = {
        "project.output_dir": tmp_path / "run", "model.base_model_path": TINY, "model.mask_token_id": "auto",
        "dataset.name": text, "training.max_steps": 1, "training.batch_size": 2, "training.max_length": 16,
        "mesh.data": 1, "evaluation.do_eval_loss": False,
    }  # fmt: skip
    found = imported("train.run", *(f"--{key}={value}" for key, value in settings.items()))
    assert found == {"transformers", "datasets", "pandas", "pyarrow", "orbax", "tensorstore"}


@pytest.mark.slow
@pytest.mark.parametrize("is_program", [True, False])
def test_pytorch_is_unseen_by_programs_alone(is_program):
    """A caller of the library may want transformers' own models; whoever imports PyTorch by itself finds it always."""
    code = f"""
import sys
from qwen3llada_jax.process.pytorch import unseen
with unseen(is_program={is_program}):
    from transformers import AutoTokenizer
from transformers.utils import is_torch_available
assert ("torch" in sys.modules) != {is_program}
assert is_torch_available() != {is_program}
import torch
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, timeout=300)
