"""Signatures of webhooks, both sides: what the service signs, and what a receiver checks.

After Standard Webhooks (standardwebhooks.com), so that its libraries work as well. Sending is
`analytics_service.webhooks`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping

from sfic.errors import InvalidInput

__all__ = ["WebhookSecret"]

_PREFIX = "whsec_"
_SHORTEST, _LONGEST = 24, 64


class WebhookSecret:
    """A secret that sender and receiver share."""

    def __init__(self, text: str) -> None:
        """`text`: "whsec_" and the base64 of 24 to 64 bytes; `ValueError` for anything else."""
        try:
            key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            key = b""
        if not text.startswith(_PREFIX) or not _SHORTEST <= len(key) <= _LONGEST:
            raise ValueError(
                f"a webhook secret is {_PREFIX} and the base64 of {_SHORTEST} to {_LONGEST} bytes"
            )
        self._key = key

    def headers(self, delivery_id: str, body: bytes, timestamp: int) -> dict[str, str]:
        """The three headers of a delivery; `timestamp` in Unix seconds."""
        return {
            "webhook-id": delivery_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": "v1," + self._sign(delivery_id, str(timestamp), body),
        }

    def check(
        self, headers: Mapping[str, str], body: bytes, *, tolerance_seconds: float = 300.0
    ) -> str:
        """Returns the delivery's id when it is ours and fresh, else raises `InvalidInput`.

        `headers`: as received, names in any case; `body`: the bytes as received. A delivery may
        come twice: keep the ids that were handled.
        """
        given = {name.lower(): value for name, value in headers.items()}
        try:
            delivery_id, sent = given["webhook-id"], given["webhook-timestamp"]
            signatures = given["webhook-signature"].split()
            age = abs(time.time() - int(sent))
        except (KeyError, ValueError) as error:
            raise InvalidInput(f"not a signed delivery: {error}") from error
        expected = f"v1,{self._sign(delivery_id, sent, body)}".encode()
        if not any(hmac.compare_digest(expected, s.encode()) for s in signatures):
            raise InvalidInput("the delivery's signature is wrong")
        if age > tolerance_seconds:
            raise InvalidInput(f"the delivery was signed {age:.0f} s ago")
        return delivery_id

    def _sign(self, delivery_id: str, timestamp: str, body: bytes) -> str:
        signed = f"{delivery_id}.{timestamp}.".encode() + body
        return base64.b64encode(hmac.new(self._key, signed, hashlib.sha256).digest()).decode()
