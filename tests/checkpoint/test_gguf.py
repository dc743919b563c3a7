"""What examples/smollm2 reads of a GGUF file: settings of every kind, and tensors by the formulas of the format."""

import struct

import numpy as np
import pytest

import qwen3llada_jax as q
from examples.smollm2.gguf import read_gguf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def test_a_file_is_read_by_the_formulas_of_its_kinds(tmp_path):
    rng = np.random.default_rng(3)
    d, m, q4 = np.float16(-0.37), np.float16(1.5), rng.integers(0, 16, 32)
    q4_1 = struct.pack("<2e", d, m) + bytes(int(q4[i] | q4[i + 16] << 4) for i in range(16))
    q8 = rng.integers(-128, 128, (2, 32))
    q8_0 = b"".join(struct.pack("<e32b", scale, *row) for scale, row in zip((0.25, -3.0), q8.tolist(), strict=True))
    plain = rng.normal(size=6).astype(np.float32)
    settings = [
        text("general.alignment") + struct.pack("<2I", 4, 64),
        text("words") + struct.pack("<2IQ", 9, 8, 2) + text("a") + text("é"),
        text("is") + struct.pack("<I?", 7, True),
    ]
    index = [
        text("four") + struct.pack("<IQIQ", 1, 32, 3, 0),
        text("eight") + struct.pack("<I2QIQ", 2, 32, 2, 8, 64),
        text("plain") + struct.pack("<I2QIQ", 2, 3, 2, 0, 192),
    ]
    head = b"GGUF" + struct.pack("<I2Q", 3, len(index), len(settings)) + b"".join(settings + index)
    body = q4_1.ljust(64, b"x") + q8_0.ljust(128, b"x") + plain.tobytes()
    (tmp_path / "m.gguf").write_bytes(head.ljust(-(-len(head) // 64) * 64, b"x") + body)
    said, tensors = read_gguf(tmp_path / "m.gguf")
    assert (said["words"], said["is"]) == (["a", "é"], True)
    np.testing.assert_array_equal(tensors["four"], np.float32(d) * q4.astype(np.float32) + np.float32(m))
    np.testing.assert_array_equal(tensors["eight"], np.float32([[0.25], [-3.0]]) * q8.astype(np.float32))
    np.testing.assert_array_equal(tensors["plain"], plain.reshape(2, 3))

    (tmp_path / "no.gguf").write_bytes(b"GGML" + bytes(64))
    with pytest.raises(q.InputError, match="is no GGUF file"):
        read_gguf(tmp_path / "no.gguf")
