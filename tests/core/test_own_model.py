"""The user's own network and weights: what loads, and what is refused in one line."""

from pathlib import Path

import pytest
import torch
from torch import nn

from core.errors import UserError
from core.students import light_cnn
from core.students.own import load_own_model, load_weights, save_weights
from core.students.own_sources import helpers, source_digest

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(torch.relu(self.bn(self.conv(x))).mean((2, 3)))

def build(classes, channels=3):
    return Net(classes, channels)

def build_all(**keywords):
    return Net(keywords["classes"], keywords["channels"])

def build_fixed():
    return Net(4, 3)

def build_needing(classes, depth):
    return Net(classes, 3)

def build_crash(classes):
    raise ValueError("no such\\nthing")

def build_exit():
    raise SystemExit(3)

def build_dict():
    return {}

def build_tuple(classes):
    class Two(Net):
        def forward(self, x):
            return super().forward(x), x
    return Two(classes, 3)

def build_view(classes):
    class View(Net):
        def forward(self, x):
            return self.head(torch.relu(self.conv(x)).view(-1, 8 * 6 * 6)[:, :8])
    return View(classes, 3)

def build_aux(classes):
    class Aux(Net):
        def forward(self, x):
            found = super().forward(x)
            return (found, found) if self.training else found
    return Aux(classes, 3)

def build_together(classes):
    model = Net(classes, 3)
    model.bn = nn.BatchNorm2d(8, track_running_stats=False)
    return model

def build_softmax(classes):
    class Soft(Net):
        def forward(self, x):
            return super().forward(x).softmax(1)
    return Soft(classes, 3)

def build_frozen(classes):
    return Net(classes, 3).requires_grad_(False)

def build_picky(classes):
    class Picky(Net):
        def forward(self, x):
            return super().forward(x[:, :2])
    return Picky(classes, 3)
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "my_net.py"
    path.write_text(NET)
    return path


def load(spec: str, classes: int = 4) -> nn.Module:
    return load_own_model(spec, classes=classes, channels=3, image_size=8)


@pytest.mark.parametrize("function", ["build", "build_all", "build_fixed", "build_frozen"])
def test_the_function_is_called_with_the_keywords_that_it_takes(net: Path, function: str) -> None:
    model = load(f"{net}:{function}")
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    assert model.training


def test_the_dry_run_leaves_no_trace_in_the_network(net: Path) -> None:
    model = load(f"{net}:build")
    assert model.bn.num_batches_tracked == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_class_can_stand_for_the_function(net: Path) -> None:
    assert type(load(f"{net}:Net")).__name__ == "Net"


def test_two_files_of_one_name_do_not_shadow_each_other(net: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "my_net.py"
    other.parent.mkdir()
    other.write_text(NET.replace("8, 3)", "6, 3)").replace("(8", "(6"))
    assert load(f"{net}:build").conv.out_channels == 8
    assert load(f"{other}:build").conv.out_channels == 6
    assert load(f"{net}:build").conv.out_channels == 8


def test_files_beside_the_model_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "parts_of_my_net.py").write_text("from torch import nn\nhead = lambda classes: nn.Linear(192, classes)\n")
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\nfrom parts_of_my_net import head\n\ndef build(classes):\n"
        "    return nn.Sequential(nn.Flatten(), head(classes))\n"
    )
    assert load(f"{path}:build")[1].out_features == 4


