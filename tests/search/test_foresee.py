"""Predictions add up: corners span the space, and the training time is a line through two measured networks."""

from __future__ import annotations

import pytest

from core.candidate import Candidate
from core.config import TrainConfig
from core.yaml_io import parse
from search.foresee import Draw, Speed, corners, reach, whole_epochs
from search.space import Constraints, Space, load_space
from tests.search.studies import SPACE, Path


def test_corners_are_the_ends_of_every_range() -> None:
    space = load_space(Path(SPACE))
    found = corners(space)
    assert len(found) == 2 * 4
    bits = {group.weight_bits for candidate in found for group in candidate.groups}
    ratios = {group.prune_ratio for candidate in found for group in candidate.groups}
    assert bits == {2, 8}
    assert ratios == {0.0, 0.6}
    assert {candidate.width for candidate in found} == {0.25, 1.0}


def test_a_space_without_choices_has_one_corner() -> None:
    assert len(corners(parse(Space, {"student": {"name": "resnet8"}}, "here"))) == 1


def test_a_step_has_a_price_below_which_it_does_not_fall() -> None:
    speed = Speed((100, 300), (1.0, 3.0))
    assert [speed.at(macs) for macs in (10, 100, 200, 300, 400)] == pytest.approx([1.0, 1.0, 2.0, 3.0, 4.0])
    assert Speed((100, 100), (2.0, 2.0)).at(50) == 2.0


@pytest.mark.parametrize(
    ("sizes", "whole"), [((), 8.0), (((16, 0.5),), 5.0), (((16, 0.25), (24, 0.75)), 0.5 + 2.25 + 2.0), (((64, 0.5),), 8.0)]
)
def test_small_images_take_as_much_less_time_as_they_have_fewer_pixels(sizes: tuple[tuple[int, float], ...], whole: float) -> None:
    assert whole_epochs(TrainConfig(epochs=8.0, early_sizes=sizes), 32) == pytest.approx(whole)


def draw(size: int, ms: float) -> Draw:
    return Draw(Candidate(student="a"), size, ms, 9, 9, 0.1)


@pytest.mark.parametrize(
    ("limits", "warned"), [({}, 0), ({"latency_ms": 0.23}, 0), ({"latency_ms": 0.2}, 1), ({"latency_ms": 0.2, "size_kb": 4.9}, 2)]
)
def test_a_limit_below_everything_measured_is_out_of_reach(limits: dict[str, float], warned: int) -> None:
    lines = reach([draw(5000, 0.4), draw(9000, 0.23)], Constraints(**limits))
    assert lines[0][1].startswith("5.0 to 9.0 KB, 0.230 to 0.400 ms")
    assert [head for head, _ in lines[1:]] == ["warning"] * warned
