"""Update after update, with what lies between them, until the end or until somebody asks to stop."""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh
from orbax.checkpoint import CheckpointManager

from .checkpoint import manager as checkpoints
from .checkpoint.base_model import BaseModel
from .config.mix import mix_of
from .config.schema import Config
from .data import loader
from .data.batches import Batches
from .evaluate import StoppedError, evaluate
from .monitor import interval, samples
from .monitor.profiler import Profile
from .monitor.run_log import RunLog, info
from .monitor.throughput import Throughput, peak_of_run
from .objective import readings_of
from .objectives.example import DeviceBatch
from .optim import bad_updates
from .optim.schedule import schedule
from .runtime import hints
from .runtime.preemption import Stop, stop_requests
from .step import State, eval_params

EVALUATION, SAMPLES = "evaluation", "samples"


class Ahead(NamedTuple):
    """A batch, the same on its devices, and where the data stand after it."""

    batch: loader.Batch
    on_devices: DeviceBatch
    place: Any


class Ready(NamedTuple):
    """A run that is about to compute its first update.

    Attributes:
        eval_rows: rows of the eval loss; None: none is computed.
        first: updates done before this start.
        steps: updates when the run ends.
        next: the batch of the first update; None: no update is left.
        ahead: those behind it, made ahead.
        compile_step: compiles the training step for a batch, where its shape is new.
    """

    base: BaseModel
    mesh: Mesh
    batches: Batches
    eval_rows: loader.Rows | None
    resumed: checkpoints.Resumed
    first: int
    steps: int
    next: Ahead | None
    ahead: Generator[Ahead]
    profile: Profile
    graphdef: Any
    step_fn: Any
    eval_fn: Any
    compile_step: Callable[[State, DeviceBatch, Callable[[str], None]], None]


def run_loop(config: Config, output: Path, logs: Path, ready: Ready) -> None:
    """From the first update to the last, or to a request to stop; then a line for the person watching.

    Raises:
        InputError: an update that the rules do not allow, or a checkpoint that cannot be written.
    """
    every, keep_best, ledger = config.evaluation, config.training.keep_best, ready.resumed.ledger
    with (
        stop_requests() as stop,
        jax.set_mesh(ready.mesh),
        checkpoints.open_checkpoints(output, config.training.save_total_limit, keep_best=keep_best) as manager,
        RunLog(config, logs, ready.first, ready.steps, elapsed=ledger.get("elapsed", 0.0),
              again=ledger.get("owes", ())) as log,
        closing(ready.ahead),
    ):  # fmt: skip
        loop = _Loop(config, output, ready, manager, log, stop)
        loop.run()
        best = manager.best_step() if keep_best and every.do_eval_loss else None
    if counts := ready.batches.counts():
        info("data read: " + counts.replace("\n", "\n  "))
    if loop.done < ready.steps or loop.owes:
        info(loop.stopped())
        return
    bad_updates.check_learned(loop.metrics, ready.steps)
    if best not in (None, ready.steps):
        info(f"lowest held-out loss at update {best}: {output}/checkpoints/{best}")
    info(f"{output}: {ready.steps} updates; sample from it with: {hints.sample(config, output)}")