def test_what_a_network_imports_is_read_anew_where_it_was_changed_or_lies_elsewhere(tmp_path: Path) -> None:
    """Else a teacher would be served with another one's answers."""
    source = (
        "from torch import nn\nfrom parts.head import head\n\ndef build(classes):\n    return nn.Sequential(nn.Flatten(), head(classes))\n"
    )

    def write(name: str, bias: bool) -> Path:
        folder = tmp_path / name
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        (folder / "parts" / "__init__.py").write_text("")
        (folder / "parts" / "head.py").write_text("from . import sizes\nfrom torch import nn\ndef head(n): return sizes.layer(n)\n")
        (folder / "parts" / "sizes.py").write_text(f"from torch import nn\ndef layer(n): return nn.Linear(192, n, bias={bias})\n")
        (folder / "net.py").write_text(source)
        return folder / "net.py"

    def has_bias(path: Path) -> bool:
        return load(f"{path}:build")[1].bias is not None

    first, second = write("a", True), write("b", False)
    assert list(helpers(first)) == ["parts", "parts.head", "parts.sizes"]
    assert (has_bias(first), has_bias(second), has_bias(first)) == (True, False, True)
    known = source_digest(first)
    assert known != source_digest(second)
    assert known == source_digest(write("c", True))
    write("a", False)
    assert source_digest(first) == source_digest(second)
    assert not has_bias(first)


