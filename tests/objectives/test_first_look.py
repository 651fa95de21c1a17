"""The look before training: what it may change, what it says, and who gets it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from core.candidate import START, AllocationPlan, Candidate, DistilPlan, GroupPlan, Rung
from core.layers import evaluating
from core.quantise.ptq import rounded
from core.train import Device
from objectives.allocation import settle
from objectives.bench import Stages, Workbench
from objectives.budget import Known, Limits
from objectives.evaluate import evaluate, shape_of
from objectives.first_look import RULE, adapt, first_look, rounded_copy
from objectives.rungs import accuracy_now
from tests.tiny_nets import conv, plan_of

FLOAT = Device(torch.device("cpu"), None)


def of_bits(bits: int, ratio: float = 0.0) -> Candidate:
    return Candidate(student="light_cnn", width=0.25, groups=(GroupPlan(weight_bits=bits, prune_ratio=ratio),), round_to=1)


def test_the_look_leaves_the_network_as_it_is(bench: Workbench) -> None:
    parent = bench.parent("light_cnn", 0.25).train()
    before = copy.deepcopy(parent.state_dict())
    first_look(parent, shape_of(of_bits(2), bench)[1], bench)
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items())
    assert parent.training


def test_statistics_are_those_of_the_images() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    norm, images = net[1], torch.randn(96, 3, 8, 8)
    adapt(net, images, FLOAT)
    maps = net[0](images).transpose(0, 1).flatten(1)
    assert torch.allclose(norm.running_mean, maps.mean(1), atol=1e-5)
    assert torch.allclose(norm.running_var, maps.var(1), rtol=1e-4)
    assert (norm.momentum, norm.training) == (0.1, False)


@pytest.mark.parametrize("images", [1, 2, 129])
def test_no_batch_has_a_single_image(images: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4)).eval()  # maps of 1 x 1: one image has no variance
    adapt(net, torch.randn(images, 3, 8, 8), FLOAT)
    assert bool(torch.isfinite(net[1].running_var).all())


def test_a_network_without_batch_norm_has_nothing_to_adapt() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    before = copy.deepcopy(net.state_dict())
    adapt(net, torch.randn(4, 3, 8, 8), FLOAT)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_neither_prunes_nor_rounds_is_as_good_as_its_parent(bench: Workbench) -> None:
    parent = bench.parent("light_cnn", 0.25)
    whole = first_look(parent, shape_of(of_bits(16), bench)[1], bench)
    with evaluating(parent):
        assert whole.accuracy == pytest.approx(accuracy_now(parent, bench), abs=0.1)


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_weights_are_rounded_to_the_bits_of_their_layer(bits: int, bench: Workbench) -> None:
    parent, plan = bench.parent("light_cnn", 0.25), shape_of(of_bits(bits), bench)[1]
    copied = rounded_copy(parent, plan)
    for layer in plan.layers:
        weight, own = (net.get_submodule(layer.name).weight.flatten(1) for net in (copied, parent))
        assert torch.equal(weight, own) is (layer.weight_bits > 8)
        assert all(len(channel.unique()) <= 2**layer.weight_bits for channel in weight)


def test_layers_that_share_their_weight_are_rounded_each_by_its_own_bits() -> None:
    torch.manual_seed(0)
    tied = nn.Sequential(conv(3, 3), conv(3, 3), conv(3, 3)).eval()
    tied[1].weight = tied[2].weight = tied[0].weight
    copied = rounded_copy(tied, plan_of(tied, bits={"0": 2, "1": 4, "2": 16}, execution="float"))
    weight = tied[0].weight.detach()
    expected = [rounded(weight, 2, RULE).dequantised(), rounded(weight, 4, RULE).dequantised(), weight]
    assert all(torch.equal(layer.weight, values) for layer, values in zip(copied, expected, strict=True))


LEARNS = Candidate(student="light_cnn", width=0.25, round_to=1, allocation=AllocationPlan(strategy="sdq", choices=(2, 8), budget_bits=4.0))


@pytest.mark.parametrize(
    ("candidate", "looked"),
    [
        (of_bits(4, 0.5), True),
        (of_bits(4, 0.5).model_copy(update={"distil": DistilPlan(init="scratch")}), False),  # its weights tell nothing
        (LEARNS, False),  # its bits are not known
    ],
)
def test_it_is_the_first_rung_where_there_are_a_parent_and_bits(
    candidate: Candidate, looked: bool, bench: Workbench, tmp_path: Path
) -> None:
    class Notes:
        rungs: list[Rung] = []

        def note(self, **facts: object) -> None: ...

        def before_training(self, known: Known) -> None:
            self.rungs = []

        def at_rung(self, known: Known, rung: Rung) -> None:
            self.rungs.append(rung)

    gate, candidate = Notes(), settle(candidate, bench, Stages())
    pruned, plan = shape_of(candidate, bench)
    evaluate(candidate, pruned, plan, bench, Limits(), Stages(), tmp_path, gate)
    looks = [(rung.stage, rung.epoch) for rung in gate.rungs if rung.stage == START]
    assert looks == ([(START, 0.0)] if looked else [])
    assert (gate.rungs[0].stage == START) is looked
