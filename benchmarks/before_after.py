"""Is what this tree computes, bit for bit, what the tree at another commit computes?

    python -m benchmarks.before_after COMMIT [--only NAME …] [--list]

Runs both trees side by side on the CPU with the bundled tiny Qwen3 and texts, each in processes of its own and through
what a user types: import, export, trainings of 20 updates, and the settings of the sampler. Compared are the weights,
every number of metrics.jsonl that is not a time, every array of the last checkpoint (optimizer and average included),
the answers of training, and each text's tokens, the pass that wrote them, their confidence and NFE. One line for each
configuration; exit code 1 where numbers differ by more than 1e-6 (of an array's largest one) or anything else differs.

Both trees share one cache of compiled programs: where their programs are the same, the second tree compiles nothing.
Nearly all of the time is compiling. XLA_FLAGS=--xla_backend_optimization_level=0 takes a third of it, for a first look:
without LLVM's optimizations fewer last bits move.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "examples" / "data"
LIMIT = 1e-6
DIGIT = 1e-4  # a trace's confidences have four digits: where bits move, so may the last of them
# What a line of metrics measures, and so differs in each run.
TIMES = {"tokens_per_second", "real_tokens_per_second", "seconds_per_update", "data_wait", "mfu", "elapsed", "time"}

TEXT = {"dataset.name": DATA / "shakespeare" / "valid.txt"}
TALK = {"training.mode": "sft", "dataset.name": DATA / "dialogue" / "valid.jsonl"}
BLOCKS = {"training.block_attention.enabled": True, "training.block_attention.block_length": 8}
ANSWERS = {
    "evaluation.do_eval_loss": True, "evaluation.eval_every_steps": 10, "evaluation.eval_max_batches": 2,
    "evaluation.prompts": '["Who are you?"]', "evaluation.max_new_tokens": 8, "evaluation.sampling_steps": 4,
}  # fmt: skip
TRAINING: dict[str, dict[str, Any]] = {
    "pretrain": {**TEXT, **ANSWERS, "evaluation.eval_name": DATA / "shakespeare" / "valid.txt"},
    "sft": {**TALK, **ANSWERS, "evaluation.eval_name": DATA / "dialogue" / "valid.jsonl"},
    "block_bias": {**TALK, **BLOCKS, "training.block_attention.visibility": "block_bias", "training.bf16": True},
    "block_causal_packed": {
        **BLOCKS, "training.block_attention.visibility": "block_causal", "dataset.name": "documents.jsonl",
        "dataset.pack_boundaries": True, "training.noise.antithetic": True,
    },
    "accumulation_on_a_mesh": {
        **TEXT, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "training.micro_batch_size": 4,
    },
    "adamw8bit_ema": {**TALK, "optim.name": "adamw8bit", "training.ema_decay": 0.9, "training.remat": "full"},
    "muon_frozen": {
        **TEXT, "optim.name": "muon", "training.freeze": '["layers.0-1.*"]', "optim.scheduler": "wsd",
        "training.loss_impl": "soft_ce", "training.noise.random_length_prob": 0.5,
    },
}  # fmt: skip
USUAL = {
    "training.mode": "pretrain", "training.max_steps": 20, "training.batch_size": 8, "training.max_length": 64,
    "training.lr": 1e-3, "evaluation.steps": 1, "evaluation.do_eval_loss": False, "mesh.data": 1,
}  # fmt: skip

TWO = ["--prompt", "ROMEO:\nMy", "--prompt", "The king of France"]
FEW = ["--gen-length", "16", "--block-length", "8", "--dtype", "float32"]
COMMA = ["--eos-token-ids", "11"]  # an end that the model does write
SAMPLING: dict[str, list[str]] = {
    "low_confidence": [*TWO, *FEW],
    "random": [*TWO, *FEW, "--remasking", "random", "--seed", "3"],
    "random_topk": [*TWO, *FEW, "--remasking", "random_topk", "--steps", "8"],
    "margin": [*TWO, *FEW, "--remasking", "margin", "--steps", "6"],
    "entropy": [*TWO, *FEW, "--remasking", "entropy", "--steps", "4"],
    "left_to_right": [*TWO, *FEW, "--remasking", "left_to_right", "--forbid", "11,13,198"],
    "threshold": [*TWO, *FEW, "--threshold", "0.3"],
    "threshold_and_steps": [*TWO, *FEW, "--threshold", "0.4", "--steps", "8", "--remasking", "margin"],
    "factor": [*TWO, *FEW, "--factor", "2.2"],
    "entropy_bound": [*TWO, *FEW, "--entropy-bound", "4"],
    "revise": [*TWO, *FEW, "--revise", "3"],
    "revise_at_random": [*TWO, *FEW, "--revise", "3", "--revise-by", "random", "--steps", "8"],
    "eos": [*TWO, *FEW, *COMMA],
    "eos_never": [*TWO, *FEW, *COMMA, "--eos", "never"],
    "eos_last": [*TWO, *FEW, *COMMA, "--eos", "last"],
    "min_length": [*TWO, *FEW, *COMMA, "--min-length", "5"],
    "written_on_behind_eos": [*TWO, *FEW, *COMMA, "--no-stop-at-eos"],
    "top_k": [*TWO, *FEW, "--temperature", "0.8", "--top-k", "7", "--num-samples", "3"],
    "top_p": [*TWO, *FEW, "--temperature", "1.2", "--top-p", "0.8", "--threshold", "0.2"],
    "guidance": [*TWO, *FEW, "--cfg", "1.5"],
    "guidance_in_blocks": [*TWO, *FEW, "--cfg", "0.7", "--visibility", "block_causal", "--temperature", "0.5"],
    "repetition_penalty": [*TWO, *FEW, "--repetition-penalty", "1.4"],
    "block_bias": [*TWO, *FEW, "--visibility", "block_bias"],
    "block_causal": [*TWO, *FEW, "--visibility", "block_causal"],
    "block_bias_uncached": [*TWO, *FEW, "--visibility", "block_bias", "--cache", "none", "--factor", "2"],
    "prefix_cache": [*TWO, *FEW, "--cache", "prefix"],
    "dual_cache": [*TWO, *FEW, "--cache", "dual", "--steps", "8"],
    "parallel_blocks": [*TWO, *FEW, "--visibility", "block_bias", "--parallel-blocks"],
    "infill": ["--infill", "To be, or<mask:3> be, that is<mask:2> question", "--infill", "My<mask:9> lord", *FEW[2:]],
    "prompts_of_many_lengths": [
        *FEW, "--remasking", "entropy", "--prompt", "", "--prompt", "KING:", "--prompt", "What say you, my lord? " * 3,
        "--prompt", "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer " * 2,
    ],
    "chat_live": [*FEW, "--chat", "--system", "Be brief.", "--prompt", "Who are you?", "--live", "--min-length", "9"],
    "bfloat16": [*TWO, *FEW[:-1], "bfloat16", "--entropy-bound", "2"],
}  # fmt: skip

# All settings in one process of the tree: imports once.
DRIVER = """
import contextlib, io, json, sys
from pathlib import Path
from sample.generate import main
for out, arguments in json.load(sys.stdin):
    said, failure = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            main(arguments)
    except (Exception, SystemExit) as error:
        failure = f"{type(error).__name__}: {error}"
    Path(out).write_text(json.dumps({"text": said.getvalue(), "failure": failure}))
