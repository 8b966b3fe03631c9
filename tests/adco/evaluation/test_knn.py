"""adco/evaluation/knn.py: against a naive loop, a case worked by hand, and the promises about ties."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from adco.evaluation.knn import first_argmax, knn_accuracy, knn_predict
from adco.utils.errors import UserError


def naive_votes(train, labels, test, k, temperature, classes):
    votes = torch.zeros(len(test), classes, dtype=torch.float64)
    for i, row in enumerate(test):
        cosines = [float(row @ other) for other in train]
        for j in sorted(range(len(train)), key=lambda j: (-cosines[j], j))[:k]:
            votes[i, labels[j]] += math.exp(cosines[j] / temperature)
    return votes


@pytest.mark.parametrize("k", [1, 7, 50])
@pytest.mark.parametrize("chunk", [1, 8, 100])
def test_equals_the_naive_loop(k, chunk):
    generator = torch.Generator().manual_seed(0)
    train = normalize(torch.randn(50, 6, generator=generator, dtype=torch.float64))
    test = normalize(torch.randn(23, 6, generator=generator, dtype=torch.float64))
    labels = torch.randint(0, 4, (50,), generator=generator)
    expected = naive_votes(train, labels, test, k, 0.07, 4)
    torch.testing.assert_close(knn_predict(train, labels, test, k, 0.07, 4, chunk), expected)


def test_worked_by_hand():
    """Class 0 has one neighbour at cosine 1, class 1 two at .6 and .8: who wins depends on the temperature."""
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, -0.6], [-1.0, 0.0]])
    labels, test = torch.tensor([0, 1, 1, 0]), torch.tensor([[1.0, 0.0]])
    votes = knn_predict(train, labels, test, k=3, temperature=1.0, classes=2)
    expected = torch.tensor([[math.e, math.exp(0.6) + math.exp(0.8)]], dtype=torch.float64)
    torch.testing.assert_close(votes, expected, rtol=1e-6, atol=0)
    assert knn_accuracy(train, labels, test, torch.tensor([1]), 3, 1.0, 2) == 100.0  # 2.72 < 1.82 + 2.23
    assert knn_accuracy(train, labels, test, torch.tensor([1]), 3, 0.1, 2) == 0.0  # 22026 > 403 + 2981


def test_equal_cosines_go_to_the_earlier_row():
    train = torch.tensor([[0.0, 1.0]] + [[1.0, 0.0]] * 300)
    labels = torch.arange(301)
    votes = knn_predict(train, labels, torch.tensor([[1.0, 0.0]]), k=3, temperature=0.5, classes=301)
    assert votes[0].nonzero()[:, 0].tolist() == [1, 2, 3]


def test_equal_votes_go_to_the_lower_class():
    assert first_argmax(torch.tensor([[1.0, 2.0, 2.0], [3.0, 3.0, 3.0], [0.0, -1.0, 5.0]])).tolist() == [1, 0, 2]
    train = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    test = torch.tensor([[1.0, 0.0]])
    assert knn_accuracy(train, torch.tensor([2, 1]), test, torch.tensor([1]), 2, 0.07, 3) == 100.0


def test_accuracy_is_a_percentage():
    train, labels = torch.eye(4), torch.arange(4)
    assert knn_accuracy(train, labels, torch.eye(4), torch.tensor([0, 1, 2, 0]), 1, 0.07, 4) == 75.0


@pytest.mark.parametrize(("k", "temperature", "part"), [(3, 0.07, "k=3"), (0, 0.07, "k=0"), (1, 0.0, "temperature")])
def test_impossible_requests_are_errors(k, temperature, part):
    with pytest.raises(UserError, match=part):
        knn_predict(torch.eye(2), torch.arange(2), torch.eye(2), k, temperature, 2)


def test_small_temperatures_stay_finite():
    votes = knn_predict(torch.eye(2), torch.arange(2), torch.eye(2), 2, 0.002, 2)
    assert votes.isfinite().all()
