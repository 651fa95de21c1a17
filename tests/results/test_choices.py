"""What a candidate chose is told by every output, and how it runs as its quantiser leaves it."""

import pytest
import yaml

from core.candidate import IN_FLOAT, OWN_BITS, AllocationPlan, Candidate, DistilPlan, GroupPlan, LayerPlan
from core.compress import STORED
from core.quantise import MODEL_QUANTISERS, QUANTISERS
from results.choices import COLUMNS, columns, executions, float_share, unusual
from results.effects import features
from results.note import trial_note
from results.plots import genes
from search.schema import FOLDER

ROOT = FOLDER.parents[1]
CHOSEN = Candidate(
    student="resnet8",
    distil=DistilPlan(loss="sdd", grid=4, complementary_weight=3.0),
    round_to=4,
    edge_bits=None,
    rate_weight=0.25,
    sparsity=0.5,
    importance="taylor",
    order="quantise, prune",
    allocation=AllocationPlan(strategy="haq", budget_bits=3.5),
)
SETTINGS = ("order quantise, prune", "round_to 4", "importance taylor", "rate_weight 0.25", "sparsity 0.5", "grid 4")
SETTINGS += ("complementary_weight 3.0", "allocation haq", "budget_bits 3.5")


def test_quantisers_that_compute_in_float_or_keep_bits_of_their_own_are_those_of_the_table() -> None:
    layer = LayerPlan(name="conv", out_channels=8, weight_bits=4, execution="int8")
    for name in (*QUANTISERS, *MODEL_QUANTISERS):
        left = layer.model_copy(update=STORED.get(name, lambda layer: {})(layer))
        assert (left.execution == "float", left != layer) == (name in IN_FLOAT, name in IN_FLOAT | OWN_BITS), name


@pytest.mark.parametrize(("quantiser", "share"), [("lsq", 0.25), ("ptq", 0.25), ("codebook", 1.0), ("float", 1.0)])
def test_every_output_says_how_the_layers_run(quantiser, share, make_record):
    groups = (GroupPlan(weight_bits=4, execution="float"), *(GroupPlan(weight_bits=4),) * 3)
    candidate = Candidate(student="resnet8", groups=groups, quantiser=quantiser)
    record = make_record(0, 0.9, 5_000, 0.1).model_copy(update={"candidate": candidate})
    runs = ["float"] * 4 if share == 1.0 else ["float", "int8", "int8", "int8"]
    assert executions(candidate) == runs
    assert float_share(candidate) == features(record)[2] == columns(candidate)["float_share"] == share
    assert columns(candidate)["executions"] == " ".join(runs)
    assert genes(candidate)[0] == f"bits {'4f 4f 4f 4f' if share == 1.0 else '4f 4 4 4'} (f: float)"
    assert f"execution, first layer to last: {'float (4 times)' if share == 1.0 else 'float, int8 (3 times)'}" in trial_note(record, "x")


def test_what_is_not_usual_is_said_and_what_is_usual_is_not(make_record):
    record = make_record(0, 0.9, 5_000, 0.1).model_copy(update={"candidate": CHOSEN})
    note, hovered = trial_note(record, "x").replace("\\", ""), " ".join(genes(CHOSEN))
    for setting in SETTINGS:
        assert setting in note, setting
        assert setting in hovered, setting
    assert "edge_bits null" in hovered
    assert unusual(Candidate(student="resnet8")) == {}
    assert set(columns(CHOSEN)) == set(COLUMNS)


def test_the_csv_has_a_column_for_whatever_a_shipped_recipe_varies():
    named = {"name": "student", "execution": "executions", "ratio": "ratios", "weight_bits": "bits", "strategy": "allocation"}
    for path in sorted((ROOT / "spaces").rglob("*.yaml")):
        space = yaml.safe_load(path.read_text(encoding="utf-8"))
        sections = {key: value for key, value in space.items() if isinstance(value, dict)} | {"": {"order": space.get("order", "")}}
        for section, values in sections.items():
            varied = [key for key, value in values.items() if isinstance(value, list | dict)]
            assert {named.get(key, key) for key in varied} <= {*COLUMNS, "student", "width"}, (path, section)
