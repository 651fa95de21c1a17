"""Deep Compression's quantiser against its paper."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from core.candidate import SparsityRule
from core.quantise.codebook import SharedWeight, cluster, codebook, nearest_of
from core.quantise.masks import keep_largest, kept_in, lamp_scores
from core.quantise.setting import Setting
from core.quantise.stored import CodebookWeight
from tests.tiny_nets import CLASSES, Residual, images, plan_of, settled


def weight(seed: int = 0) -> Tensor:
    return torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_centroids_start_evenly_spaced_between_the_smallest_and_the_largest_weight() -> None:
    values = weight().flatten()
    torch.testing.assert_close(cluster(values, 8, iterations=0), torch.linspace(float(values.min()), float(values.max()), 8))


@pytest.mark.parametrize("count", [4, 8])  # no cluster runs empty: scikit-learn would move it
def test_clusters_are_those_of_scikit_learn_from_the_same_start(count: int) -> None:
    values = weight().flatten()
    start = cluster(values, count, iterations=0).double().reshape(-1, 1).numpy()
    expected = KMeans(count, init=start, n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(values.double().reshape(-1, 1).numpy())
    found = cluster(values, count, iterations=300)
    torch.testing.assert_close(found, torch.tensor(sorted(expected.cluster_centers_.flatten())).float(), rtol=1e-3, atol=1e-3)


def test_the_error_falls_with_every_iteration_and_centroids_stay_in_order() -> None:
    values = weight().flatten()
    errors = []
    for iterations in range(6):
        centroids = cluster(values, 16, iterations)
        assert (centroids.diff() >= 0).all()
        errors.append(float((centroids[nearest_of(centroids, values)] - values).square().sum()))
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_the_gradient_of_a_centroid_is_the_sum_over_its_weights() -> None:
    shared = SharedWeight(weight(), torch.ones_like(weight(), dtype=torch.bool), 3, 20)
    grad = weight(1)
    shared(weight()).backward(grad)
    assert shared.lengthened.grad is not None
    summed = torch.stack([grad[shared.indices == index].sum() for index in range(8)])
    torch.testing.assert_close(shared.lengthened.grad * shared.sizes.sqrt(), summed, rtol=1e-4, atol=1e-4)


def test_a_step_of_sgd_moves_a_centroid_as_its_weights_would_on_average() -> None:
    shared = SharedWeight(weight(), torch.ones_like(weight(), dtype=torch.bool), 3, 20)
    before, grad = shared.centroids().detach(), weight(1)
    shared(weight()).backward(grad)
    torch.optim.SGD(shared.parameters(), lr=0.1).step()
    mean = torch.stack([grad[shared.indices == index].mean() for index in range(8)])
    torch.testing.assert_close(shared.centroids().detach(), before - 0.1 * mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparsity", [0.29, 0.5, 0.9, 0.999])
def test_equal_magnitudes_are_pruned_to_the_share_too(sparsity: float) -> None:
    signs = torch.ones(10, 10).where(torch.eye(10) > 0, -torch.ones(10, 10))
    kept = keep_largest(signs, Setting(sparsity=sparsity))
    assert int(kept.sum()) == max(1, round(100 * (1 - sparsity)))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_a_ratio_prunes_that_share_and_the_smallest_weights(sparsity: float) -> None:
    kept = keep_largest(weight(), Setting(sparsity=sparsity))
    assert float((~kept).float().mean()) == pytest.approx(sparsity, abs=0.5 / weight().numel())
    if sparsity:
        assert weight().abs()[~kept].max() <= weight().abs()[kept].min()


def test_a_threshold_is_in_standard_deviations_and_never_prunes_a_whole_layer() -> None:
    kept = keep_largest(3.0 * weight(), Setting(sparsity=1.0, sparsity_by="std"))
    assert float((~kept).float().mean()) == pytest.approx(0.683, abs=0.03)
    assert int(keep_largest(weight(), Setting(sparsity=100.0, sparsity_by="std")).sum()) == 1


def test_a_global_share_takes_the_smallest_of_all_layers_and_leaves_each_layer_its_largest() -> None:
    weights = {"small": 0.1 * weight(), "large": weight(), "tiny": 1e-6 * weight()}
    kept = kept_in(weights, Setting(sparsity=0.6, sparsity_by="global"))
    total = sum(each.numel() for each in weights.values())
    assert sum(int((~each).sum()) for each in kept.values()) == round(0.6 * total) - 1  # the largest of "tiny" stays
    assert [int(kept["tiny"].sum()), bool(kept["tiny"][weights["tiny"].abs() == weights["tiny"].abs().max()])] == [1, True]
    smallest = min(float(weights[name].abs()[kept[name]].min()) for name in ("small", "large"))
    assert all(float(weights[name].abs()[~kept[name]].max()) <= smallest for name in weights)
    assert kept["large"].float().mean() > kept["small"].float().mean()


@pytest.mark.parametrize("rule", ["global", "lamp", "ratio"])
def test_where_no_layer_may_lose_weights_none_does(rule: SparsityRule) -> None:
    """All layers have 16 bits, say."""
    assert kept_in({}, Setting(sparsity=0.6, sparsity_by=rule)) == {}


def test_lamp_s_scores_are_a_weight_s_square_over_those_that_are_no_smaller() -> None:
    scores = lamp_scores(torch.tensor([[2.0, -1.0], [0.0, 3.0]]))
    assert scores.flatten().tolist() == pytest.approx([4 / 13, 1 / 14, 0.0, 1.0])
    assert lamp_scores(torch.tensor([1.0, 1.0])).tolist() == pytest.approx([0.5, 1.0])  # of equal ones the first go
    assert lamp_scores(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    assert bool(lamp_scores(1e-30 * weight()).isfinite().all())


def test_lamp_does_not_look_at_a_layer_s_scale_and_within_a_layer_takes_the_smallest() -> None:
    rule = Setting(sparsity=0.6, sparsity_by="lamp")
    weights = {"one": weight(), "other": weight(), "wide": torch.cat([weight(), 0.01 * weight()])}
    kept, scaled = kept_in(weights, rule), kept_in(weights | {"other": 1000.0 * weights["other"]}, rule)
    assert all(torch.equal(kept[name], scaled[name]) for name in weights)
    assert sum(int((~each).sum()) for each in kept.values()) == round(0.6 * sum(each.numel() for each in weights.values()))
    for name, each in kept.items():
        assert weights[name].abs()[~each].max() <= weights[name].abs()[each].min()
    assert kept["wide"].float().mean() < kept["one"].float().mean()  # half of it is nearly nothing


@pytest.mark.parametrize("rule", ["ratio", "std", "global", "lamp"])
def test_without_sparsity_every_weight_stays(rule: SparsityRule) -> None:
    assert all(bool(each.all()) for each in kept_in({"a": weight(), "b": weight()}, Setting(sparsity_by=rule)).values())


def train(model: nn.Module, penalty: object = None) -> nn.Module:
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    x, y = images(32), torch.arange(32) % CLASSES
    for _ in range(6):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


def test_pruned_weights_stay_zero_through_both_trainings_and_the_others_share_what_bits_allow() -> None:
    torch.manual_seed(0)
    model = settled(Residual())
    bits = {layer.name: 3 for layer in plan_of(model).layers}
    zeros = {name: ~keep_largest(model.get_submodule(name).weight, Setting(sparsity=0.6)) for name in bits}
    seen: list[Tensor] = []

    def finetune(network: nn.Module, penalty: object = None) -> nn.Module:
        train(network)
        seen.append(network.get_submodule("conv2").weight.detach().clone())
        return network

    found = codebook(model, bits, finetune, Setting(sparsity=0.6))
    assert len(seen) == 2
    assert all((each[zeros["conv2"]] == 0).all() for each in seen)
    for name, kept in found.items():
        assert isinstance(kept, CodebookWeight)
        values = kept.dequantised()
        assert (values[zeros[name]] == 0).all()
        assert (values[~zeros[name]] != 0).all()
        assert len(values.unique()) <= 8
    torch.testing.assert_close(found["conv2"].dequantised(), seen[1], rtol=2e-3, atol=1e-6)


def test_training_moves_the_shared_values_and_no_weight_to_another_cluster() -> None:
    torch.manual_seed(0)
    model = settled(Residual())
    bits = {layer.name: 2 for layer in plan_of(model).layers}
    before = codebook(model, bits, lambda network: network)
    after = codebook(model, bits, train)
    for name in bits:
        first, second = before[name], after[name]
        assert isinstance(first, CodebookWeight)
        assert isinstance(second, CodebookWeight)
        assert torch.equal(first.indices, second.indices)
        assert not torch.equal(first.codebook, second.codebook)
