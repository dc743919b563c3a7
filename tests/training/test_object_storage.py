"""Runs, models and data in a bucket are as those on a disk: the same numbers, one run at a time, nothing by halves."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT, assert_one_line_error, refuses, run_program, train_in_two_processes
from test_train import assert_same, params_of, run, settings

import qwen3llada_jax as q
from benchmarks import interruptions
from converters import from_hf, to_hf
from qwen3llada_jax.checkpoint import model_folder, stored_params
from qwen3llada_jax.io import buckets, growing_object, objects
from qwen3llada_jax.io.atomic_files import check_file, copy_file, home, new_folder, write_text
from sample.answers import check_place
from train import report
from train.monitor.jsonl import JsonLines, read_lines
from train.monitor.throughput import MEASURED
from train.runtime import run_lease
from train.runtime.run_lock import only_run_in
from train.runtime.run_owner import check_owner

# A run with all that it may write: an average, the best one kept, texts.
WHOLE = {
    "training.ema_decay": 0.9, "training.keep_best": True, "training.save_total_limit": 1, "training.max_steps": 6,
    "evaluation.prompts": '["ROMEO:"]', "evaluation.max_new_tokens": 4, "evaluation.sampling_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="session")
def emulator():
    """Its address; of all libraries that ask a bucket, in this process and those that it starts."""
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "gcs_emulator.py")], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    # Read once by some of them, so they stay as they are when another test is over.
    os.environ |= {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address,
                   "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}  # fmt: skip
    yield address
    server.kill()
    server.wait(timeout=30)


@pytest.fixture
def bucket(emulator, request):
    """A new bucket, `gs://…`."""
    from google.cloud import storage

    name = f"b{abs(hash(request.node.nodeid)):x}-{time.time_ns():x}"
    storage.Client().create_bucket(name)
    return buckets.place(f"gs://{name}")


def lying_in(folder) -> dict[str, int]:
    """Name → generation of every object under a folder. The index's data files have no names but chance's: `d/*`."""
    found: dict[str, int] = {}
    for blob in objects.blobs(folder):
        name = blob.name.removeprefix(buckets.parts(folder)[1]).lstrip("/")
        stem, d, _ = name.rpartition("/d/")
        found[f"{stem}/d/*" if d else name] = blob.generation
    return found


def put(source: Path, target) -> None:
    objects.upload_folder(source, target)


# ---- places --------------------------------------------------------------------------------------------------


def test_places_are_what_they_were_or_in_a_bucket(bucket, tmp_path, monkeypatch):
    name = str(bucket).removeprefix("gs://")
    assert buckets.place("runs/x") == Path("runs/x")
    assert type(buckets.place(tmp_path)) is type(tmp_path)
    for written in (f"gs://{name}/run", f"gs://{name}/run/", f"gs:/{name}//run", Path(f"gs://{name}/run")):
        assert str(buckets.place(written)) == f"gs://{name}/run"
        assert buckets.real(written) == f"gs://{name}/run"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert buckets.real("link") == str(tmp_path / "run")
    assert str(buckets.absolute(buckets.place(f"gs://{name}/run"))) == f"gs://{name}/run"
    assert buckets.is_under(buckets.place(f"gs://{name}/run/checkpoints/3"), buckets.place(f"gs://{name}/run"))
    assert not buckets.is_under(buckets.place(f"gs://{name}/run2"), buckets.place(f"gs://{name}/run"))
    refuses(lambda: buckets.place("gs://B_/x"), "gs://BUCKET/PATH")


@pytest.mark.parametrize("package", ["gcsfs", "google.cloud.storage"])
def test_packages_that_are_not_installed(monkeypatch, package):
    for module in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    buckets._prepare.cache_clear()
    line = refuses(lambda: buckets.place("gs://bucket/run"), "gs://bucket: buckets need", package)
    assert line.endswith("pip install gcsfs google-cloud-storage")


def test_buckets_that_do_not_let_us_in(emulator):
    refuses(lambda: buckets.place("gs://nobodys/run"), "gs://nobodys: no such bucket")
    refuses(lambda: buckets.place("gs://locked/run"), "gs://locked: no credentials", "gcloud auth")
    refuses(lambda: buckets.check(buckets.place("gs://read-only/run")), "lack storage.objects.create", "Object Admin")


def test_nobody_answers(emulator, monkeypatch):
    from google.cloud import storage
    from google.cloud.storage import retry

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    client = storage.Client(client_options={"api_endpoint": address})
    monkeypatch.setattr(buckets, "client", lambda: client)
    monkeypatch.setattr(retry, "DEFAULT_RETRY", retry.DEFAULT_RETRY.with_timeout(1).with_delay(0.1, 0.1))
    monkeypatch.setattr(type(retry.DEFAULT_RETRY), "with_timeout", lambda self, _: self)
    refuses(lambda: buckets.place("gs://far-away/run"), "gs://far-away: the bucket does not answer as it should")


def test_credentials_without_a_project(monkeypatch):
    """Google's client wants one, though only who makes buckets needs it; orbax asks for a client by itself."""
    from google import auth
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(auth, "default", lambda *_, **__: (AnonymousCredentials(), None))
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "")  # so that what is set there is taken back
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT")
    with pytest.raises(OSError, match="Project was not passed"):
        storage.Client()
    assert buckets.client.__wrapped__().project == "none"
    storage.Client()


