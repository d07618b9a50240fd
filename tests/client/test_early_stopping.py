from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hefl.client.early_stopping import Patience, Progress
from hefl.params import LOSS_STEP, METRIC_RANGE

LOSSES = st.lists(st.one_of(st.none(), st.floats(-63, 63)), max_size=30)


@given(LOSSES)
def test_the_best_loss_is_the_smallest_and_since_counts_the_models_after_its_first(losses: list[float | None]) -> None:
    progress = Progress()
    for loss in losses:
        progress = progress.after(loss)
    rounded = [math.inf if loss is None else round(loss / LOSS_STEP) for loss in losses]
    lowest = min(rounded, default=math.inf)
    if lowest == math.inf:
        assert progress == Progress(METRIC_RANGE, len(losses))
    else:
        assert progress == Progress(lowest * LOSS_STEP, len(losses) - 1 - rounded.index(lowest))


@given(st.integers(1, 10**6), st.data())
def test_a_progress_survives_its_way_through_metrics(rounds: int, data: st.DataObject) -> None:
    patience = Patience(rounds)
    progress = Progress().after(data.draw(st.floats(-64, 63))) if data.draw(st.booleans()) else Progress()
    progress = Progress(progress.best, data.draw(st.integers(0, rounds)))
    noise = data.draw(st.floats(-1e-7, 1e-7))
    told = {name: value + noise for name, value in patience.tell(progress).items()}
    assert all(abs(value) <= METRIC_RANGE + 1e-6 for value in told.values())
    assert patience.read(told) == progress


def test_patience_is_over_after_so_many_models_in_a_row() -> None:
    patience, progress, over = Patience(2), Progress(), []
    for loss in (3.0, None, 2.0, 2.0, None, 1.0, 1.5, 1.0):
        progress = progress.after(loss)
        over.append(patience.is_over(progress))
    assert over == [False, False, False, False, True, False, False, True]


def test_what_nobody_told_starts_anew() -> None:
    assert Patience(3).read(dict.fromkeys(Patience(3).metrics)) == Progress()


@pytest.mark.parametrize("loss", [64.0, 1e9])
def test_a_loss_at_the_limit_of_metrics_is_not_better(loss: float) -> None:
    assert Progress().after(loss).since == 1
