"""Write what was encrypted and decrypted to files, for a comparison; only on request."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hefl.encoding.codec import Scales, Sum
from hefl.engines.engine import Engine, Vector
from hefl.engines.load import make_codec
from hefl.files import replacing
from hefl.models.layout import Arrays, Layout
from hefl.protocol.records import Announcement


@dataclass(frozen=True, slots=True)
class Trace:
    """One client's, in a private folder.

    Attributes:
        folder: Where to.
        name: The client's.
        layout, engine: Of its model.
    """

    folder: Path
    name: str
    layout: Layout
    engine: Engine

    def sent(self, arrays: Arrays, vector: Vector, announcement: Announcement) -> None:
        """Keep a trained model as it was, and as it is encrypted."""
        weight = announcement.as_attempt().weights[self.name]
        with replacing(self.folder / f"sent-{announcement.round}.npz") as file:
            np.savez(file, model=self.layout.flatten(arrays), vector=vector, num_examples=weight)

    def received(self, total: Sum, scales: Scales | None, announcement: Announcement) -> None:
        """Keep a global model before its numbers are rounded to the layout's types, and the sum that it was made of."""
        wide = self.layout.widened()
        codec = make_codec(self.engine, wide, lambda: 1)  # which counts for what is sent only
        model = wide.flatten(codec.decode_model(total, scales)[0])
        with replacing(self.folder / f"received-{announcement.round}.npz") as file:
            np.savez(file, model=model, vector=total.vector, total_weight=total.total_weight)