# ---- files ---------------------------------------------------------------------------------------------------


def test_files_and_their_copies(bucket, tmp_path):
    folder, here = bucket / "model", tmp_path / "a"
    here.mkdir()
    write_text(folder / "config.json", "{}")
    write_text(here / "vocab.json", "ü")
    copy_file(here / "vocab.json", folder / "vocab.json")
    copy_file(folder / "vocab.json", folder / "deep" / "again.json")
    copy_file(folder / "deep" / "again.json", here / "back.json")
    assert (here / "back.json").read_text(encoding="utf-8") == "ü"
    write_text(folder / "model.safetensors", "weights")
    write_text(folder / "metrics.jsonl", "")
    assert objects.names(folder) == ["config.json", "deep", "metrics.jsonl", "model.safetensors", "vocab.json"]
    copied = home(folder)
    assert sorted(p.name for p in copied.iterdir() if p.is_file()) == ["config.json", "vocab.json"]
    before = (copied / "vocab.json").stat().st_ino
    write_text(folder / "config.json", '{"changed": 1}')
    assert home(folder) == copied
    assert (copied / "config.json").read_text() == '{"changed": 1}'
    assert (copied / "vocab.json").stat().st_ino == before  # what has not changed is not copied again
    assert home(folder / "checkpoints" / "3") == copied
    everything = objects.on_disk(folder)
    assert (everything / "deep" / "again.json").read_text(encoding="utf-8") == "ü"
    assert (everything / "model.safetensors").read_text() == "weights"
    objects.remove(folder / "vocab.json")
    assert not (home(folder) / "vocab.json").exists()
    refuses(lambda: objects.on_disk(folder / "absent.txt"), f"{folder}/absent.txt: no such file or folder")


def test_a_folder_is_a_model_when_all_of_it_is_there(bucket, monkeypatch, capsys):
    target = bucket / "model"
    order = []
    real = objects.write
    monkeypatch.setattr(objects, "copy", lambda source, to: (order.append(to.name), real(to, source.read_bytes())))

    def fill(text: str, **more) -> None:
        with new_folder(target, **more) as folder:
            for name in ("config.json", "a.bin", "z.bin"):
                (folder / name).write_text(text)
            assert not order or "config.json" in objects.names(target)  # the old one stands until the new one is whole

    fill("1")
    assert order == ["a.bin", "z.bin", "config.json"]
    refuses(lambda: fill("2"), f"{target}: exists and is not empty")
    write_text(target / "old.bin", "old")
    fill("2", overwrite=True)
    assert objects.names(target) == ["a.bin", "config.json", "z.bin"]
    assert (target / "a.bin").read_text() == "2"
    write_text(bucket / "other" / "x", "")
    refuses(lambda: new_folder(bucket / "other", overwrite=True).__enter__(), "no model folder")
    # One whose writer was killed on the way is no model, and is replaced.
    write_text(target / ".uploading", "")
    objects.remove(target / "config.json")
    refuses(lambda: model_folder.read_config(target), "no config.json in it")
    order.clear()
    fill("3")
    assert "its writer was killed" in capsys.readouterr().err
    assert objects.names(target) == ["a.bin", "config.json", "z.bin"]


def test_answers_are_written_to_a_disk(bucket, tmp_path):
    refuses(lambda: check_file(bucket / "loss.png"), "written to a disk only")
    refuses(lambda: check_place("--out", bucket / "a.jsonl", {}, bucket / "model"), "written to a disk only")
    write_text(bucket / "asked.jsonl", "")
    (tmp_path / "a.jsonl").write_text("")
    check_place("--out", tmp_path / "a.jsonl", {"--prompts": bucket / "asked.jsonl"}, bucket / "model")


