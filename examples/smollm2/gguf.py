"""Reading a GGUF file: its settings, and its tensors as float32; with numpy alone.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Of its kinds of tensors these three are read:

| kind | a block      | bytes                                        | value            |
|------|--------------|----------------------------------------------|------------------|
| F32  | one number   | float32                                      | itself           |
| Q8_0 | 32 numbers   | float16 d, 32 × int8 q                       | d · q            |
| Q4_1 | 32 numbers   | float16 d, float16 m, 16 bytes of two q each | d · q + m        |

The low halves of Q4_1's bytes are its first 16 numbers, the high halves the others.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada_jax.errors import InputError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)])
_Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", 32)])


class _Cursor:
    """A place in a file's bytes, which moves on as values are taken."""

    def __init__(self, data: np.ndarray):
        self.data, self.at = data, 0

    def take(self, kind: int) -> Any:
        if kind == _TEXT:
            size = self.take(10)
            self.at += size
            return self.data[self.at - size : self.at].tobytes().decode()
        if kind == _LIST:
            of, count = self.take(4), self.take(10)
            return [self.take(of) for _ in range(count)]
        layout = struct.Struct("<" + _SCALARS[kind])
        self.at += layout.size
        return layout.unpack(self.data[self.at - layout.size : self.at])[0]


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(settings by name, tensors by name, float32, their last axis the one that lies together).

    Raises:
        InputError: another kind of file, or of tensor.
    """
    data = np.memmap(path, np.uint8, "r")
    cursor = _Cursor(data)
    if data[:4].tobytes() != b"GGUF" or struct.unpack("<I", data[4:8])[0] not in (2, 3):
        raise InputError(f"{path}: is no GGUF file of version 2 or 3; download it again")
    cursor.at = 8
    tensors, settings = cursor.take(10), cursor.take(10)
    said = {cursor.take(_TEXT): cursor.take(cursor.take(4)) for _ in range(settings)}
    index = []
    for _ in range(tensors):
        name, axes = cursor.take(_TEXT), cursor.take(4)
        shape = tuple(cursor.take(10) for _ in range(axes))[::-1]
        index.append((name, shape, cursor.take(4), cursor.take(10)))
    aligned = said.get("general.alignment", 32)
    begin = -(-cursor.at // aligned) * aligned
    return said, {name: _numbers(path, name, data[begin + at :], shape, kind) for name, shape, kind, at in index}


def _numbers(path: Path, name: str, data: np.ndarray, shape: tuple[int, ...], kind: int) -> np.ndarray:
    count = int(np.prod(shape))
    if kind == 0:
        return data[: 4 * count].view("<f4").reshape(shape)
    if kind == 3:
        return q4_1(data[: count // 32 * _Q4_1.itemsize]).reshape(shape)
    if kind == 8:
        return q8_0(data[: count // 32 * _Q8_0.itemsize]).reshape(shape)
    raise InputError(f"{path}: tensor {name} is of GGUF's kind {kind}; F32 (0), Q4_1 (3) and Q8_0 (8) are read")


def q4_1(data: np.ndarray) -> np.ndarray:
    """[N] float32 of bytes of Q4_1."""
    blocks = data.view(_Q4_1)
    q = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1).astype(np.float32)
    return (blocks["d"].astype(np.float32)[:, None] * q + blocks["m"].astype(np.float32)[:, None]).reshape(-1)


def q8_0(data: np.ndarray) -> np.ndarray:
    """[N] float32 of bytes of Q8_0."""
    blocks = data.view(_Q8_0)
    return (blocks["d"].astype(np.float32)[:, None] * blocks["q"].astype(np.float32)).reshape(-1)