def test_packages_of_this_project_are_no_part_of_a_network_that_lies_beside_them(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text("from core.students import STUDENTS\nimport core.losses, torch\nimport net\n")
    for name in ("core/students/__init__.py", "core/losses.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert helpers(net) == {}


@pytest.mark.parametrize("name", ["core/blocks.py", "results/blocks/__init__.py"])
def test_a_module_of_the_users_that_a_package_of_ours_hides_is_refused(tmp_path: Path, name: str) -> None:
    """Python would take ours, and say that it has no such part."""
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("")
    (tmp_path / "parts_here.py").write_text(f"from {name.partition('/')[0]} import blocks\n")
    net = tmp_path / "net.py"
    net.write_text("import parts_here\n")
    with pytest.raises(
        UserError, match=rf"must not lie in folders called core, .*, but .*parts_here.py imports .*{name}; rename its folder"
    ):
        load(f"{net}:build")


def test_ours_can_be_imported_beside_folders_of_the_same_name(net: Path) -> None:
    (net.parent / "results").mkdir()
    (net.parent / "core").mkdir()
    (net.parent / "core" / "losses.py").write_text("")
    net.write_text("import core.losses\nfrom results.front import front\n" + NET)
    assert load(f"{net}:build").conv.out_channels == 8


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("biuld", r"has no function 'biuld', did you mean 'build'\?"),
        ("NET", "has no function 'NET'"),
        ("build_needing", "raised TypeError while building build_needing: .*'depth'"),
        ("build_crash", r"my_net.py:28 raised ValueError while building build_crash: no such thing"),
        ("build_exit", "raised SystemExit"),
        ("build_dict", "must return a torch.nn.Module, but it returned dict"),
        ("build_tuple", r"logits of shape \(2, 4\).* gave tuple"),
        ("build_picky", "raised RuntimeError while running the network on an image of 3x8x8"),
        ("build_view", r"running the network on an image of 3x8x8: view size is not compatible .* Use .reshape"),
        ("build_together", "must depend on its own image alone .*, but that of .*build_together changes with the rest of the batch"),
        ("build_softmax", "must give logits, but its answers are probabilities; leave the softmax at its end out"),
        ("build_aux", r"logits of shape \(2, 4\).* gave tuple in training mode"),
    ],
)
def test_a_function_that_makes_no_network_is_refused_with_its_reason(net: Path, function: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(f"{net}:{function}")
    assert "\n" not in str(caught.value)


def test_a_network_for_another_number_of_classes_is_refused(net: Path) -> None:
    with pytest.raises(UserError, match=r"shape \(2, 7\), one per class of the data set, but it gave \(2, 4\)"):
        load(f"{net}:build_fixed", classes=7)


@pytest.mark.parametrize("spec", ["my_net.py", "my_net.py:", ":build", "my_net.py:not a name"])
def test_a_spec_of_another_form_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match=r"file\.py:function"):
        load(spec)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*nowhere\.py"):
        load(f"{tmp_path / 'nowhere.py'}:build")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def build(:\n", "net.py:1 raised SyntaxError"),
        ("x = 1\nimport nothing_of_this_name\n", "net.py:2 raised ModuleNotFoundError"),
        ("", "none"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "net.py"
    path.write_text(source)
    with pytest.raises(UserError, match=message):
        load(f"{path}:build")


def test_a_file_that_is_not_python_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.txt"
    path.write_text(NET)
    with pytest.raises(UserError, match=r"ending in \.py"):
        load(f"{path}:build")


def small(seed: int = 0, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return light_cnn(classes=classes, channels=1, image_size=8, blocks=(4, 8))


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_saved_weights_load_bit_exactly(tmp_path: Path) -> None:
    path = tmp_path / "new" / "w.safetensors"
    save_weights(small(0), path)
    other = small(1)
    load_weights(other, path)
    assert equal(other, small(0))
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"]


def test_saving_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(small(0), path)
    save_weights(small(1), path)
    model = small(2)
    load_weights(model, path)
    assert equal(model, small(1))


def test_tied_and_strided_weights_can_be_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(3, 3), nn.Linear(3, 3)).to(memory_format=torch.channels_last)
    model[2].weight = model[1].weight
    save_weights(model, tmp_path / "w.safetensors")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    nn.init.zeros_(model[1].weight)
    load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_state_dicts_load_with_common_wrappers(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    state = {prefix + key: value for key, value in small(0).state_dict().items() if "num_batches" not in key}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pt")
    model = small(1)
    load_weights(model, tmp_path / "w.pt")
    assert equal(model, small(0))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_network_whose_parts_lie_below_one_called_module_keeps_its_names(tmp_path: Path, prefix: str) -> None:
    class Wrapped(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.module = small(seed)

    save_weights(Wrapped(0), tmp_path / "own.safetensors")
    torch.save({prefix + key: value for key, value in Wrapped(0).state_dict().items()}, tmp_path / "w.pt")
    for name in ("own.safetensors", "w.pt"):
        model = Wrapped(1)
        load_weights(model, tmp_path / name)
        assert equal(model.module, small(0))


def test_weights_under_the_models_own_names_are_not_renamed(tmp_path: Path) -> None:
    """A plugin's student may have a layer that published layouts call otherwise."""
    save_weights(small(0), tmp_path / "own.safetensors")
    torch.save({f"old.{key}": value for key, value in small(0).state_dict().items()}, tmp_path / "w.pt")
    for name in ("own.safetensors", "w.pt"):
        model = small(1)
        load_weights(
            model, tmp_path / name, lambda state: {key.removeprefix("old."): value for key, value in state.items() if "old." in key}
        )
        assert equal(model, small(0))


def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    state = small(1, classes=9).state_dict()
    del state["body.0.weight"]
    state |= {f"extra{index}": torch.zeros(1) for index in range(4)}
    torch.save(state, path)
    model = small(0)
    with pytest.raises(UserError) as caught:
        load_weights(model, path)
    message = str(caught.value)
    assert "1 missing (body.0.weight)" in message
    assert "4 unexpected (extra0, extra1, extra2, ...)" in message
    assert "classifier.weight (9, 8) in place of (4, 8)" in message
    assert equal(model, small(0))


class Attack:
    """A pickle of this would run code when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("executed",))


def test_a_pickle_is_never_executed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Attack()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="is no weights file"):
        load_weights(small(), tmp_path / "w.pt")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("data", [b"", b"hello", b"\x80\x02.", b"PK\x03\x04" + bytes(30), b"\xff" * 64])
def test_files_that_hold_no_weights_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match="is no weights file"):
        load_weights(small(), tmp_path / name)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    for name, save in (("w.safetensors", save_weights), ("w.pt", lambda model, path: torch.save(model.state_dict(), path))):
        save(small(), tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
        with pytest.raises(UserError, match="is no weights file"):
            load_weights(small(), tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, torch.zeros(3)])
def test_something_else_saved_by_torch_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        load_weights(small(), tmp_path / "w.pt")


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such weights file: .*w\.pt"):
        load_weights(small(), tmp_path / "w.pt")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"w\.safetensors must be writable, but: "):
        save_weights(small(), tmp_path / "file" / "w.safetensors")
