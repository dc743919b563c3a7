"""Where rows come from: local files and folders, datasets saved by the `datasets` library, and the hub's.

What is read is found here and said: which files of a folder are, which are left out, which split, and which part of it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen3llada_jax.cli import nearest
from qwen3llada_jax.errors import InputError, brief, listed
from qwen3llada_jax.io.buckets import is_bucket
from qwen3llada_jax.io.objects import on_disk
from qwen3llada_jax.io.readers import FEATURES, SUFFIXES, raw_rows

from . import files as data_files


@dataclass(frozen=True)
class Source:
    """A split, or part of one, whose rows can be read.

    Attributes:
        name: as the configuration has it.
        dataset: of the `datasets` library: rows of any shape as `readers.Raw`, or typed columns.
        is_raw: which of the two.
        files: that are read, where they are local.
        left_out: files of the folder that are not, with the reason.
        split: which one, in words.
        identity: tells what the split holds from anything else, wherever it lies.
        cache_key: the same, with when the files were last changed, and the part of the split.
        rows: [first, end) of the split, where only a part was asked for.
        tags: tells what each of the files holds.
    """

    name: str
    dataset: Any
    is_raw: bool
    split: str
    identity: str
    cache_key: str
    files: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    rows: tuple[tuple[int, int], ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def report(self) -> str:
        """Which files and split are read, in words."""
        said = self.name if len(self.files) < 2 else f"{self.name}: {len(self.files)} files ({_all(self.files)})"
        if self.split:
            said += f", split {self.split}"
        if self.left_out:
            said += f"; files left out: {_all(self.left_out)}"
        return said

    def where(self, number: int, row: Mapping[str, Any] | None = None) -> str:
        """Name a row to people: by its file and line, or its number in the split; `row` spares reading it again."""
        if not self.is_raw:
            return f"{self.name}: row {self._in_split(number)}"
        found = self.dataset[number] if row is None else row
        return f"{found['file']}:{found['line']}"

    def _in_split(self, number: int) -> int:
        """The number that a row has in the whole split."""
        for first, end in self.rows:
            if number < end - first:
                return first + number
            number -= end - first
        return number


def load(name: str, config: str | None, split: str, *, split_key: str = "dataset.split") -> Source:
    """A split of a local file, a folder (of files, or from `save_to_disk`) or a hub dataset; `train[:90%]` is a part.

    What lies in a bucket is copied to this machine first.

    Raises:
        InputError: nothing of that name, an unknown kind of file or split, or no rows.
    """
    import datasets

    if is_bucket(name):
        return replace(load(str(on_disk(name)), config, split, split_key=split_key), name=name)
    _silence()
    base, part = _parted(split, split_key)
    with readable(name):
        if data_files.is_saved(name):
            loaded = datasets.load_from_disk(name)
            whole = _pick(name, loaded, base, split_key) if isinstance(loaded, datasets.DatasetDict) else loaded
            if not isinstance(loaded, datasets.DatasetDict):
                data_files.check_only_split(name, base, split_key, None)
            source = Source(name, whole, False, base, whole._fingerprint, whole._fingerprint)
        else:
            files, left_out = _local_files(name, config, base, split_key)
            if files:
                key = hashlib.sha256("\0".join(data_files.tag(file, dated=True) for file in files).encode()).hexdigest()
                whole = datasets.Dataset.from_generator(
                    raw_rows, features=_features(), gen_kwargs={"files": files}, fingerprint=f"raw-{key[:40]}"
                )
                source = _of_files(name, whole, base, files, left_out, key)
            else:
                whole = _pick(name, datasets.load_dataset(name, name=config), base, split_key)
                source = Source(name, whole, False, base, whole._fingerprint, whole._fingerprint)
        if part is not None:
            source = _sliced(source, part, base, split_key)
    if len(source.dataset) == 0:
        raise InputError(f"{name}: the dataset is empty")
    return source


def stream(name: str, config: str | None, split: str, *, split_key: str = "dataset.split") -> Source:
    """The same, read row by row without downloading or converting it first.

    Raises:
        InputError: as in `load`, or a part of a split, whose length a stream does not know.
    """
    import datasets

    if is_bucket(name):
        return replace(stream(str(on_disk(name)), config, split, split_key=split_key), name=name)
    _silence()
    base, part = _parted(split, split_key)
    if part is not None:
        raise InputError(f"{split_key} {split!r}: a stream cannot be cut into parts; name files, or do not stream")
    with readable(name):
        if data_files.is_saved(name):
            whole = load(name, config, split, split_key=split_key)
            kept = [file["filename"] for file in whole.dataset.cache_files]
            identity = "\0".join([base, *map(data_files.tag, kept)])
            source = Source(name, whole.dataset.to_iterable_dataset(), False, base, identity, identity)
        else:
            files, left_out = _local_files(name, config, base, split_key)
            if files:
                dataset = datasets.IterableDataset.from_generator(
                    raw_rows, features=_features(), gen_kwargs={"files": files}
                )
                source = _of_files(name, dataset, base, files, left_out, "")
            else:
                builder = datasets.load_dataset_builder(name, name=config)
                dataset = _pick(name, builder.as_streaming_dataset(), base, split_key)
                found = [str(file) for file in (builder.config.data_files or {}).get(base, ())]
                identity = "\0".join([name, str(config), base, *map(data_files.tag, found)])
                source = Source(name, dataset, False, base, identity, identity)
        if next(iter(source.dataset), None) is None:
            raise InputError(f"{name}: the dataset is empty")
    return source


def _local_files(name: str, config: str | None, split: str, split_key: str) -> tuple[list[str], list[str]]:
    """(local files of the split, what else lies beside them): none, where the `datasets` library reads by itself."""
    import datasets

    if data_files.is_ours(name):
        return data_files.files(name, split, split_key)
    _check_reachable(name)
    if not Path(name).is_dir():
        return [], []
    # A folder whose card says which files it means: the library reads the card, and the files are read as any others.
    named = datasets.load_dataset_builder(name, name=config).config.data_files or {}
    if split not in named:
        raise InputError(f"{name}: has no split {split!r}; set {split_key} to one of {listed(map(str, named))}")
    files = [str(file) for file in named[split]]
    strange = [file for file in files if not Path(file).is_file() or Path(file).suffix.lower() not in SUFFIXES]
    if strange:
        raise InputError(f"{name}: its card names {listed(strange)}, no file of a known kind ({', '.join(SUFFIXES)})")
    return files, data_files.beside(name, files)


def _features() -> Any:
    import datasets

    return datasets.Features({name: datasets.Value(kind) for name, kind in FEATURES.items()})


def _of_files(name: str, dataset: Any, split: str, files: list[str], left_out: list[str], key: str) -> Source:
    tags = tuple(map(data_files.tag, files))
    shown = split if Path(name).is_dir() else ""
    return Source(name, dataset, True, shown, "\0".join(tags), key, tuple(files), tuple(left_out), tags=tags)


def has_splits(name: str | None) -> bool:
    """False for a single file or a saved single dataset, which `split` cannot choose from."""
    path = on_disk(name or "")
    return not path.is_file() and not (path / "state.json").is_file()


def takes_config(name: str) -> bool:
    """Whether a dataset may have several configurations: the hub's, or a folder whose card says so."""
    name = str(on_disk(name)) if is_bucket(name) else name
    return not data_files.is_saved(name) and not data_files.is_ours(name)


