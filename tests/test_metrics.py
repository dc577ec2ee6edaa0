"""Hand-made matrices with known answers, among them the case that another library gets wrong."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tlcourse.metrics import (
    average_accuracy,
    backward_transfer,
    errors,
    forgetting,
    forward_transfer,
)

R = np.array(
    [[0.9, 0.3, 0.2], [0.7, 0.8, 0.4], [0.5, 0.6, 0.9]]
)  # R[i, j]: after task i, accuracy on task j
B = [0.25, 0.1, 0.1]
MEASURES = (
    average_accuracy,
    backward_transfer,
    lambda R: forward_transfer(R, np.zeros(len(R))),
    forgetting,
)


def test_by_hand():
    assert average_accuracy(R) == pytest.approx((0.5 + 0.6 + 0.9) / 3)
    assert backward_transfer(R) == pytest.approx(((0.5 - 0.9) + (0.6 - 0.8)) / 2)
    assert forward_transfer(R, B) == pytest.approx(((0.3 - 0.1) + (0.4 - 0.1)) / 2)
    assert forgetting(R) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.6)) / 2)


def test_forgetting_is_negative_when_the_last_task_helps():
    """The best accuracy *before* the last task is meant: with the last row among the candidates
    this would be 0.
    """
    helped = [[0.5, 0.0], [0.535, 0.9]]
    assert forgetting(helped) == pytest.approx(-0.035)


def test_forgetting_counts_from_the_best_not_from_the_first():
    rose_and_fell = [[0.5, 0, 0], [0.8, 0.9, 0], [0.6, 0.9, 0.9]]
    assert forgetting(rose_and_fell) == pytest.approx((0.8 - 0.6) / 2)
    assert backward_transfer(rose_and_fell) == pytest.approx((0.6 - 0.5) / 2)


def test_with_two_tasks_forgetting_is_backward_transfer_turned_round():
    two = R[:2, :2]
    assert forgetting(two) == pytest.approx(-backward_transfer(two))


def test_entries_that_are_not_used_may_be_missing():
    lower = np.where(np.tril(np.ones((3, 3))) > 0, R, np.nan)
    assert forgetting(lower) == forgetting(R)
    assert backward_transfer(lower) == backward_transfer(R)
    assert average_accuracy(lower) == average_accuracy(R)
    assert math.isnan(forward_transfer(lower, B))


def test_one_task_can_neither_transfer_nor_be_forgotten():
    assert average_accuracy([[0.9]]) == 0.9
    assert all(
        math.isnan(value)
        for value in (
            backward_transfer([[0.9]]),
            forward_transfer([[0.9]], [0.1]),
            forgetting([[0.9]]),
        )
    )


@given(arrays(float, st.integers(1, 5).map(lambda t: (t, t)), elements=st.floats(0, 1)))
def test_the_input_is_never_changed_and_lists_and_tensors_do_as_well(matrix):
    before = matrix.copy()
    for measure in MEASURES:
        found = measure(matrix)
        assert np.array_equal(matrix, before)
        for other in (matrix.tolist(), torch.from_numpy(matrix)):
            assert measure(other) == pytest.approx(found, nan_ok=True)


@given(arrays(float, (4, 4), elements=st.floats(0, 1)))
def test_forgetting_is_at_least_the_loss_since_each_task_was_learnt(matrix):
    assert forgetting(matrix) >= -backward_transfer(matrix) - 1e-12


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.zeros(3), np.zeros((0, 0))])
def test_matrices_that_are_not_square_are_refused(measure, bad):
    with pytest.raises(ValueError, match=r"R must have shape \(T, T\)"):
        measure(bad)


def test_a_baseline_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"b must have shape \(3,\), got \(2,\)"):
        forward_transfer(R, [0.1, 0.1])


def test_errors_counts_wrong_classes():
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    assert errors(logits, torch.tensor([1, 1, 1])) == 1
    assert errors(logits, torch.tensor([1, 1, 1], dtype=torch.int32)) == 1
    assert errors(logits[:0], torch.zeros(0, dtype=torch.int64)) == 0


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([1, 1]), r"labels must have shape \(3,\) like the logits, got \(2,\)"),
        (torch.tensor([[1], [1], [1]]), r"like the logits, got \(3, 1\)"),
        (torch.tensor([[0, 1], [0, 1], [0, 1]]), r"like the logits, got \(3, 2\)"),
        (torch.tensor([1.0, 1.0, 1.0]), "labels must be whole numbers, got torch.float32"),
        (torch.tensor([True, True, True]), "labels must be whole numbers, got torch.bool"),
        (torch.tensor([1, 2, 1]), r"labels must be in \[0, 2\), got 1 to 2"),
        (np.array([1, 1, 1]), "labels must be a tensor, got ndarray"),
    ],
)
def test_errors_refuses_labels_that_do_not_fit(labels, said):
    with pytest.raises(ValueError, match=said):
        errors(torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0]]), labels)


def test_a_task_that_was_never_measured_before_gives_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(forgetting([[math.nan, 0.1], [0.5, 0.8]]))
