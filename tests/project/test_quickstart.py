"""The notebook examples/quickstart.ipynb: executed whole, as a user does from a fresh checkout."""

import base64
import io
import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, SOON_COMPILED
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
ROOMS = ("qwen3llada_jax", "converters", "train", "sample", "configs", "examples")


def test_the_notebook_is_kept_without_outputs():
    """They would tell of one machine, and change with every run."""
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)


def test_the_notebooks_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", "".join(cell.source for cell in nbformat.read(NOTEBOOK, 4).cells))
    assert len(links) >= 4
    for link in links:
        assert (NOTEBOOK.parent / link).is_file(), link


def files_of(checkout: Path) -> set[Path]:
    return {p.relative_to(checkout) for p in checkout.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def executed(checkout: Path, folder: str, flags: str, **instead: str) -> tuple[list[str], list[Image.Image]]:
    """Run the notebook in a copy of the checkout, from one of its folders: all texts and pictures of its outputs.

    A cell that fails raises, with what it said.

    Args:
        instead: text of cells that is replaced, so that it takes less time.
    """
    for room in ROOMS:
        shutil.copytree(ROOT / room, checkout / room, ignore=shutil.ignore_patterns("__pycache__"))
    before = files_of(checkout)
    notebook = nbformat.read(checkout / "examples" / "quickstart.ipynb", 4)
    for cell in notebook.cells:
        for old, new in instead.items():
            cell.source = cell.source.replace(old, new)
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": checkout / folder}})
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(p) != ROOT]  # the copy's modules
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "XLA_FLAGS": flags})
    assert {path.parts[:2] for path in files_of(checkout) - before} == {("out", "quickstart")}
    outputs = [cell.get("outputs", []) for cell in notebook.cells]
    texts = ["".join(o.text for o in of_cell if o.get("name") == "stdout") for of_cell in outputs]
    errors = "".join(o.text for of_cell in outputs for o in of_cell if o.get("name") == "stderr")
    assert not re.search("traceback|warning|deadlock", errors, re.I), errors
    assert "\x1b" not in "".join(texts)  # drawn for a terminal
    images = [o.data["image/png"] for of_cell in outputs for o in of_cell if "image/png" in o.get("data", {})]
    return texts, [Image.open(io.BytesIO(base64.b64decode(image))) for image in images]


def check(texts: list[str], pictures: list[Image.Image], checkout: Path) -> list[dict]:
    """Whatever the numbers are: five written texts, three pictures with something on them, the writing pass by pass.

    Returns:
        The lines of the run's metrics.
    """
    assert sum(text.startswith("ROMEO:\nMy") and len(text) > 60 for text in texts) == 5
    assert [len(picture.convert("RGB").getcolors(1 << 24)) > 50 for picture in pictures] == [True] * 3
    (watched,) = (text for text in texts if text.startswith("pass 0"))
    # Of the first block of four, three places are the prompt's; then two tokens a pass.
    assert [line.count("·") for line in watched.splitlines()] == [48, 47, 45, 43, 41, 39, 37, 35, 33]
    model = json.loads((checkout / "out" / "quickstart" / "adapted" / "config.json").read_text())
    assert model["block_length"] == 4
    metrics = (checkout / "out" / "quickstart" / "adapted" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in metrics.splitlines()]


@pytest.mark.slow
@pytest.mark.journey
def test_a_shorter_notebook_runs_from_the_checkouts_folder(tmp_path):
    texts, pictures = executed(tmp_path, ".", SOON_COMPILED, **{"--training.max_steps 80": "--training.max_steps 2"})
    assert check(texts, pictures, tmp_path)[-1]["step"] == 2


@pytest.mark.slow
@pytest.mark.soak
def test_the_notebook_runs_whole_and_its_model_learns(tmp_path):
    """From its own folder, where Jupyter starts it."""
    texts, pictures = executed(tmp_path, "examples", "")
    metrics = check(texts, pictures, tmp_path)
    held_out = [line["eval_ce"] for line in metrics if "eval_ce" in line]
    assert len(held_out) == 4
    assert held_out[-1] < held_out[0] < metrics[0]["ce"]
    tokens, passes = re.findall(r"(\d+) tokens in (\d+) forward passes", "".join(texts))[-1]
    assert int(passes) < int(tokens) == 64  # what it drafts, it agrees with often enough
