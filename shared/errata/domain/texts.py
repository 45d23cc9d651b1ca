"""Many texts at once as one table of bytes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def byte_rows(texts: Sequence[str], least: int = 1, one_length: bool | None = None) -> NDArray[np.uint8]:
    """The UTF-8 bytes of each text, one row a text, zeros up to the longest and to a multiple of ``least``.

    At least one text; none may hold NUL, which decoders have refused by then. ``one_length``: whether all texts are
    equally long, where the caller knows.

    >>> byte_rows(["ab", "c"], 4).tolist()
    [[97, 98, 0, 0], [99, 0, 0, 0]]
    """
    width = len(texts[0])
    if one_length is None:
        one_length = len(set(map(len, texts))) == 1
    joined = "".join(texts).encode() if one_length else b""
    if width and width % least == 0 and len(joined) == width * len(texts):
        return np.frombuffer(joined, np.uint8).reshape(-1, width)  # one length, all ASCII: the usual case, a sixth
    table = np.array([text.encode() for text in texts], "S")
    width = max(1, -(-table.dtype.itemsize // least)) * least
    return table.astype(f"S{width}").view(np.uint8).reshape(-1, width)
