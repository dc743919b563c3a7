"""A folder of safetensors: which tensors it holds, checked, and their bytes, read straight into place.

The safetensors library validates every file. The bytes are then read with `preadv` into the array they
belong to, because its own readers would copy each tensor twice on the way into a stack of layers.
"""

import json
import mmap
import os
import re
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from qwen3llada_jax.errors import InputError, brief, listed, shown
from qwen3llada_jax.io import buckets, objects

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
INDEX = "model.safetensors.index.json"
GGUF = "GGUF weights are not read; take the model's safetensors, or save them with transformers (gguf_file=…)"
_CAST = 1 << 20  # bytes cast at once: they stay in the processor's cache, and little memory is held for them
_PIECE = 1 << 24  # bytes read at once: small enough that two threads share a large tensor evenly


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor's bytes lie."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a Hugging Face folder, single file or sharded, by name; of one in a bucket, of its local copy.

    Raises:
        InputError: no safetensors, an absent shard, a truncated or corrupt file, a dtype that is no float.
    """
    folder = objects.local_copy(folder, deep=False) if buckets.is_bucket(folder) else Path(folder)
    tensors: dict[str, StoredTensor] = {}
    twice: list[str] = []
    for file in _weight_files(folder):
        found = _header(file)
        twice += sorted(set(found) & set(tensors))
        tensors |= found
    if twice:
        raise InputError(f"{folder}: tensors that several of its files hold: {listed(twice)}; remove the wrong files")
    index = folder / INDEX
    if index.is_file() and not (folder / "model.safetensors").is_file():
        shards = _weight_map(index)
        absent = sorted(
            name for name, shard in shards.items() if name not in tensors or tensors[name].file.name != shard
        )
        if absent:
            raise InputError(f"{index}: names tensors that its shards do not hold: {listed(absent)}; download it again")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor → shard, a file's name in the same folder."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except OSError as error:
        raise InputError(f"{index}: cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = brief(error) if isinstance(error, ValueError) else "no weight_map in it"
        raise InputError(f"{index}: not a safetensors index ({reason}); download it again") from error
    if not isinstance(found, dict) or not found:
        raise InputError(f"{index}: weight_map must name the shard of each tensor, not {shown(found)}")
    for name, shard in found.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\0]{1,240}\.safetensors", shard):
            raise InputError(
                f"{index}: says that {shown(name)} lies in {shown(shard)}, which is no file of this folder; download "
                "it again"
            )
    return found


def _weight_files(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / INDEX).is_file():
        files = sorted({folder / name for name in _weight_map(folder / INDEX).values()})
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise InputError(f"{folder / INDEX}: names shards that are not there: {listed(absent)}; download them")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        old = "; it holds PyTorch .bin files: save them as safetensors first" if list(folder.glob("*.bin")) else ""
        raise InputError(
            f"{folder}: no .safetensors files in it{old}{f'; {GGUF}' if any(folder.glob('*.gguf')) else ''}"
        )
    return files


def _header(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="numpy"):
            pass  # opening checks the header against the file's length
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: truncated or corrupt safetensors ({brief(error)}); download it again") from error
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    strange = {name: entry["dtype"] for name, entry in header.items() if entry["dtype"] not in DTYPES}
    if strange:
        some = listed(f"{name} ({dtype})" for name, dtype in sorted(strange.items()))
        raise InputError(f"{file}: cannot import tensors of these dtypes: {some}; use an unquantized checkpoint")
    return {
        name: StoredTensor(file, DTYPES[e["dtype"]], tuple(e["shape"]), 8 + size + e["data_offsets"][0])
        for name, e in header.items()
    }


def mapped(tensor: StoredTensor) -> np.ndarray:
    """A tensor's bytes where they lie in the file, read when they are first used.

    What is written there stays in this process. A file that is replaced stays whole under the mapping; one that is cut
    short in place takes the process down (SIGBUS).

    Raises:
        InputError: a file that ends early or cannot be read.
    """
    size = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
    try:
        with tensor.file.open("rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise InputError(f"{tensor.file}: cannot be read ({error.strerror})") from error
    if len(whole) < tensor.offset + size:
        raise InputError(f"{tensor.file}: ends early; download it again")
    return np.frombuffer(whole, np.uint8, size, tensor.offset).view(tensor.dtype).reshape(tensor.shape)


class Reader:
    """Reads tensors of open files with two threads."""

    def __init__(self, pool: ThreadPoolExecutor, descriptors: dict[Path, int]):
        self._pool, self._descriptors = pool, descriptors

    def fill(self, targets: Iterable[tuple[StoredTensor, np.ndarray]]) -> None:
        """Read each tensor into its contiguous array of the same size, casting if the dtypes differ.

        Raises:
            InputError: a file that ends early or cannot be read.
        """
        pieces = (piece for tensor, target in targets for piece in _pieces(tensor, target.reshape(-1), _PIECE))
        list(self._pool.map(lambda piece: self._fill_piece(*piece), pieces))

    def _fill_piece(self, tensor: StoredTensor, flat: np.ndarray) -> None:
        if tensor.dtype == flat.dtype:
            self._read(tensor, flat)
            return
        raw = np.empty(min(flat.size, _CAST // tensor.dtype.itemsize), tensor.dtype)
        for part, target in _pieces(tensor, flat, _CAST):
            self._read(part, raw[: target.size])
            with np.errstate(over="ignore"):  # a value too large for the asked dtype becomes inf, as in PyTorch
                np.copyto(target, raw[: target.size], casting="unsafe")

    def _read(self, tensor: StoredTensor, flat: np.ndarray) -> None:
        view, at = flat.view(np.uint8).data, tensor.offset
        while view:
            try:
                count = os.preadv(self._descriptors[tensor.file], [view], at)
            except OSError as error:
                raise InputError(f"{tensor.file}: cannot be read ({error.strerror})") from error
            if count == 0:
                raise InputError(f"{tensor.file}: ends early; download it again")
            view, at = view[count:], at + count


def _pieces(tensor: StoredTensor, flat: np.ndarray, size: int) -> Iterator[tuple[StoredTensor, np.ndarray]]:
    """A tensor and where it goes, `size` bytes at a time."""
    step = size // tensor.dtype.itemsize
    for start in range(0, flat.size, step):
        part = flat[start : start + step]
        yield StoredTensor(tensor.file, tensor.dtype, part.shape, tensor.offset + start * tensor.dtype.itemsize), part


@contextmanager
def reader(files: Iterable[Path]) -> Iterator[Reader]:
    """A `Reader` of these files, which are closed at the end."""
    descriptors: dict[Path, int] = {}
    try:
        for file in sorted(set(files)):
            descriptors[file] = os.open(file, os.O_RDONLY)
        with ThreadPoolExecutor(2) as pool:
            yield Reader(pool, descriptors)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)