# ---- records -------------------------------------------------------------------------------------------------


def test_records_in_a_bucket_are_those_of_a_file(bucket, tmp_path, monkeypatch):
    """Whole lines at any moment, all of them behind a checkpoint, and what came after it forgotten."""
    monkeypatch.setattr(growing_object, "EVERY", 0.2)
    monkeypatch.setattr(growing_object, "_SHARE", 0)
    texts = []
    for path in (tmp_path / "metrics.jsonl", bucket / "metrics.jsonl"):
        lines = JsonLines(path, 0)
        for step in range(1, 4):
            lines.write({"step": step, "loss": 1 / step, "nan": float("nan")})
        lines.settle()
        assert [r["step"] for r in read_lines(path)] == [1, 2, 3]
        lines.write({"step": 4})
        for _ in range(100):
            if len(read_lines(path)) == 4:  # by itself, soon
                break
            time.sleep(0.05)
        assert len(read_lines(path)) == 4
        lines.close()
        again = JsonLines(path, 2)
        assert [r["step"] for r in read_lines(path)] == [1, 2]
        again.write({"step": 3, "again": True})
        again.close()
        texts.append(path.read_text(encoding="utf-8"))
    assert texts[0] == texts[1]
    assert json.loads(texts[1].splitlines()[-1]) == {"step": 3, "again": True}


# ---- the lock ------------------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch):
    """Holders write every 0.2 s, and are waited for for 1 s."""
    monkeypatch.setattr(run_lease, "BEAT", 0.2)
    monkeypatch.setattr(run_lease, "PATIENCE", 1.0)


def elsewhere(monkeypatch) -> None:
    """Whoever comes next is on another machine, where process numbers say nothing."""
    monkeypatch.setattr(run_lease, "_system", lambda: "another")


def test_one_run_at_a_time_in_a_bucket(bucket, soon, monkeypatch):
    folder = bucket / "run"
    write_text(folder / "config.json", "{}")
    with only_run_in(folder):
        held = json.loads((folder / ".lock").read_text())
        assert held["process"] == os.getpid()
        refuses(lambda: only_run_in(folder).__enter__(), f"{folder} is in use by another run (process {os.getpid()} on")
        with monkeypatch.context() as patch:
            elsewhere(patch)
            refuses(lambda: only_run_in(folder, "project.log_dir").__enter__(), "in use", "another project.log_dir")
    assert not (folder / ".lock").exists()
    with only_run_in(folder):
        pass


def between(monkeypatch, name: str, change) -> None:
    """Once, the object changes after it was found and before it is read."""
    from google.cloud.storage import Blob

    read, left = getattr(Blob, name), [change]

    def changed_first(blob, *given, **options):
        if left:
            left.pop()()
        return read(blob, *given, **options)

    monkeypatch.setattr(Blob, name, changed_first)


def test_a_lock_may_be_written_anew_while_it_is_looked_at(bucket, soon, monkeypatch):
    path = bucket / "run" / ".lock"
    holder = run_lease.Lease(path, "project.output_dir")
    with monkeypatch.context() as patch:
        between(patch, "download_as_bytes", lambda: time.sleep(0.5))
        refuses(lambda: run_lease.Lease(path, "project.output_dir"), "in use by another run")
    between(monkeypatch, "download_as_bytes", holder.free)
    run_lease.Lease(path, "project.output_dir").free()


def test_what_is_written_anew_while_it_is_copied_is_copied_as_it_is_then(bucket, monkeypatch):
    path = bucket / "run" / "metrics.jsonl"
    for name in ("metrics.jsonl", "gone.json"):
        write_text(path.with_name(name), "old")
    with monkeypatch.context() as patch:
        between(patch, "download_to_filename", path.with_name("gone.json").unlink)
        copied = objects.local_copy(path.parent)
    assert [file.name for file in copied.iterdir()] == ["metrics.jsonl"]
    write_text(path, "newer")
    between(monkeypatch, "download_to_filename", lambda: write_text(path, "newest"))
    assert (objects.local_copy(path.parent) / "metrics.jsonl").read_text() == "newest"


