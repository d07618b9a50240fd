"""``hefl client`` with one fault: ``python -m misbehaving_client client ...``, FAULT="KIND ROUND".

KIND is ``noise`` (its update makes the round's sum useless) or ``disbelief`` (it gets bytes that are not the sum).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

from builders import wide_noise

from hefl.cli.main import main
from hefl.client.learner import Learner
from hefl.engines import packed
from hefl.errors import TamperError

KIND, ROUND = os.environ["FAULT"].split()


def noisy(original: Callable[..., Any]) -> Callable[..., Any]:
    def write_update(self: Learner, file: Any, announcement: Any) -> Any:
        is_due = announcement.round == int(ROUND)
        with patch.object(packed, "draw_noise", wide_noise) if is_due else nullcontext():
            return original(self, file, announcement)

    return write_update


def disbelieving(original: Callable[..., Any]) -> Callable[..., Any]:
    def accept(self: Learner, source: Any, record: Any, least: int) -> Any:
        if record.announcement.round == int(ROUND):
            raise TamperError("what came is not the sum", check="tag")
        return original(self, source, record, least)

    return accept


if __name__ == "__main__":
    if KIND == "noise":
        Learner.write_update = noisy(Learner.write_update)  # type: ignore[method-assign]
    else:
        Learner.accept = disbelieving(Learner.accept)  # type: ignore[method-assign]
    main()