class _Loop:
    """Where a run stands. What a checkpoint needs changes together, after each update, so that `save_and_leave` may
    come from another thread at any moment that `Stop.rescued` allows."""

    def __init__(self, config: Config, output: Path, ready: Ready, manager: CheckpointManager, log: RunLog, stop: Stop):
        self.config, self.output, self.ready = config, output, ready
        self.manager, self.log, self.stop = manager, log, stop
        self.state, self.place, ledger = ready.resumed
        self.done = self.saved = ready.first
        self.has_saved = manager.latest_step() is not None
        self.objectives = tuple(name for name, _ in mix_of(config.training)) if config.training.mix else ()
        self.total = interval.fresh(ready.mesh, ledger.get("interval"), objectives=len(self.objectives))
        self.seen: int | None = ledger.get("tokens", None if ready.first else 0)
        self.owes: list[str] = list(ledger.get("owes", ()))
        self.eval_loss: float | None = None  # of what stands, once it is computed
        self.metrics: Any = None  # of the newest update
        self.unseen: Any = None  # the same, while nobody has waited for it
        self.throughput = Throughput(ready.base.config, peak_of_run(config), readings=readings_of(config))

    def run(self) -> None:
        """All updates that are left, or those until a request to stop, saved."""
        config, ready, log = self.config, self.ready, self.log
        rate = jax.jit(schedule(config, ready.steps))  # one program; by itself each of its operations is compiled
        skips = "skip" in (config.training.on_nan, config.training.on_spike)
        self.say_where()
        if self.owes:  # of the update that the last stop came behind
            self.look(self.owes)
            if self.stop():
                return
            self.log.settle()
            checkpoints.settle(self.manager, self.done)
        for step in range(ready.first, ready.steps):
            with self.stop.rescued(self.save_and_leave):
                with self.throughput.waiting():
                    batch, on_devices, place = ready.next if ready.next and step == ready.first else next(ready.ahead)
                with self.throughput.paused(None):
                    ready.compile_step(self.state, on_devices, log.info)
            ready.profile.before(step, self.state)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = ready.step_fn(self.state, on_devices)
            before, self.unseen = self.unseen, metrics
            self.state, self.metrics, self.place, self.done, self.eval_loss = state, metrics, place, step + 1, None
            with self.throughput.paused(None):  # the first time, it is compiled
                self.total = interval.add(self.total, {k: metrics[k] for k in interval.NEEDED})
            self.count(batch)
            checkpoints.check_written(self.manager)
            if before is not None:  # one update late, while the devices are busy with the next
                bad_updates.report(step, before, config.training, log.info, has_saved=self.has_saved)
            if ready.profile.after(self.done, metrics):
                log.info(f"{self.done:>7}  trace of {config.project.profile} update(s) in {ready.profile.folder}")
            logs, saves, due = self.due()
            if logs or saves or due:
                self.judge()
            if logs:
                with self.throughput.paused(metrics):
                    skipped = int(metrics["skipped"])
                    values = {"lr": float(rate(step - skipped)), **interval.read(self.total, self.objectives)}
                    self.total = interval.fresh(ready.mesh, objectives=len(self.objectives))
                values |= {"skipped": skipped} if skips else {}
                log.metrics({"step": self.done, **values, **self.throughput.read()})
            if due:
                self.look(due)
            stops = self.stop()
            if saves or stops:
                with self.throughput.paused(metrics):
                    self.save()
            if stops:
                return

    def due(self) -> tuple[bool, bool, list[str]]:
        """(whether a line is due after this update, whether a checkpoint is, what else is)."""
        done, every, is_last = self.done, self.config.evaluation, self.done == self.ready.steps
        looks = done % every.eval_every_steps == 0 or is_last
        saves = done % self.config.training.save_steps == 0 or is_last
        evaluates = self.ready.eval_rows is not None and (looks or (saves and self.config.training.keep_best))
        due = [EVALUATION] * evaluates + [SAMPLES] * bool(looks and every.prompts)
        return done % every.steps == 0 or is_last or done == 1, saves, due

    def count(self, batch: loader.Batch) -> None:
        """One update more."""
        self.throughput.count(batch)
        self.log.advance()
        if self.seen is not None:
            self.seen += int(batch.real_length.sum())
        self.say_where()

    def say_where(self) -> None:
        """What stands in every record from now on."""
        rows, an_epoch = self.done * self.config.training.batch_size, self.ready.batches.rows_per_epoch
        self.log.stands(tokens=self.seen, epoch=None if an_epoch is None else rows / an_epoch)

    def judge(self) -> None:
        """Wait for the newest update, and stop the run if it may not stand."""
        metrics, self.unseen = self.unseen, None
        if metrics is not None:
            bad_updates.report(self.done, metrics, self.config.training, self.log.info, has_saved=self.has_saved)

    def look(self, due: Iterable[str]) -> None:
        """Evaluate and write samples, unless somebody asks to stop.

        What is not done is owed: the run that goes on from here begins with it.
        """
        config, ready = self.config, self.ready
        self.owes = list(due)
        pad_id = ready.base.tokenizer.eos_token_id
        with (
            self.throughput.paused(self.metrics),
            self.stop.rescued(self.save_and_leave),
            suppress(StoppedError),
        ):
            if EVALUATION in self.owes:
                assert ready.eval_rows is not None
                losses = evaluate(
                    ready.eval_fn, eval_params(self.state), ready.eval_rows, pad_id, config, ready.mesh, self.stop
                )
                self.log.metrics({"step": self.done, **losses})
                self.eval_loss = losses["eval_loss"]
                self.owes.remove(EVALUATION)
            if SAMPLES in self.owes and not self.stop():
                network = nnx.merge(ready.graphdef, eval_params(self.state))
                samples.write_samples(network, ready.base.tokenizer, config, self.done, self.log, ready.mesh)
                self.owes.remove(SAMPLES)

    def save(self) -> None:
        """Begin to save what stands; nothing bad is saved."""
        self.judge()
        stands = {"fingerprint": self.ready.batches.fingerprint, "state": self.ready.batches.to_save(self.place)}
        ledger = {"interval": interval.to_json(self.total), "tokens": self.seen, "elapsed": self.log.elapsed,
                  "owes": self.owes}  # fmt: skip
        architecture = self.ready.base.config
        self.log.settle()  # what the run forgets when it goes on from here, it computes again
        checkpoints.save(self.manager, self.state, self.config, architecture, stands, self.eval_loss, ledger)
        self.saved, self.has_saved = self.done, True

    def save_and_leave(self) -> None:
        """The last thing of a process whose loop does not get to a request to stop."""
        with jax.set_mesh(self.ready.mesh):  # known to the main thread alone
            if self.saved != self.done:
                self.save()
            self.manager.wait_until_finished()
        self.log.close()
        info(self.stopped())

    def stopped(self) -> str:
        """Where a run was stopped, in words."""
        if not self.saved:
            return f"{self.output}: stopped before the first update; there is nothing to save"
        how = "stopped and saved at" if self.saved > self.ready.first else "stopped at"
        return f"{self.output}: {how} update {self.saved} of {self.ready.steps}; the same command goes on from there"


def compiler(step_fn: Any) -> Callable[[State, DeviceBatch, Callable[[str], None]], None]:
    """What compiles a training step for a batch before its update, where a batch of that shape is new, and says so."""
    known: set[Any] = set()

    def compile_step(state: State, batch: DeviceBatch, tell: Callable[[str], None]) -> None:
        shape = batch.tokens.shape
        if shape in known:
            return
        known.add(shape)
        tell(f"compiling the training step for {shape[0]} rows of {shape[1]} tokens")  # it may take minutes
        step_fn.lower(state, batch).compile()

    return compile_step