def is_part(split: str) -> bool:
    """Whether a split is a part of one: `train[90%:]`."""
    return "[" in split or "+" in split


def shares_rows(one: Source, other: Source) -> bool:
    """Whether some row stands in both."""
    if one.identity != other.identity:
        return bool(set(one.tags) & set(other.tags))  # of which rows is not known, where a part is asked for
    whole = ((0, 1 << 62),)
    return any(max(a, c) < min(b, d) for a, b in one.rows or whole for c, d in other.rows or whole)


def unreadable(name: str, error: Exception) -> InputError:
    """What the datasets library stumbled over, in one line."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    if isinstance(cause, InputError):
        return cause
    if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
        return InputError(f"{name}: the dataset is empty")
    return InputError(f"{name}: cannot be read as a dataset ({type(cause).__name__}: {brief(cause, 200)})")


# ---- splits ---------------------------------------------------------------------------------------------------


def _parted(split: str, split_key: str) -> tuple[str, str | None]:
    """(the split, the part of it that is asked for: the whole text, or None for all).

    Raises:
        InputError: no such notation, or parts of several splits.
    """
    import datasets

    if not is_part(split):
        return split, None
    try:
        parts = datasets.ReadInstruction.from_spec(split)._relative_instructions
    except (ValueError, AssertionError) as error:
        raise InputError(f"{split_key} {split!r} is no part of a split; write train[:90%] or train[100:]") from error
    names = sorted({part.splitname for part in parts})
    if len(names) > 1:
        raise InputError(f"{split_key} {split!r} joins the splits {' and '.join(names)}; use dataset.mixture for that")
    return names[0], split


def _sliced(source: Source, part: str, base: str, split_key: str) -> Source:
    import datasets

    try:
        found = datasets.ReadInstruction.from_spec(part).to_absolute({base: len(source.dataset)})
    except (ValueError, AssertionError) as error:
        raise InputError(f"{split_key} {part!r}: the split has {len(source.dataset):,} rows ({error})") from error
    rows = tuple((one.from_ or 0, len(source.dataset) if one.to is None else one.to) for one in found)
    for i, (first, end) in enumerate(rows):
        if any(max(first, a) < min(end, b) for a, b in rows[:i]):
            raise InputError(f"{split_key} {part!r} takes some rows twice")
    rows = tuple((first, end) for first, end in rows if first < end)
    if not rows:
        raise InputError(f"{split_key} {part!r} holds none of the {len(source.dataset):,} rows")
    dataset = datasets.concatenate_datasets([source.dataset.select(range(first, end)) for first, end in rows])
    return replace(source, dataset=dataset, rows=rows, split=part, cache_key=f"{source.cache_key}\0{rows}")


def _pick(name: str, loaded: Any, split: str, split_key: str) -> Any:
    if split not in loaded:
        raise InputError(f"{name}: has no split {split!r}; set {split_key} to one of {listed(loaded)}")
    return loaded[split]


# ---- the hub, and the library's manners ------------------------------------------------------------------------


def _check_reachable(name: str) -> None:
    """Find out in seconds whether the hub answers: the library would try, and warn, for half a minute.

    Raises:
        InputError: it does not, and no copy of the dataset is on this disk.
    """
    import datasets
    import huggingface_hub

    if Path(name).exists() or datasets.config.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=10)
    except huggingface_hub.errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise InputError(
            f"{name}: no such file or folder, and the hub gives no dataset of that name (it answers {status}); check "
            "the spelling and your access"
        ) from error
    except (OSError, huggingface_hub.errors.HFValidationError, huggingface_hub.errors.HTTPError) as error:
        cached = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
        if not cached.is_dir():
            raise InputError(
                f"{name}: no such file or folder, and the hub cannot be reached ({type(error).__name__}); check the "
                "spelling and the network"
            ) from error
        datasets.config.HF_HUB_OFFLINE = True  # the copy on this disk, without asking again


def _silence() -> None:
    """No progress bars and no log of what is about to be raised: it reaches people as one line."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn whatever the datasets library raises about it into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the library raises its own zoo for unreadable files and unknown names
        raise unreadable(name, error) from error


def text_column(columns: dict[str, bool], wanted: str | None, name: str) -> str:
    """The column that holds the text: the one named, `text`, or the only one of strings.

    Args:
        columns: name of each, and whether it holds text.

    Raises:
        InputError: no such column, or several that could be meant.
    """
    if wanted is not None:
        if wanted not in columns:
            near = nearest(wanted, list(columns))
            raise InputError(f"{name}: has no column {wanted!r} (it has {listed(columns)}){near}")
        return wanted
    if "text" in columns:
        return "text"
    strings = [column for column, is_text in columns.items() if is_text]
    if len(strings) == 1:
        return strings[0]
    raise InputError(f"{name}: which column is the text? set dataset.text_field to one of {listed(columns)}")


def _all(names: tuple[str, ...]) -> str:
    """Names for the report of a run, which may be long."""
    return listed(names, most=40, room=2000)
