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
    ESCAPE_BELOW,
    ESCAPE_ORDER,
    MAX_SYMBOL,
    RADIUS,
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
_PREFIXES: Final = constriction.stream.model.Categorical(
    (escape_frequencies() - 1).astype(np.float64), perfect=False
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
        self._coder = constriction.stream.queue.RangeEncoder()

    def put(self, symbols: IntArray, table_index: IntArray) -> None:
        """Append residuals int [n] by tables int [n].

        InvalidInput when shapes differ, a table does not exist, or a residual is beyond
        +-MAX_SYMBOL.
        """
        rows = self._tables.rows(table_index)
        values = np.asarray(symbols)
        if values.shape != rows.shape:
            raise InvalidInput(f"{values.shape} symbols do not match {rows.shape} table indices")
        columns = self._tables.columns(values)
        if not columns.size:
            return
        with _typed(InvalidInput, "coding symbols"):
            self._coder.encode(columns, _FAMILY, self._tables.weights[rows])
            far = np.abs(values[columns >= ESCAPE_BELOW].astype(np.int64)) - RADIUS - 1
            if far.size:
                prefix, low = split_escape(far)
                self._coder.encode(prefix, _PREFIXES)
                self._coder.encode(low, _UNIFORM, np.int32(1) << (prefix + ESCAPE_ORDER))

    def finish(self) -> bytes:
        """The canonical payload of all that was put: the fewest bytes that decode to it."""
        words, (lower, span) = self._coder.pos()
        total = int(words) * WORD_BYTES + STATE_BITS // 8
        sealed: bytes = self._coder.get_compressed().astype(">u4").tobytes()
        inside = int.from_bytes(sealed.ljust(total, b"\0"), "big")
        # The sealed words lie in the interval; the state knows its lower end modulo 2**64.
        low = inside - (inside - int(lower)) % (1 << STATE_BITS)
        high = low + int(span)
        for spare in range(8 * total, 0, -8):
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
        with _typed(PacketError, "decoding symbols"):
            columns = self._coder.decode(_FAMILY, self._tables.weights[rows])
            magnitude = (columns.astype(np.int64) + 1) >> 1
            escaped = columns >= ESCAPE_BELOW
            count = int(escaped.sum())
            if count:
                prefix = self._coder.decode(_PREFIXES, count).astype(np.int32) + ESCAPE_ORDER
                size = np.int32(1) << prefix
                low = self._coder.decode(_UNIFORM, size)
                far = size.astype(np.int64) + low - (1 << ESCAPE_ORDER)
                magnitude[escaped] = far + RADIUS + 1
        if count and int(magnitude.max()) > MAX_SYMBOL:
            raise PacketError(f"payload holds a symbol beyond +-{MAX_SYMBOL} quantiser steps")
        negative = (columns % 2 == 1) & ~escaped | (columns == ESCAPE_BELOW)
        symbols: npt.NDArray[np.int32] = np.where(negative, -magnitude, magnitude).astype(np.int32)
        self._again.put(symbols, table_index)
        return symbols

    def finish(self) -> None:
        """PacketError unless the payload is the canonical one of the symbols that were decoded."""
        if self._again.finish() != self._payload:
            raise PacketError("payload is cut, extended, or not what its symbols are coded as")


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
