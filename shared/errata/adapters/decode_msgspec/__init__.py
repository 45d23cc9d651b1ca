"""Records of predictions and outcomes to columns: typed msgspec first, hand-written checks for what it refuses."""

from errata.adapters.decode_msgspec.decoder import MsgspecDecoder
from errata.adapters.decode_msgspec.lines import LineRouter

__all__ = ["LineRouter", "MsgspecDecoder"]
