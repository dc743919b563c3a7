"""Where texts come from: local files, folders and hub datasets, loaded whole or read as a stream."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from qwen3llada_jax.command_line import nearest
from qwen3llada_jax.errors import InputError

_BUILDERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
_SAMPLE = 1 << 16  # bytes at either end of a streamed file that tell it from another


class Streamed(NamedTuple):
    """A split that is read as it comes, and what tells it from another one."""

    dataset: Any
    identity: str


def load(name: str, config: str | None, split: str, *, split_key: str = "dataset.split") -> Any:
    """A split of a local file, a folder (of files, or from `save_to_disk`) or a hub dataset.

    Raises:
        InputError: nothing of that name, an unknown kind of file or split, or no rows.
    """
    import datasets

    _silence()
    with _readable(name):
        if _is_saved(name):
            loaded = datasets.load_from_disk(name)
            dataset = _pick(name, loaded, split, split_key) if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            where, options = _where(name, config)
            # A single file has a single split, whatever it is called.
            dataset = _pick(name, datasets.load_dataset(where, **options), _split_of(name, split), split_key)
    if len(dataset) == 0:
        raise InputError(f"{name}: the dataset is empty")
    return dataset


def stream(name: str, config: str | None, split: str, *, split_key: str = "dataset.split") -> Streamed:
    """The same, read row by row without downloading or converting it first.

    Raises:
        InputError: as in `load`.
    """
    import datasets

    _silence()
    with _readable(name):
        if _is_saved(name):
            loaded = datasets.load_from_disk(name)
            whole = _pick(name, loaded, split, split_key) if isinstance(loaded, datasets.DatasetDict) else loaded
            dataset = whole.to_iterable_dataset()
            files = [file["filename"] for file in whole.cache_files]
        else:
            where, options = _where(name, config)
            builder = datasets.load_dataset_builder(where, **options)
            split = _split_of(name, split)
            dataset = _pick(name, builder.as_streaming_dataset(), split, split_key)
            files = list((builder.config.data_files or {}).get(split, ()))
        if next(iter(dataset), None) is None:
            raise InputError(f"{name}: the dataset is empty")
    place = "" if Path(name).exists() else name  # local files are known by what they hold, wherever they lie
    return Streamed(dataset, "\0".join([place, str(config), split, *map(_tag, files)]))


def has_splits(name: str | None) -> bool:
    """False for a single file or a saved single dataset, which `split` cannot choose from."""
    path = Path(name or "")
    return not path.is_file() and not (path / "dataset_info.json").is_file()


def columns_of(dataset: Any) -> dict[str, bool]:
    """Name of each column, and whether it holds text; of a stream without declared types, by its first row."""
    if dataset.features is not None:
        return {n: getattr(f, "dtype", None) in ("string", "large_string") for n, f in dataset.features.items()}
    return {n: isinstance(value, str) for n, value in next(iter(dataset)).items()}


def text_column(columns: dict[str, bool], wanted: str | None, name: str) -> str:
    """The column that holds the text: the one named, `text`, or the only one of strings.

    Raises:
        InputError: no such column, or several that could be meant.
    """
    if wanted is not None:
        if wanted not in columns:
            raise InputError(
                f"{name}: has no column {wanted!r} (it has {', '.join(columns)})" + nearest(wanted, list(columns))
            )
        return wanted
    if "text" in columns:
        return "text"
    strings = [column for column, is_text in columns.items() if is_text]
    if len(strings) == 1:
        return strings[0]
    raise InputError(f"{name}: which column is the text? set dataset.text_field to one of {', '.join(columns)}")


def _silence() -> None:
    """No progress bars and no log of what is about to be raised: it reaches people as one line."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the library raises its own zoo for unreadable files and unknown names
        raise unreadable(name, error) from error


def unreadable(name: str, error: Exception) -> InputError:
    """What the datasets library stumbled over, in one line."""
    if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
        return InputError(f"{name}: the dataset is empty")
    reason = " ".join(str(error.__cause__ or error).split())[:200]
    return InputError(f"{name}: cannot be read as a dataset ({type(error).__name__}: {reason})")


def _where(name: str, config: str | None) -> tuple[str, dict[str, Any]]:
    """What to ask the datasets library for: a builder or dataset, and options."""
    path = Path(name)
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise InputError(f"{name}: unknown kind of file; use {', '.join(_BUILDERS)}")
        if path.stat().st_size == 0:
            raise InputError(f"{name}: the file is empty")
        return _BUILDERS[path.suffix], {"data_files": str(path), **_whole_texts(_BUILDERS[path.suffix])}
    if path.is_dir() and not (path / "README.md").is_file():  # a dataset card may say itself which files it means
        inside = [p.relative_to(path) for p in path.rglob("*") if p.is_file()]
        known = [p for p in inside if p.suffix in _BUILDERS and not any(part.startswith(".") for part in p.parts)]
        kinds = {_BUILDERS[p.suffix] for p in known}
        if not kinds:
            raise InputError(f"{name}: holds no file of a known kind ({', '.join(_BUILDERS)})")
        if len(kinds) > 1:
            suffixes = ", ".join(sorted({p.suffix for p in known}))
            raise InputError(f"{name}: holds files of several kinds ({suffixes}); keep one kind, or name one file")
        (kind,) = kinds
        return kind, {"data_dir": str(path), **_whole_texts(kind)}
    if not path.exists() and (name.startswith((".", "/")) or path.suffix in _BUILDERS):
        raise InputError(f"{name}: no such file")
    return name, {"name": config}


def _whole_texts(kind: str) -> dict[str, str]:
    return {"sample_by": "document"} if kind == "text" else {}


def _is_saved(name: str) -> bool:
    path = Path(name)
    return path.is_dir() and ((path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file())


def _split_of(name: str, split: str) -> str:
    return "train" if Path(name).is_file() else split


def _pick(name: str, loaded: Any, split: str, split_key: str) -> Any:
    if split not in loaded:
        raise InputError(f"{name}: has no split {split!r}; set {split_key} to one of {', '.join(loaded)}")
    return loaded[split]


def _tag(file: str) -> str:
    """Tells a data file from another: a hub file by its address, which names the commit; a local one by its ends."""
    path = Path(file)
    if not path.is_file():
        return file
    with path.open("rb") as data:
        size = path.stat().st_size
        head = data.read(_SAMPLE)
        data.seek(max(0, size - _SAMPLE))
        return hashlib.sha256(b"%d\0%s\0%s" % (size, head, data.read(_SAMPLE))).hexdigest()
