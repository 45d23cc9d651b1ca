"""Records of predictions and outcomes to columns: typed msgspec first, hand-written checks for what it refuses."""

import msgspec

from errata.adapters.decode_msgspec.decoder import MsgspecDecoder
from errata.adapters.decode_msgspec.lines import LineRouter

__all__ = ["LineRouter", "MsgspecDecoder", "plain_json"]

plain_json = msgspec.json.Encoder(order="deterministic").encode
"""Plain data as JSON, the same for the same data: as ``errata.contracts.canonical``, ten times as fast, but with
another form of large and small floats."""
