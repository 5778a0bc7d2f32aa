import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC

from erasure.core.errors import ModelError, NotApplicableError, OptionError
from erasure.evaluation.membership_inference import called_non_members, klom, loss_auc, u_lira
from erasure.evaluation.outputs import ClassifierOutputs
from erasure.evaluation.predictions import Predictions
from erasure.evaluation.settings import EvaluationConfig

RANDOM = np.random.default_rng(0)
HIGH, LOW = RANDOM.uniform(0.95, 1.0, 60), RANDOM.uniform(0.0, 0.4, 60)


def test_the_attack_knows_separable_confidences_apart():
    assert not called_non_members(HIGH, LOW, HIGH[:9]).any()
    assert called_non_members(HIGH, LOW, LOW[:9]).all()


def test_the_attack_learns_nothing_from_identical_confidences():
    same = np.full(30, 0.7)
    assert not called_non_members(same, same, same).any()
    values = RANDOM.uniform(0, 1, 400)  # the same distribution on both sides
    rates = [called_non_members(*np.split(RANDOM.permutation(values), [150, 300]), seed=i).mean() for i in range(20)]
    assert 0.3 < np.mean(rates) < 0.7


def test_the_attack_is_the_svc_of_the_paper_on_equally_many_of_each_side():
    members, others, forgotten = HIGH - 0.3, LOW + 0.4, RANDOM.uniform(0, 1, 50)
    inside = np.repeat([1, 0], 60)
    svc = SVC(C=3, gamma="auto", kernel="rbf").fit(np.concatenate([members, others])[:, None], inside)
    found = called_non_members(members, others, forgotten)
    assert (found == (svc.predict(forgotten[:, None]) == 0)).all() and 0 < found.mean() < 1
    many = np.concatenate([members] * 5)
    assert (called_non_members(many, others, forgotten, 3) == called_non_members(many, others, forgotten, 3)).all()


def test_an_attack_without_samples_is_refused():
    with pytest.raises(NotApplicableError, match="test samples"):
        called_non_members(HIGH, LOW[:0], HIGH)
    with pytest.raises(NotApplicableError, match="loss_auc"):
        loss_auc(HIGH[:0], LOW)


def test_the_loss_auc_is_that_of_scikit_learn_also_with_ties():
    forgotten, test = RANDOM.integers(0, 9, 40) / 4, RANDOM.integers(2, 11, 70) / 4
    value, (low, high) = loss_auc(forgotten, test)
    assert value == pytest.approx(roc_auc_score(np.repeat([0, 1], (40, 70)), np.concatenate([forgotten, test])))
    assert low < value < high
    assert loss_auc(test, test)[0] == pytest.approx(0.5)
    assert loss_auc(test, test + 9)[0] == 1.0


def test_the_interval_of_the_loss_auc_covers_it():
    covered = 0
    for _ in range(200):  # two normal distributions one standard deviation apart: AUC = Phi(1 / sqrt 2)
        low, high = loss_auc(RANDOM.normal(0, 1, 60), RANDOM.normal(1, 1, 90))[1]
        covered += low < 0.7602 < high
    assert 180 <= covered <= 199


def test_confidences_are_probabilities_of_the_label():
    logits, labels = RANDOM.normal(0, 3, (20, 4)), RANDOM.integers(0, 4, 20)
    predictions = Predictions(logits, labels)
    p = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(20), labels]
    assert predictions.confidences == pytest.approx(p) and predictions.losses == pytest.approx(-np.log(p))
    assert predictions.margins == pytest.approx(np.log(p / (1 - p)))
    assert (predictions.correct == (p > 0.5))[p > 0.5].all()
    sure = Predictions(np.array([[90.0, 0.0]]), np.array([0]))
    assert sure.confidences == 1.0 and sure.margins == 90.0  # where log(p / (1 - p)) would be infinite


def test_damaged_weights_are_reported(classifier, task, digits):
    next(classifier.network.parameters()).data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        ClassifierOutputs(classifier, task, digits, EvaluationConfig()).predictions("retain")


def test_u_lira_is_a_naive_bayes_of_each_sample_without_the_judged_models():
    unlearned, retrained = RANDOM.normal(1, 1, (8, 3)), RANDOM.normal(0, 2, (8, 3))
    right = np.zeros(3)
    for sample in range(3):
        for i in range(8):
            rest = np.concatenate([np.delete(side[:, sample], i) for side in (unlearned, retrained)])
            bayes = GaussianNB(priors=[0.5, 0.5], var_smoothing=0).fit(rest[:, None], np.repeat([1, 0], 7))
            # scikit-learn divides by n, we by n - 1, as befits so few models
            bayes.var_ *= 7 / 6
            right[sample] += bayes.predict(unlearned[i : i + 1, sample : sample + 1])[0] == 1
            right[sample] += bayes.predict(retrained[i : i + 1, sample : sample + 1])[0] == 0
    assert u_lira(unlearned, retrained) == pytest.approx(100 * right / 16)


def test_u_lira_is_right_half_of_the_time_about_alike_models_and_always_about_others():
    alike = u_lira(RANDOM.normal(0, 1, (16, 400)), RANDOM.normal(0, 1, (16, 400)))
    assert 48 < alike.mean() < 52
    assert (u_lira(RANDOM.normal(0, 1, (16, 5)), RANDOM.normal(50, 1, (16, 5))) == 100).all()
    same = np.full((6, 2), 3.0)
    assert (u_lira(same, same) == 50).all()


def test_klom_by_hand():
    retrained = np.array([[0.0], [0.0], [10.0], [10.0]])
    assert klom(retrained, retrained) == pytest.approx([0.0])
    assert klom(np.full((4, 1), 0.0), retrained) == pytest.approx([np.log(2)])  # 1 log(1 / 0.5)
    apart = np.array([[0.0], [0.0], [0.0], [5.0]])
    wanted = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 1e-5)
    assert klom(apart, retrained) == pytest.approx([wanted])
    assert klom(np.full((4, 1), 500.0), np.full((4, 1), 300.0)) == pytest.approx([0.0])  # both clipped to 100


def test_too_few_models_say_nothing():
    with pytest.raises(OptionError, match="at least 4"):
        u_lira(np.zeros((3, 2)), np.zeros((3, 2)))
    with pytest.raises(OptionError, match="as many of each"):
        klom(np.zeros((5, 2)), np.zeros((4, 2)))
