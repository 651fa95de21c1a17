"""Predictions add up: corners span the space, and the training time is a line through two measured networks."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from core.candidate import Candidate
from core.config import Config, TeacherConfig, TrainConfig, ViewsConfig
from core.teacher_logits import view_bytes
from core.train import Device
from core.yaml_io import parse
from search.foresee import Draw, corners, disk, foresee, hours_text, parts_of, reach
from search.preflight import Inputs
from search.space import Constraints, Space, load_space
from search.speed import Speed, dense_of, seconds_per_image, training_speed, whole_epochs
from tests.search.studies import SPACE, Path
from tests.tiny_data import search_data


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
    return Draw(Candidate(student="a"), size, size, ms, 9, 9, 0.1, corner=True)


@pytest.mark.parametrize(
    ("limits", "warned"), [({}, 0), ({"latency_ms": 0.23}, 0), ({"latency_ms": 0.2}, 1), ({"latency_ms": 0.2, "size_kb": 4.9}, 2)]
)
def test_a_limit_below_everything_measured_is_out_of_reach(limits: dict[str, float], warned: int) -> None:
    lines = reach([draw(5000, 0.4), draw(9000, 0.23)], Constraints(**limits))
    assert lines[0][1].startswith("5.0 to 9.0 KB, 0.230 to 0.400 ms")
    assert [head for head, _ in lines[1:]] == ["warning"] * warned


def test_corners_that_there_was_no_time_for_are_not_among_the_measured() -> None:
    assert "(2 candidates measured, the corners of the space among them)" in reach([draw(5000, 0.4)] * 2, Constraints(), 2)[0][1]
    assert (
        "(2 candidates measured, of 8 corners of the space; no time for the others)" in reach([draw(5000, 0.4)] * 2, Constraints(), 8)[0][1]
    )
    later = [draw(5000, 0.4), replace(draw(6000, 0.4), corner=False)]  # some corners were beyond a budget
    assert "the corners of the space among them" in reach(later, Constraints(), 8)[0][1]


def test_a_limit_of_coded_bytes_is_held_against_what_coding_may_reach() -> None:
    coded = [replace(draw(140_000, 0.4), least_bytes=20_000)]
    lines = reach(coded, Constraints(size_kb=80), 1)
    assert lines[0][1].startswith("140.0 to 140.0 KB bit-packed, less once they are trained and coded, 0.400")
    assert [head for head, _ in lines[1:]] == []
    assert reach(coded, Constraints(size_kb=19), 1)[1] == ("warning", "19 KB is out of reach: the floor is 20.0 KB")


# --- training that is timed ------------------------------------------------------------------------------------------

PER_IMAGE_S = 0.01
INPUTS = Inputs(Device(torch.device("cpu"), None), search_data(), ())
TINY = parse(Space, {"student": {"name": "resnet8", "width": [0.25, 0.5]}, "quantise": {"weight_bits": [4, 8]}}, "here")
CONFIG = Config(teacher=TeacherConfig(name="resnet8"), views=ViewsConfig(number=4))


class Slow(nn.Module):
    """A network that takes its time for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = list[int]()
        self.classifier = nn.Linear(64, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        time.sleep(PER_IMAGE_S * len(images))
        return self.classifier(images.flatten(1))


@pytest.mark.parametrize(("limit_s", "fewest", "most"), [(0.6, 8, 8), (1.2, 9, 20), (20.0, 32, 32)])
def test_a_step_that_takes_long_is_timed_with_fewer_images(limit_s: float, fewest: int, most: int) -> None:
    network, begun = Slow(), time.monotonic()
    found = seconds_per_image(network, TrainConfig(batch_size=32), CONFIG, INPUTS, limit_s)
    assert found == pytest.approx(PER_IMAGE_S, rel=0.5)
    assert fewest <= max(network.batches) <= most
    assert time.monotonic() - begun < limit_s + most * PER_IMAGE_S + 0.5


def test_nothing_is_timed_once_the_time_is_over() -> None:
    begun, network = time.monotonic(), Slow()
    assert seconds_per_image(network, TrainConfig(batch_size=32), CONFIG, INPUTS, -1.0) is None
    assert network.batches == []
    assert seconds_per_image(network, TrainConfig(batch_size=32), CONFIG, INPUTS, 0.5 * 8 * PER_IMAGE_S) is None
    assert network.batches == [8]  # what has begun cannot be interrupted
    dense = dense_of(TINY, CONFIG, INPUTS.data.info)
    assert training_speed(dense, CONFIG, INPUTS, begun - 1.0) == (None, [None])


def test_what_was_not_timed_is_named_and_what_was_is_a_lower_limit() -> None:
    draws = [draw(5000, 0.4)]
    lines = dict(foresee(TINY, CONFIG, INPUTS, 10, draws, deadline=time.monotonic() - 1.0))
    assert lines["hours"].startswith("at least ")
    assert "teacher not timed, parents not timed, training not timed, engines " in lines["hours"]
    assert "; training takes too long to be timed in what is left of 30 s;" in lines["hours"]
    dense = dense_of(TINY, CONFIG, INPUTS.data.info)
    parts = parts_of(TINY, CONFIG, INPUTS, 10, draws, dense, Speed((1, 9), (1e-3, 2e-3)), [0.0])
    assert None not in parts.values()
    assert hours_text(parts).startswith("about ")


def test_one_network_is_timed_once() -> None:
    alone = parse(Space, {"student": {"name": "resnet8", "width": 0.25}, "quantise": {"weight_bits": [4, 8]}}, "here")
    dense = dense_of(alone, CONFIG, INPUTS.data.info)
    speed, _ = training_speed(dense, CONFIG, INPUTS, time.monotonic() + 5.0)
    assert speed is not None
    assert speed.seconds[0] == speed.seconds[1]


def test_the_disk_holds_models_parents_and_kept_answers() -> None:
    dense, info = dense_of(TINY, CONFIG, INPUTS.data.info), INPUTS.data.info
    assert [each.file_bytes for each in dense] == sorted(each.file_bytes for each in dense)
    models, parents = 10 * (5000 + 9), sum(each.file_bytes for each in dense)
    answers = 4 * view_bytes(len(INPUTS.data.train), len(info.classes), 1)
    for changes, parts in (
        ({}, (models, parents, answers)),
        ({"views": ViewsConfig(number=4, cache="off")}, (models, parents, 0)),
    ):
        _, text = disk(TINY, CONFIG.model_copy(update=changes), INPUTS, 10, [draw(5000, 0.4)], dense)
        said = ", ".join(f"{name} {count / 1e6:.1f}" for name, count in zip(("models", "parents", "kept answers"), parts, strict=True))
        assert text == f"about {sum(parts) / 1e6:.1f} MB: {said}"
    scratch = parse(Space, TINY.model_dump(mode="json") | {"distil": {"init": "scratch"}}, "here")
    assert "parents 0.0" in disk(scratch, CONFIG, INPUTS, 10, [draw(5000, 0.4)], dense)[1]
