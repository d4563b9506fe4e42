"""The range coder: integer symbols to the shortest bytes that decode to them, and back.

constriction does the coding; this module gives it exact integer frequencies, turns whatever goes
wrong inside it into a typed error, and works in bytes where constriction works in 32-bit words.
Tables belong in `sfic.entropy.tables`; headers and checks in `sfic.packet`.

The coder's final state is an interval of numbers that all decode to the same symbols. `finish`
takes the one with the fewest bytes, trailing zero bytes not counted: decoders read zeros after the
end. So bytes are a function of symbols, and a decoder can insist on them: it codes what it decoded
again, and refuses a payload that is not the canonical one (extended, cut, or merely another
spelling).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import constriction
import numpy as np
import numpy.typing as npt

from sfic.entropy.tables import (
    ALPHABET,
    ESCAPE_BELOW,
    ESCAPE_ORDER,
    MAX_SYMBOL,
    NEAR,
    RADIUS,
    TOTAL,
    TableSet,
    escape_frequencies,
    split_escape,
)
from sfic.errors import InvalidInput, PacketError

__all__ = ["SymbolDecoder", "SymbolEncoder", "decode_symbols", "encode_symbols"]

IntArray = npt.NDArray[np.integer[Any]]

STATE_BITS: Final = 64
WORD_BYTES: Final = 4
_FAMILY: Final = constriction.stream.model.Categorical(perfect=False)
_UNIFORM: Final = constriction.stream.model.Uniform()
_PREFIX_SIZES: Final = escape_frequencies()
_PREFIX_BELOW: Final = _PREFIX_SIZES.cumsum() - _PREFIX_SIZES
_PREFIXES: Final = constriction.stream.model.Categorical(
    (_PREFIX_SIZES - 1).astype(np.float64), perfect=False
)
# Residual of each column; escapes stand for the first residual that needs them.
_RESIDUALS: Final = np.empty(ALPHABET, np.int32)
_RESIDUALS[TableSet.columns(np.arange(-RADIUS - 1, RADIUS + 2))] = np.arange(
    -RADIUS - 1, RADIUS + 2
)


@contextmanager
def _typed(raised: type[InvalidInput], doing: str) -> Iterator[None]:
    """Turn what constriction throws into `raised`: a Rust panic is no Exception in Python."""
    try:
        yield
    except Exception as error:
        raise raised(f"{doing} failed: {error}") from error
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":
            raise
        raise raised(f"{doing} failed: {panic}") from None


class SymbolEncoder:
    """Codes residuals in several parts into one payload."""

    def __init__(self, tables: TableSet) -> None:
        """Start an empty payload."""
        self._tables = tables
        self._below: list[npt.NDArray[np.float32]] = []
        self._sizes: list[npt.NDArray[np.float32]] = []

    def put(self, symbols: IntArray, table_index: IntArray) -> None:
        """Append residuals int [n] by tables int [n].

        InvalidInput when shapes differ, a table does not exist, or a residual is beyond
        +-MAX_SYMBOL.
        """
        rows = self._tables.rows(table_index)
        values = np.asarray(symbols)
        if values.shape != rows.shape:
            raise InvalidInput(f"{values.shape} symbols do not match {rows.shape} table indices")
        self.put_columns(values, self._tables.columns(values), rows)

    def put_columns(
        self, symbols: IntArray, columns: npt.NDArray[np.int32], rows: npt.NDArray[np.intp]
    ) -> None:
        """As `put`, of residuals that were checked; `columns`, `rows`: their places in `freqs`."""
        places = rows * ALPHABET + columns
        self._append(self._tables.below.take(places), self._tables.freqs.take(places))
        escaped = columns >= ESCAPE_BELOW
        if escaped.any():
            prefix, low = split_escape(np.abs(symbols[escaped].astype(np.int64)) - RADIUS - 1)
            self._append(_PREFIX_BELOW[prefix], _PREFIX_SIZES[prefix])
            each = TOTAL >> (prefix + ESCAPE_ORDER)
            self._append(low * each, each)

    def _append(self, below: IntArray, sizes: IntArray) -> None:
        self._below.append(below.astype(np.float32))
        self._sizes.append(sizes.astype(np.float32))

    def finish(self) -> bytes:
        """The canonical payload of all that was put: the fewest bytes that decode to it."""
        coder = constriction.stream.queue.RangeEncoder()
        if self._below:
            with _typed(InvalidInput, "coding symbols"):
                coder.encode(*_as_thirds(np.concatenate(self._below), np.concatenate(self._sizes)))
        words, (lower, span) = coder.pos()
        total = int(words) * WORD_BYTES + STATE_BITS // 8
        sealed: bytes = coder.get_compressed().astype(">u4").tobytes()
        inside = int.from_bytes(sealed.ljust(total, b"\0"), "big")
        # The sealed words lie in the interval; the state knows its lower end modulo 2**64.
        low = inside - (inside - int(lower)) % (1 << STATE_BITS)
        high = low + int(span)
        # More spare bits than low and high differ in leave low alone, if its own bits there are 0.
        differ = (low ^ (high - 1)).bit_length()
        zeros = (low & -low).bit_length() - 1 if low else 8 * total
        for spare in range(-(-max(differ, zeros) // 8) * 8, 0, -8):
            rounded = -(-low >> spare) << spare
            if rounded < high:
                return (rounded >> spare).to_bytes(total - spare // 8, "big")
        return low.to_bytes(total, "big")


class SymbolDecoder:
    """Decodes a payload part by part; later parts' tables may depend on earlier parts' symbols."""

    def __init__(self, payload: bytes, tables: TableSet) -> None:
        """Start at the first symbol; any bytes are taken, `get` and `finish` judge them."""
        self._payload = bytes(payload)
        self._tables = tables
        padded = self._payload + bytes(-len(self._payload) % WORD_BYTES)
        words = np.frombuffer(padded, dtype=">u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)
        self._again = SymbolEncoder(tables)

    def get(self, table_index: IntArray) -> npt.NDArray[np.int32]:
        """The next residuals int32 [n], one for each table; PacketError when the bytes say none."""
        rows = self._tables.rows(table_index)
        if not rows.size:
            return np.empty(0, dtype=np.int32)
        columns = self._near_columns(rows)
        with _typed(PacketError, "decoding symbols"):
            if columns is None:
                columns = self._coder.decode(_FAMILY, self._tables.weights.take(rows, axis=0))
            symbols: npt.NDArray[np.int32] = _RESIDUALS.take(columns)
            escaped = columns >= ESCAPE_BELOW
            count = int(escaped.sum())
            if count:
                prefix = self._coder.decode(_PREFIXES, count).astype(np.int32) + ESCAPE_ORDER
                size = np.int32(1) << prefix
                low = self._coder.decode(_UNIFORM, size)
                far = size - np.int32(1 << ESCAPE_ORDER) + low
                symbols[escaped] += np.where(columns[escaped] == ESCAPE_BELOW, -far, far)
        if count and int(np.abs(symbols).max()) > MAX_SYMBOL:
            raise PacketError(f"payload holds a symbol beyond +-{MAX_SYMBOL} quantiser steps")
        self._again.put_columns(symbols, columns, rows)
        return symbols

    def _near_columns(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.int32] | None:
        """The next columns if all are below NEAR, as nearly always; None if one is not.

        Few columns are decoded much faster than whole tables. Past a far one the coder is astray.
        """
        ahead = self._coder.clone()
        try:
            with _typed(PacketError, "decoding symbols"):
                columns: npt.NDArray[np.int32] = ahead.decode(
                    _FAMILY, self._tables.near.take(rows, axis=0)
                )
        except PacketError:
            return None
        if columns.max() >= NEAR:
            return None
        self._coder = ahead
        return columns

    def finish(self) -> None:
        """PacketError unless the payload is the canonical one of the symbols that were decoded."""
        if self._again.finish() != self._payload:
            raise PacketError("payload is cut, extended, or not what its symbols are coded as")


def _as_thirds(
    below: npt.NDArray[np.float32], sizes: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int32], Any, npt.NDArray[np.float32]]:
    """Intervals of 0..TOTAL as what `RangeEncoder.encode` takes: each one of three columns.

    The coder only asks where a symbol's interval begins and how long it is, so this codes the same
    bytes as whole tables do (tested), in a tenth of the time. No column may be empty: of an
    interval at an end, two columns are on its other side.
    """
    last = below + sizes == TOTAL
    first = below == 0
    columns = np.empty((len(below), 3), np.float32)
    columns[:, 0] = np.where(first, sizes, below - last)
    columns[:, 2] = np.where(last, sizes, 1)
    np.copyto(columns[:, 2], TOTAL - below - sizes, where=~(first | last))
    columns[:, 1] = TOTAL - columns[:, 0] - columns[:, 2]
    columns -= 1
    return np.where(first, 0, 1 + last).astype(np.int32), _FAMILY, columns


def encode_symbols(symbols: IntArray, table_index: IntArray, tables: TableSet) -> bytes:
    """Residuals int [n] by tables int [n] to their canonical payload; InvalidInput as in `put`."""
    encoder = SymbolEncoder(tables)
    encoder.put(symbols, table_index)
    return encoder.finish()


def decode_symbols(
    payload: bytes, table_index: IntArray, tables: TableSet
) -> npt.NDArray[np.int32]:
    """Residuals int32 [n] of a canonical payload; PacketError on any other bytes."""
    decoder = SymbolDecoder(payload, tables)
    symbols = decoder.get(table_index)
    decoder.finish()
    return symbols
