"""Which local files make up a split: those that are named, those of a folder, and what else lies there."""

import hashlib
import os
import re
from pathlib import Path

from qwen3llada_jax.errors import InputError, listed
from qwen3llada_jax.io.readers import SUFFIXES

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SAMPLE = 1 << 16  # bytes at either end of a file that tell it from another
# A file's stem that begins or ends with the word, its number in a row of files aside: test-00001-of-00003, my_train.
_SAYS = r"^{0}([-_. ]?\d.*)?$|^{0}[-_.](?=[a-z]*[-_.]?\d*$)|[-_. ]{0}([-_. ]?\d+([-_. ]of[-_. ]\d+)?)?$"
_DEFAULTS = {"dataset.split": "train", "evaluation.eval_split": "validation"}
_NOT_DATA = re.compile(
    r"(licen[cs]e|copying|notice|readme|changelog|author|contributor|requirement|citation|terms|(sha\d+|md5|check)sum)s?"
    r"([-_. ]|$)|(notes?|logs?|todo|dataset_infos?)\.",
    re.IGNORECASE,
)


def files(name: str, split: str, split_key: str) -> tuple[list[str], list[str]]:
    """(files of the split, what else lies in the folder and why it is left out)."""
    path = Path(name)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{name}: unknown kind of file; use {', '.join(SUFFIXES)}")
        if path.stat().st_size == 0:
            raise InputError(f"{name}: the file is empty")
        check_only_split(name, split, split_key, _split_in(name, Path(path.name)))
        return [name], []
    known, left_out, seen = [], [], set[str]()
    for file in sorted(walk(path), key=os.path.islink):
        inside = file.relative_to(path)
        if any(part.startswith(".") for part in inside.parts):
            left_out.append(f"{inside} (hidden)")
        elif file.suffix.lower() not in SUFFIXES:
            left_out.append(str(inside))
        elif _NOT_DATA.match(inside.name):
            left_out.append(f"{inside} (by its name no data)")
        elif (why := _why_unread(file, seen)) is not None:
            left_out.append(f"{inside} ({why})")
        else:
            known.append(inside)
    known.sort()
    if not known:
        rest = f"; left out: {listed(left_out, room=160)}" if left_out else ""
        raise InputError(f"{name}: holds no file of a known kind ({', '.join(SUFFIXES)}){rest}")
    kinds = sorted({file.suffix.lower() for file in known})
    if len(kinds) > 1 and kinds != [".json", ".jsonl"]:
        raise InputError(f"{name}: holds files of several kinds ({', '.join(kinds)}); keep one kind, or name one file")
    splits = {file: _split_in(name, file) for file in known}
    named = {split for split in splits.values() if split}
    if not named:  # nothing says a split: all are the training data
        if split != "train":
            raise InputError(f"{name}: has no split {split!r}; set {split_key} to one of train")
        return [str(path / file) for file in known], left_out
    used = [file for file in known if splits[file] == split]
    if not used:
        raise InputError(f"{name}: has no split {split!r}; set {split_key} to one of {listed(sorted(named))}")
    left_out = [f"{file} (its name says no split)" for file in known if splits[file] is None] + left_out
    others = [f"{file} (split {splits[file]})" for file in known if splits[file] not in (None, split)]
    return [str(path / file) for file in used], others + left_out


def walk(folder: Path) -> list[Path]:
    """Every file under a folder, in order, through links too but once."""
    found, seen = [], set()
    for place, inside, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        found += [Path(place) / file for file in files]
    return sorted(found)


def _why_unread(file: Path, seen: set[str]) -> str | None:
    """Why what a folder lists is no file to read; None: it is one, and `seen` from now on."""
    real = os.path.realpath(file)
    if not file.exists():
        return "a link to nothing"
    if not file.is_file():
        return "no file"
    if real in seen:
        return "a link to what is read already"
    seen.add(real)
    return None


def is_saved(name: str) -> bool:
    path = Path(name)
    return path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file())


def is_ours(name: str) -> bool:
    """Whether it is a file, or a folder whose files we choose: one without a card that says which files it means."""
    path = Path(name)
    if path.is_file():
        return True
    if path.is_dir():
        return not _has_card(path)
    if path.suffix.lower() in SUFFIXES or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise InputError(f"{name}: no such file or folder")
    return False


def _has_card(folder: Path) -> bool:
    card = folder / "README.md"
    if not card.is_file():
        return False
    text = card.read_text(encoding="utf-8", errors="replace")
    front = text.split("---")[1] if text.startswith("---") and text.count("---") > 1 else ""
    return re.search(r"^(configs|dataset_info)\s*:", front, re.MULTILINE) is not None


def beside(name: str, used: list[str]) -> list[str]:
    """What lies in a folder beside these of its files."""
    read = {os.path.realpath(file) for file in used}
    path = Path(name)
    return [str(file.relative_to(path)) for file in walk(path) if os.path.realpath(file) not in read]


def tag(file: str, *, dated: bool = False) -> str:
    """Tells a data file from another: a hub file by its address, which names the commit; a local one by its ends."""
    path = Path(file)
    if not path.is_file():
        return file
    with path.open("rb") as data:
        status = os.fstat(data.fileno())
        size = status.st_size
        head = data.read(_SAMPLE)
        data.seek(max(0, size - _SAMPLE))
        ends = hashlib.sha256(b"%d\0%s\0%s" % (size, head, data.read(_SAMPLE))).hexdigest()
    # The name decides how a file is read, and rows are shown with their path: cached ones keep the one they had.
    return f"{path.suffix}{ends}" + (f" {status.st_mtime_ns} {path.absolute()}" if dated else "")


def check_only_split(name: str, split: str, split_key: str, named: str | None) -> None:
    """What has a single split may be called by that name, by the one that its file's name says, or not at all."""
    if split not in ("train", named, _DEFAULTS.get(split_key)):
        raise InputError(
            f"{name}: has no split {split!r}: it is not divided; leave {split_key} out, or name a part of it, as in "
            "train[:90%]"
        )


def _split_in(name: str, path: Path) -> str | None:
    """The split that a file's path says it belongs to; None: none.

    Raises:
        InputError: it says several.
    """
    folders, stem = [part.lower() for part in path.parts[:-1]], path.stem.lower()
    said = sorted(
        split
        for split, known in _SPLITS.items()
        if set(folders) & set(known) or any(re.search(_SAYS.format(word), stem) for word in known)
    )
    if len(said) > 1:
        raise InputError(f"{name}: {path} names the splits {' and '.join(said)}; give it a name of one of them")
    return said[0] if said else None
