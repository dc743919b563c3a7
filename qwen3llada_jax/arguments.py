"""What callers of the library may pass: taken where it is plain what is meant, refused in one line otherwise.

Lists stand for arrays, numpy's scalars for Python's, a whole float for a whole number, an int for a random key. Values
that a program is being traced with (inside `jit`) have no value to look at: of them shape and dtype are checked.
"""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from qwen3llada_jax.errors import InputError, shown

MOST_SEED = 2**32 - 1  # JAX's random numbers take 32 bits of a seed: larger ones would repeat smaller ones' noise
THREEFRY, QUICK_THREEFRY = "threefry2x32", "qfry"  # JAX's name of its default kind of keys; of the same made faster
DTYPES = ("float32", "bfloat16", "float16")


def whole(name: str, value: Any) -> int:
    """A whole number: an int, numpy's, or a float without a fraction.

    Raises:
        InputError: anything else, booleans and texts among it.
    """
    if not isinstance(value, bool | np.bool_ | str | bytes):
        try:
            return operator.index(value)
        except TypeError:
            pass
        number = _as_float(value)
        if number is not None and number.is_integer():
            return int(number)
    raise InputError(f"{name} must be a whole number, not {shown(value)}")


def number(name: str, value: Any) -> float:
    """A number, finite or not: an int, a float, or numpy's.

    Raises:
        InputError: anything else, booleans and texts among it.
    """
    found = None if isinstance(value, bool | np.bool_ | str | bytes) else _as_float(value)
    if found is None:
        raise InputError(f"{name} must be a number, not {shown(value)}")
    return int(value) if isinstance(value, int) else found


