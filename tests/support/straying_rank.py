"""A model host of which rank 1 goes astray as soon as an answer begins. The first argument says
how: ``fails``, a forward of it does; ``strays``, it takes another token than rank 0."""

import os
import sys

from punie_model_host import main
from punie_model_host.batch import Batch, RaggedBatch


def fails(_batch: Batch) -> None:
    raise MemoryError("no room for this forward")


def strays(batch: Batch, *, ahead: int = 0) -> list:
    return [(key, token ^ 1) for key, token in read(batch, ahead=ahead)]


read = Batch.read
if os.environ.get("MLX_RANK") == "1":
    if sys.argv[1] == "fails":
        setattr(RaggedBatch, "dispatch", fails)  # noqa: B010  the checker knows one function there
    else:
        setattr(RaggedBatch, "read", strays)  # noqa: B010
main.main(sys.argv[2:])