"""


class Tree(NamedTuple):
    """A tree's code, and the folder for what it makes."""

    code: Path
    made: Path

    def run(self, *words: object, devices: int = 1, said: str | None = None) -> None:
        """Run `python …` in the tree.

        Raises:
            ChildProcessError: it failed; the last lines of what it printed.
        """
        shared = self.made.parent / "compiled"
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        environment = {
            **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags,
            "JAX_COMPILATION_CACHE_DIR": str(shared), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.made / "hf"), "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, *map(str, words)], cwd=self.code, env=environment, input=said, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            raise ChildProcessError("\n".join(done.stdout.splitlines()[-3:]))

    def results(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """What the tree gives for a group of configurations (jobs_of)."""
        kind, name = names[0].split("/")
        if kind == "sample":
            return self.sampled([name.split("/")[1] for name in names])
        return [self.trained(name) if kind == "train" else self.imported() if name == "import" else self.exported()]

    def model(self) -> Path:
        """The bundled model as this tree imports it, as one that sees everything: what older trees took all for."""
        place = self.made / "model"
        if not place.exists():
            source = shutil.copytree(ROOT / "examples" / "tiny-qwen3", self.made / "source")
            config = json.loads((source / "config.json").read_text())
            (source / "config.json").write_text(json.dumps(config | {"is_causal": False}))
            self.run("-m", "converters.from_hf", "--src", source, "--dst", place, "--mask-token-id", "auto")
        return place

    def imported(self) -> dict[str, Any]:
        return arrays_of(self.model() / "params")

    def exported(self) -> dict[str, Any]:
        from safetensors.numpy import load_file

        place = self.made / "export"
        self.run("-m", "converters.to_hf", "--src", self.model(), "--dst", place, "--dtype", "float32")
        config = json.loads((place / "config.json").read_text())
        return load_file(place / "model.safetensors") | {f"config.{key}": value for key, value in config.items()}

    def trained(self, name: str) -> dict[str, Any]:
        """What a training writes: numbers, answers, and every array of its last checkpoint."""
        out = self.made / name
        settings = {**USUAL, **TRAINING[name], "model.qwen3llada_model_path": self.model(), "project.output_dir": out}
        if settings["dataset.name"] == "documents.jsonl":
            settings["dataset.name"] = self.documents()
        devices = 8 if settings["mesh.data"] == 2 else 1
        self.run("-m", "train.run", *(f"--{key}={value}" for key, value in settings.items()), devices=devices)
        found = columns_of(out / "metrics.jsonl") | columns_of(out / "samples.jsonl")
        newest = out / "checkpoints" / str(USUAL["training.max_steps"])
        for item in ("params", "ema", "opt"):
            if (newest / item).is_dir():
                found |= {f"{item}.{key}": value for key, value in arrays_of(newest / item).items()}
        return found

    def documents(self) -> Path:
        """The held-out text as one document for each speech."""
        speeches = TEXT["dataset.name"].read_text().split("\n\n")
        place = self.made / "documents.jsonl"
        place.write_text("".join(json.dumps({"text": speech}) + "\n" for speech in speeches))
        return place

    def sampled(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """What every setting writes, and when."""
        made = {name: (self.made / f"{name}.said.json", self.made / f"{name}.trace.json") for name in names}
        asks = [
            (str(said), ["--model", str(self.model()), "--trace", str(trace), *SAMPLING[name]])
            for name, (said, trace) in made.items()
        ]
        self.run("-c", DRIVER, said=json.dumps(asks))
        return [written(said, trace) for said, trace in made.values()]


def written(said: Path, trace: Path) -> dict[str, Any]:
    """The texts of `sample.generate`, and its trace."""
    found: dict[str, Any] = json.loads(said.read_text())
    if found["failure"]:
        return found
    record = json.loads(trace.read_text())
    found["passes"] = record["passes"]
    for i, row in enumerate(record["rows"], 1):
        found[f"nfe.{i}"] = row["nfe"]
        for key in ("id", "pass", "confidence"):
            values = [token[key] for token in row["tokens"]]
            found[f"{key}.{i}"] = np.array([-1 if value is None else value for value in values])
        found[f"before.{i}"] = [[(b["id"], b["pass"], b["until"]) for b in t.get("before", ())] for t in row["tokens"]]
    return found


def columns_of(file: Path) -> dict[str, Any]:
    """{"metrics.loss": every loss in its order, …} of a .jsonl, without times."""
    columns: dict[str, Any] = {}
    for line in file.read_text().splitlines():
        for key, value in json.loads(line).items():
            if key not in TIMES:
                columns.setdefault(f"{file.stem}.{key}", []).append(value)
    for key, values in columns.items():
        if all(value is None or isinstance(value, int | float) for value in values):
            columns[key] = np.array([np.nan if value is None else value for value in values])
    return columns


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """Every array that Orbax stored in a folder."""
    import jax
    import orbax.checkpoint as ocp

    with warnings.catch_warnings(action="ignore"), ocp.PyTreeCheckpointer() as checkpointer:
        stored: Any = checkpointer.metadata(folder.absolute())
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored.item_metadata.tree)
        tree = checkpointer.restore(folder.absolute(), restore_args=as_numpy)  # from any number of devices
    return {key: np.asarray(value) for key, value in ocp.tree.to_flat_dict(tree, sep=".").items()}


def difference(name: str, before: Any, after: Any) -> float | None:
    """None: bit for bit the same; else the largest difference, as a share of the largest number (inf: no numbers)."""
    if type(before) is not type(after):
        return np.inf
    if not isinstance(before, np.ndarray | int | float):
        return None if before == after else np.inf
    before, after = np.asarray(before), np.asarray(after)
    if before.dtype != after.dtype or before.shape != after.shape:
        return np.inf
    if before.tobytes() == after.tobytes():
        return None
    a, b = before.astype(np.float64), after.astype(np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return np.inf
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    gap = np.abs(a - b)
    if name.startswith("confidence."):
        gap = np.where(gap < 1.5 * DIGIT, 0.0, gap)
    return float(gap.max() / max(np.abs(a).max(), np.abs(b).max(), np.finfo(np.float64).tiny))


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """What is not the same, the most different first: {name: difference}."""
    found = {}
    for name in {**before, **after}:
        gap = difference(name, before[name], after[name]) if name in before and name in after else np.inf
        if gap is not None:
            found[name] = gap
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def verdict(differences: Mapping[str, float], count: int) -> tuple[str, bool]:
    """(what is to be said of a configuration, whether it is as good as the same)."""
    if not differences:
        return f"identical ({count} values)", True
    largest = next(iter(differences.values()))
    is_close = largest <= LIMIT
    names = ", ".join(f"{name} {gap:.1e}" for name, gap in list(differences.items())[:4])
    more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
    kind = "last bits" if is_close else "DIFFERENT"
    return f"{kind}: {len(differences)} of {count} values, by {largest:.1e} at most: {names}{more}", is_close


@contextlib.contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """The tree at a commit, while it is needed."""
    place = folder / "tree"
    git = ["git", "-C", str(ROOT), "worktree"]
    done = subprocess.run(
        [*git, "add", "--quiet", "--detach", str(place), commit], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{commit}: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], check=False)


def jobs_of(only: Sequence[str]) -> list[list[str]]:
    """Configurations that hold one of `only` in their names, by the process that runs them."""
    names = [
        *(f"convert/{name}" for name in ("import", "export")),
        *(f"sample/{name}" for name in SAMPLING),
        *(f"train/{name}" for name in TRAINING),
    ]
    names = [name for name in names if not only or any(part in name for part in only)]
    settings = [name for name in names if name.startswith("sample/")]
    groups = [settings[i : i + 8] for i in range(0, len(settings), 8)]
    alone = [[name] for name in names if name not in settings]
    return [job for job in alone if job[0] < "sample"] + groups + [job for job in alone if job[0] > "sample"]


def outcome(before: Future, after: Future, index: int) -> tuple[str, bool]:
    """What both trees gave for a configuration, compared."""
    for which, future in (("there", before), ("here", after)):
        if error := future.exception() or future.result()[index].get("failure"):
            return f"DIFFERENT: fails {which}: {error}", False
    ours, theirs = before.result()[index], after.result()[index]
    return verdict(compare(ours, theirs), len({**ours, **theirs}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", metavar="COMMIT", nargs="?", help="what to compare this tree with")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="configurations with this in them")
    parser.add_argument("--list", action="store_true", help="name the configurations and stop")
    flags = parser.parse_args()
    jobs = jobs_of(flags.only)
    if flags.list:
        print(*(name for names in jobs for name in names), sep="\n")
        return
    if not flags.commit or not jobs:
        parser.error("give a COMMIT to compare with" if jobs else f"no configuration is called {flags.only} (--list)")
    os.environ["JAX_PLATFORMS"] = "cpu"  # this process only reads checkpoints
    begin, same, count = time.perf_counter(), 0, 0
    with tempfile.TemporaryDirectory() as folder, checked_out(flags.commit, Path(folder)) as there:
        trees = Tree(there, Path(folder) / "before"), Tree(ROOT, Path(folder) / "after")
        for tree in trees:
            tree.made.mkdir()
        with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
            # this tree one job behind the other: it finds the programs that are the same compiled
            befores = [first.submit(trees[0].results, names) for names in jobs]
            afters = [
                second.submit(lambda before, names: (before.exception(), trees[1].results(names))[1], before, names)
                for before, names in zip(befores, jobs, strict=True)
            ]
            for names, before, after in zip(jobs, befores, afters, strict=True):
                for index, name in enumerate(names):
                    text, is_same = outcome(before, after, index)
                    print(f"{name:32}{text}", flush=True)
                    same, count = same + is_same, count + 1
    print(f"{same} of {count} the same, {time.perf_counter() - begin:.0f} s")
    raise SystemExit(0 if same == count else 1)


if __name__ == "__main__":
    main()