def flag(name: str, value: Any) -> bool:
    """True or False, Python's or numpy's.

    Raises:
        InputError: anything else.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InputError(f"{name} must be True or False, not {shown(value)}")


def ids(name: str, value: Any) -> tuple[int, ...]:
    """Token ids: one of them, or any list, tuple, set or array.

    Raises:
        InputError: something else in it.
    """
    if isinstance(value, str | bytes | dict):
        raise InputError(f"{name} must be token ids, as [7, 12], not {shown(value)}")
    if isinstance(value, set | frozenset):
        return tuple(sorted(whole(name, i) for i in value))
    if np.ndim(value) == 0:
        return (whole(name, value),)
    return tuple(whole(name, i) for i in value)


def dtype(name: str, value: Any) -> str:
    """The name of a dtype: itself, or JAX's or numpy's type.

    Raises:
        InputError: none of `DTYPES`.
    """
    try:
        found = value if isinstance(value, str) else np.dtype(value).name
    except TypeError:
        found = shown(value)
    if found not in DTYPES:
        raise InputError(f"{name} {found!r} is unknown; choose {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    return found


def key(value: Any) -> PRNGKeyArray:
    """A random key: JAX's new kind or old kind (uint32 [2], or [B, 2]), or a seed.

    Raises:
        InputError: something else, or a seed outside 0 … 2³² − 1.
    """
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(value)) not in (THREEFRY, QUICK_THREEFRY):
            raise InputError(f"key must be of JAX's default kind ({THREEFRY}), not {jax.random.key_impl(value)}")
        return value
    array = value if isinstance(value, jax.Array) else np.asarray(value) if np.ndim(value) else None
    if array is not None and array.ndim and array.dtype == np.uint32 and array.shape[-1] == 2:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=THREEFRY)
    if array is not None and array.ndim:
        raise InputError(f"key must be a seed or a JAX key, not an array of {array.dtype} {list(array.shape)}")
    seed = whole("key", value)
    if not 0 <= seed <= MOST_SEED:
        raise InputError(f"key: a seed lies in 0 … {MOST_SEED}, not {seed}")
    return jax.random.key(seed)


def rows(name: str, value: Any, shape: str = "[B, L]") -> Int[Array, "B L"]:
    """Rows of whole numbers: an array, or a list of lists of one length.

    Args:
        shape: what to call it, one letter an axis.

    Raises:
        InputError: of another shape, of rows that differ in length, or of what are no whole numbers.
    """
    array = as_array(name, value, f"whole numbers {shape}")
    if array.ndim != shape.count(",") + 1:
        hint = "; put one row into a list" if array.ndim == 1 else ""
        raise InputError(f"{name} must be {shape}, not of shape {list(array.shape)}{hint}")
    if not array.size and array.dtype.kind == "f":  # what an empty list becomes
        array = array.astype(np.int32)
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} must be whole numbers, not {array.dtype}")
    return array


def within(name: str, value: Any, most: int = 2**31 - 1, least: int = 0) -> None:
    """Refuse numbers outside `least` … `most`; those that a program is being traced with cannot be looked at.

    Raises:
        InputError: naming one of them.
    """
    if isinstance(value, jax.core.Tracer) or not np.size(value):
        return
    numbers = np.asarray(value)  # of a JAX array inside `jit`, `min` itself would be traced
    lowest, highest = int(numbers.min()), int(numbers.max())
    if lowest < least or highest > most:
        raise InputError(f"{name} must lie in {least} … {most}, not {lowest if lowest < least else highest}")


def whole_rows(name: str, value: Any) -> Int[Array, "B L"]:
    """`rows` of what 32 bits hold: a program would wrap other numbers.

    Raises:
        InputError: as in `rows`, or naming a number that is too large.
    """
    array = rows(name, value)
    within(name, array, least=-(2**31))
    return array


def truth(name: str, value: Any) -> Any:
    """A bool array: itself (JAX's or numpy's), or one of the whole numbers 0 and 1.

    An additive mask (0 and −inf, as PyTorch takes it) says the opposite where it is read as a bool, so it is refused.

    Raises:
        InputError: any other dtype or value; whole numbers inside `jit`, where they cannot be looked at.
    """
    array = as_array(name, value, "True and False")
    if array.dtype == bool:
        return array
    if array.dtype.kind in "iu" and not isinstance(array, jax.core.Tracer):
        numbers = np.asarray(array)
        if ((numbers == 0) | (numbers == 1)).all():
            return numbers.astype(bool)
    # Only an additive attention mask has a plain reading; of other floats nobody knows which are meant.
    others = (
        f"; of an additive one (0 and −inf) pass `{name} == 0`" if name == "mask" and array.dtype.kind == "f" else ""
    )
    raise InputError(f"{name} must be bool, or 0 and 1 outside jit, not {array.dtype}{others}")


def rows_of_ids(name: str, value: Any, *, holes: bool = False) -> list[list[Any]]:
    """Rows of token ids that may differ in length, as lists; with `holes` a None is let be.

    Raises:
        InputError: no rows, or something that is no id in one of them (its row and place are named).
    """
    what = "rows of token ids (a list of lists" + (" with None for a hole)" if holes else ", or an array [B, L])")
    if isinstance(value, jax.Array):
        value = np.asarray(value)
    if isinstance(value, str | bytes | dict) or not _can_be_gone_through(value):
        raise InputError(f"{name} must be {what}, not {shown(value)}")
    found = []
    for number, row in enumerate(value):
        if isinstance(row, str | bytes | dict) or not _can_be_gone_through(row):
            raise InputError(f"{name} must be {what}; row {number} is {shown(row)}")
        tokens = np.asarray(row).tolist() if isinstance(row, jax.Array | np.ndarray) else list(row)
        for token in tokens:
            is_id = isinstance(token, int | np.integer) and not isinstance(token, bool)
            if not is_id and not (holes and token is None):
                kind = type(token).__name__
                raise InputError(
                    f"{name} must be {what}: whole numbers, not of {kind} ({shown(token)} in row {number})"
                )
        found.append([None if token is None else int(token) for token in tokens])
    return found


def as_array(name: str, value: Any, what: str) -> Any:
    """An array as it is, anything else through numpy.

    Raises:
        InputError: rows that differ in length, texts, None.
    """
    if isinstance(value, jax.Array | np.ndarray):
        array = value
    else:
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{name} must be {what}: its rows differ in length, or hold something else") from error
    if not isinstance(array, jax.Array) and array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise InputError(f"{name} must be {what}, not {shown(value)}")
    return array


def _can_be_gone_through(value: Any) -> bool:
    return value.ndim > 0 if isinstance(value, np.ndarray | jax.Array) else hasattr(value, "__iter__")


def _as_float(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) or not isinstance(value, int) else None