def test_a_lock_whose_holder_is_gone(bucket, soon, monkeypatch, capsys):
    """On this machine it is taken at once; of another's nothing is known until it is old."""
    path = bucket / "run" / ".lock"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=30)
    gone = {"id": "x", "process": ended.pid, "host": "there", "system": run_lease._system(), "began": "1"}
    for holder, waits in ((gone, False), ({**gone, "process": os.getpid()}, False), ({**gone, "system": None}, True)):
        write_text(path, json.dumps(holder))
        began = time.monotonic()
        lease = run_lease.Lease(path, "project.output_dir")
        assert (time.monotonic() - began > 1) == waits
        assert ("looking for up to 1 s" in capsys.readouterr().err) == waits
        assert json.loads(path.read_text())["process"] == os.getpid()
        lease.free()
    write_text(path, "what is this")
    run_lease.Lease(path, "project.output_dir").free()
    assert not path.exists()


def test_of_two_that_come_at_once_one_holds_the_lock(bucket, soon):
    path, held, refused = bucket / "run" / ".lock", [], []

    def come() -> None:
        try:
            held.append(run_lease.Lease(path, "project.output_dir"))
        except q.InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 3)
    held[0].free()


@pytest.mark.slow
def test_who_has_lost_the_lock_writes_nothing_more(bucket, soon):
    """A run that was stopped for longer than it is waited for."""
    code = f"""
import time
from pathlib import Path
from qwen3llada_jax.io import buckets, objects
from train.runtime import run_lease
run_lease.BEAT = 0.2
run_lease.Lease(buckets.place("{bucket}/run/.lock"), "project.output_dir")
print("held", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    write_text(bucket / "run" / ".lock", json.dumps({"id": "another"}))
    assert process.wait(timeout=30) == 2
    assert f"{bucket}/run: another run has taken the folder" in process.communicate()[1]
    assert json.loads((bucket / "run" / ".lock").read_text()) == {"id": "another"}


# ---- runs ----------------------------------------------------------------------------------------------------


def state_of(run) -> dict[str, bytes]:
    """Every array of all checkpoints, moments and averages included."""
    found = {}
    for step in (run / "checkpoints").iterdir():
        for item in ("params", "ema", "opt"):
            handler = stored_params.params_handler()
            tree = ocp.Checkpointer(handler).restore(buckets.absolute(step / item))
            flat = ocp.tree.to_flat_dict(tree, sep=".")
            found |= {f"{step.name}.{item}.{k}": np.asarray(v).tobytes() for k, v in flat.items()}
    return found


def lines_of(path) -> list[dict]:
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in read_lines(path)]


@pytest.fixture(scope="module")
def on_a_disk(start, tmp_path_factory):
    """The run that those in buckets are to equal."""
    out = tmp_path_factory.mktemp("disk") / "run"
    run(start, out, **WHOLE)
    return out


def assert_same_runs(disk: Path, stored) -> None:
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert lines_of(stored / name) == lines_of(disk / name)
        assert lines_of(stored / name)
    ours, theirs = state_of(stored), state_of(disk)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    written = {str(file.relative_to(disk)) for file in disk.rglob("*") if file.is_file()} - {".lock"}
    written = {f"{name.rpartition('/d/')[0]}/d/*" if "/d/" in name else name for name in written}
    in_steps = {name for name in lying_in(stored) if name.startswith("checkpoints/")}
    assert set(lying_in(stored)) - in_steps == {name for name in written if not name.startswith("checkpoints/")}
    assert in_steps - written <= {f"checkpoints/{s.name}/{c}" for s in (disk / "checkpoints").iterdir()
                                  for c in ("commit_success.txt", "meta/commit_success.txt",
                                            "metrics/commit_success.txt")}  # fmt: skip


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_on_a_disk(start, on_a_disk, bucket, monkeypatch, capsys, tmp_path):
    """Its model and its data in the bucket, too; it fails on the way, and is gone on with by the same command."""
    put(start, bucket / "start")
    text, out = bucket / "start" / "text.txt", bucket / "run"
    there = {"model.base_model_path": bucket / "start", "dataset.name": text, "evaluation.eval_name": text}
    updates = []

    def fail_at_the_fifth(manager) -> None:
        updates.append(None)
        if len(updates) == 5:
            manager.wait_until_finished()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("train.loop.checkpoints.check_written", fail_at_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            run(start, out, **WHOLE, **there)
    assert not (out / ".lock").exists()
    assert [record["step"] for record in read_lines(out / "metrics.jsonl")][-1] == 4
    # What a process that was killed leaves: half a checkpoint, its lock, lines of what is computed again.
    put(on_a_disk / "checkpoints" / "6" / "opt", out / "checkpoints" / "5" / "opt")
    gone = {"id": "x", "process": 0, "host": "here", "system": run_lease._system(), "began": "1"}
    write_text(out / ".lock", json.dumps(gone))
    write_text(out / "metrics.jsonl", (out / "metrics.jsonl").read_text() + '{"step": 5, "loss": 9.0}\n{"step"')
    assert str(model_folder.params_item(out)) == f"{out}/checkpoints/4/ema"
    run(start, out, **WHOLE, **there)
    said = capsys.readouterr()
    assert f"going on from update 4 of {out}" in said.err
    assert f"{out}: 6 updates; sample from it with:" in said.out
    assert_same_runs(on_a_disk, out)
    assert_same(params_of(out), params_of(on_a_disk))
    run(start, out, **WHOLE, **there)
    assert f"{out}: already at update 6 of 6" in capsys.readouterr().out
    # Who reads runs reads these.
    found = report.read_run(out, "run")
    assert [record["step"] for record in found.eval_rows] == [2, 3, 4, 6]
    to_hf.export(out, tmp_path / "hf")
    assert "eval_loss (after 6 updates)" in (tmp_path / "hf" / "README.md").read_text()
    assert_same(params_of(tmp_path / "hf"), params_of(on_a_disk))


@pytest.mark.slow
@pytest.mark.soak
def test_a_damaged_checkpoint_in_a_bucket_is_set_aside(start, bucket, capsys):
    more = {"training.max_steps": 4, "optim.scheduler": "constant", "training.warmup_ratio": 0,
            "evaluation.do_eval_loss": False}  # fmt: skip
    out = bucket / "run"
    whole = run(start, out, **more)
    largest = max(objects.blobs(out / "checkpoints" / "4" / "params"), key=lambda blob: blob.size)
    largest.upload_from_string(b"\0" * 64)
    again = run(start, out, **more)
    assert "damaged" in capsys.readouterr().err
    assert_same(whole, again)
    assert objects.names(out / "checkpoints") == ["2", "4", "4.damaged"]


def test_a_run_whose_bucket_is_gone_was_moved(bucket, tmp_path, monkeypatch):
    """The folder that its run.json names need not be there any more, nor what it takes to see that."""
    where = str(bucket / "run")
    for folder in (bucket / "run", tmp_path / "run"):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "run.json", json.dumps({"id": "x", "output_dir": where, "log_dir": where}))
        write_text(folder / "checkpoints" / "1" / "x", "") if buckets.is_bucket(folder) else None
    (tmp_path / "run" / "checkpoints").mkdir()
    assert check_owner(tmp_path / "run", tmp_path / "run").id != "x"  # a copy: the run is still there
    objects.remove(bucket / "run")
    assert check_owner(tmp_path / "run", tmp_path / "run").id == "x"
    monkeypatch.setattr(buckets, "place", refuse_to_say)
    assert check_owner(tmp_path / "run", tmp_path / "run").id == "x"


def refuse_to_say(path):
    if buckets.is_bucket(path):
        raise q.InputError("no such bucket")
    return Path(path)


@pytest.mark.slow
@pytest.mark.soak
def test_traces_and_tensorboard_go_to_the_bucket(start, bucket, monkeypatch):
    # It writes once more when this process ends, when there is no bucket any more.
    monkeypatch.setattr("tensorboardX.record_writer.GCSRecordWriter.__del__", lambda _: None)
    out = bucket / "run"
    run(start, out, **{"project.profile": 1, "evaluation.tensorboard": True, "training.max_steps": 4})
    found = [name for name in lying_in(out) if name.startswith(("tensorboard/", "profile/"))]
    assert any(name.startswith("tensorboard/events.out") for name in found), found
    assert any(name.startswith("profile/plugins/profile/") for name in found), found


@pytest.mark.slow
def test_a_second_run_in_a_bucket_is_refused(start, bucket):
    flags = [f"--{k}={v}" for k, v in settings(start, bucket / "run")]
    write_text(bucket / "run" / "x", "")
    with only_run_in(bucket / "run"):
        done = run_program("train.run", *flags, check=None)
    assert_one_line_error(done, f"{bucket}/run is in use by another run (process {os.getpid()} on")
    assert objects.names(bucket / "run") == ["x"]


@pytest.mark.slow
def test_programs_refuse_buckets_in_one_line(start, emulator):
    flags = [f"--{k}={v}" for k, v in settings(start, "gs://nobodys/run")]
    assert_one_line_error(run_program("train.run", *flags, check=None), "gs://nobodys: no such bucket; make it")
    done = run_program("sample.generate", "--model", "gs://locked/model", "--prompt", "a", check=None)
    assert_one_line_error(done, "gs://locked: no credentials that it takes; run gcloud auth")


@pytest.mark.slow
def test_models_go_to_a_bucket_and_come_from_it(start, bucket, tmp_path):
    """Imported from one to another, opened, sampled from, exported; saved from Python."""
    put(start, bucket / "hf")
    for src, dst in ((start, tmp_path / "model"), (bucket / "hf", bucket / "model")):
        from_hf.convert(str(src), dst, dtype=None, mask_token_id="auto")
    assert_same(params_of(bucket / "model"), params_of(tmp_path / "model"))
    assert_same(params_of(bucket / "hf"), params_of(tmp_path / "model"))
    here, there = q.load(tmp_path / "model"), q.load(f"{bucket}/model")
    setting = q.SamplerConfig(gen_length=4, steps=4)
    assert there.config == here.config
    assert q.generate(there, [[1, 2]], setting).answers() == q.generate(here, [[1, 2]], setting).answers()
    q.save(there, f"{bucket}/saved", tokenizer=f"{bucket}/hf")
    assert_same(params_of(bucket / "saved"), params_of(tmp_path / "model"))
    refuses(lambda: from_hf.convert(f"{bucket}/model", bucket, dtype=None, mask_token_id="auto"), "its own source")
    refuses(lambda: q.load(f"{bucket}/absent"), f"{bucket}/absent: no such folder")


@pytest.mark.slow
@pytest.mark.soak
def test_texts_are_those_of_the_same_model_on_a_disk(start, bucket, tmp_path):
    """With what is asked in the bucket, too."""
    put(start, bucket / "hf")
    write_text(bucket / "prompts.jsonl", '{"prompt": "ROMEO:"}\n')
    for where in (tmp_path, bucket):
        run_program("converters.from_hf", "--src", bucket / "hf", "--dst", where / "model", "--mask-token-id", "auto")
    command = ["sample.generate", "--prompts", bucket / "prompts.jsonl", "--gen-length", "4", "--steps", "4"]
    texts = [run_program(*command, "--model", where / "model").stdout for where in (tmp_path, bucket)]
    assert texts[0] == texts[1]
    assert texts[0].strip()


@pytest.mark.slow
@pytest.mark.soak
def test_two_processes_train_in_one_bucket(start, bucket, tmp_path):
    """Two processes of four devices each: each saves its own arrays there; they go on from there."""
    more = {
        "training.batch_size": 16, "mesh.fsdp": 8, "mesh.data": 1, "training.max_steps": 6,
        "optim.scheduler": "constant", "training.warmup_ratio": 0, "training.ema_decay": 0.9,
        "evaluation.prompts": '["O"]', "evaluation.max_new_tokens": 4, "evaluation.sampling_steps": 2,
    }  # fmt: skip
    for out, stops in ((tmp_path / "run", (6,)), (bucket / "run", (4, 6))):
        for steps in stops:
            flags = settings(start, out, **{**more, "training.max_steps": steps})
            train_in_two_processes([f"--{k}={v}" for k, v in flags])
    assert {name for name in lying_in(bucket / "run") if "ocdbt.process_1/" in name}
    losses = [[r["loss"] for r in read_lines(out / "metrics.jsonl") if "loss" in r] for out in (tmp_path / "run", out)]
    assert losses[0] == losses[1]
    assert len(losses[1]) == 6
    assert_same(params_of(tmp_path / "run"), params_of(out))
    assert not (out / ".lock").exists()


@pytest.mark.slow
@pytest.mark.soak
def test_ten_kills_in_a_bucket(bucket, tmp_path):
    """Half of them inside a save; bitwise as undisturbed, and nothing more lies there than of the undisturbed run."""
    result = interruptions.compare(tmp_path, kills=10, stops=1, updates=100, seed=3, bucket=str(bucket))
    assert len(result["interruptions"]) == 11
    assert sum(one["half_saves"] for one in result["interruptions"]) > 0
    assert interruptions.same(result), result
    whole, disturbed = (set(lying_in(bucket / name)) for name in ("whole", "disturbed"))
    assert whole == disturbed
