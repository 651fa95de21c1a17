"""Small networks, and the quantised graph of any network without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from core.candidate import Execution, LayerPlan, ShapePlan, WeightBits
from core.compress import calibrate
from core.hardware import int8_bits_here
from core.layers import layer_infos
from core.quantise.graph import Addends, Grid, build_graph
from core.quantise.ptq import ptq
from core.quantise.setting import Penalty

SHAPE = (3, 8, 8)
CLASSES = 5


def images(count: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def settled(model: nn.Module, shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    """In eval mode, with batch norms that have seen data and whose gains and shifts are not the initial ones."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    model.train()
    with torch.no_grad():
        for seed in range(3):
            model(images(16, shape, seed))
    return model.eval()


def train(model: nn.Module, penalty: Penalty | None = None, *, steps: int = 12, **options: float) -> nn.Module:
    """The network after some steps of SGD on random images, in eval mode: a finetune for quantisers."""
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, **options)
    x, y = images(32), torch.arange(32) % CLASSES
    for step in range(steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (loss if penalty is None else loss + penalty((step + 1) / steps)).backward()
        optimiser.step()
    return model.eval()


def plan_of(
    model: nn.Module,
    shape: tuple[int, int, int] = SHAPE,
    bits: Mapping[str, WeightBits] | WeightBits = 8,
    execution: Mapping[str, Execution] | Execution = "int8",
) -> ShapePlan:
    layers = []
    for info in layer_infos(model, shape):
        depth = bits.get(info.name, 8) if isinstance(bits, Mapping) else bits
        how = execution.get(info.name, "int8") if isinstance(execution, Mapping) else execution
        depth = min(depth, int8_bits_here()) if how == "int8" and depth == 8 else depth
        layers.append(LayerPlan(name=info.name, out_channels=info.out_channels, weight_bits=depth, execution="float" if depth > 8 else how))
    return ShapePlan(student="tiny", width=1.0, layers=tuple(layers))


def quantised(
    model: nn.Module,
    plan: ShapePlan,
    shape: tuple[int, int, int] = SHAPE,
    grid: Grid = "uint8_relu",
    addends: Addends = "both",
    dequantises_once: bool = True,
) -> fx.GraphModule:
    """Rounded, not trained; calibrated on random images."""
    weights = ptq(model, {layer.name: layer.weight_bits for layer in plan.layers}, lambda model: model)
    graph = build_graph(model, weights, plan, grid, shape, addends, dequantises_once)
    calibrate(graph, images(64, shape))
    return graph


class Residual(nn.Module):
    """Stem, one residual block with a projection, average pool, linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.project, self.norm3 = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y)) + self.norm3(self.project(x))
        return self.head(F.adaptive_avg_pool2d(F.relu(y), 1).flatten(1))


class Asked(nn.Module):
    """Its forward has more arguments than the images: what they are by default belongs to the network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 8), head()

    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: float = 0.5, sizes: Sequence[int] = (2, 3), *, deep: bool = True
    ) -> Tensor:
        x = F.relu(self.a(x)) * scale
        x = x if mask is None else x * mask
        x = F.relu(self.b(x)) if deep else x
        return self.head(x.mean(sizes))


class Tied(nn.Module):
    """Two norms that stay in float, with one gain and shift: a parameter of both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 8), head()
        self.first, self.second = nn.LayerNorm([8, 8, 8]), nn.LayerNorm([8, 8, 8])
        self.second.weight, self.second.bias = self.first.weight, self.first.bias
        nn.init.normal_(self.first.weight, 1.0, 0.2)
        nn.init.normal_(self.first.bias, 0.0, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(F.relu(self.second(self.b(F.relu(self.first(self.a(x))))))))


@dataclass(frozen=True)
class Pattern:
    """One way in which people write networks."""

    name: str
    build: Callable[[], nn.Module]


class Forward(nn.Module):
    """Modules by name, and a forward as a function of them."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(inputs: int, outputs: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **options})  # type: ignore[arg-type]


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def head(inputs: int = 8) -> nn.Linear:
    return nn.Linear(inputs, CLASSES)


def _on_under_the_old_name(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x)
    m.r(h)
    return m.head(pooled(m.b(h)))


def _on_under_both_names(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x)
    y = F.relu_(h)
    return m.head(pooled(m.b(y) + h))


PATTERNS = [
    Pattern(
        "concatenation of two branches",
        lambda: Forward(
            lambda m, x: m.head(pooled(F.relu(m.c(torch.cat([F.relu(m.a(x)), F.relu(m.b(x))], 1))))),
            a=conv(3, 4),
            b=conv(3, 4),
            c=conv(8, 8),
            head=head(),
        ),
    ),
    Pattern(
        "depthwise separable convolution",
        lambda: Forward(
            lambda m, x: m.head(
                pooled(F.relu6(m.n2(m.point(F.relu6(m.n1(m.depth(m.stem(x)))))))),
            ),
            stem=conv(3, 8),
            depth=conv(8, 8, groups=8, bias=False),
            n1=nn.BatchNorm2d(8),
            point=nn.Conv2d(8, 8, 1),
            n2=nn.BatchNorm2d(8),
            head=head(),
        ),
    ),
    Pattern(
        "functional relu and pooling",
        lambda: Forward(
            lambda m, x: m.head(torch.flatten(F.adaptive_avg_pool2d(F.max_pool2d(torch.relu(m.a(x)), 2), (1, 1)), 1)),
            a=conv(3, 8),
            head=head(),
        ),
    ),
    Pattern("mean over both sides", lambda: Forward(lambda m, x: m.head(F.relu(m.a(x)).mean(dim=(2, 3))), a=conv(3, 8), head=head())),
    Pattern(
        "mean that keeps its dimensions, then view",
        lambda: Forward(lambda m, x: m.head(F.relu(m.a(x)).mean([2, 3], keepdim=True).view(x.size(0), -1)), a=conv(3, 8), head=head()),
    ),
    Pattern(
        "flattened map into two linear layers",
        lambda: Forward(
            lambda m, x: m.head(m.drop(F.relu(m.mid(m.pool(F.relu(m.a(x))).view(x.shape[0], -1))))),
            a=conv(3, 8),
            pool=nn.MaxPool2d(2),
            mid=nn.Linear(128, 8),
            drop=nn.Dropout(0.5),
            head=head(),
        ),
    ),
    Pattern(
        "one block called twice",
        lambda: Forward(
            lambda m, x: m.head(
                pooled(F.relu(m.n(m.c(F.relu(m.n(m.c(F.relu(m.stem(x))))))))),
            ),
            stem=conv(3, 8),
            c=conv(8, 8, bias=False),
            n=nn.BatchNorm2d(8),
            head=head(),
        ),
    ),
    Pattern(
        "batch norm after the pooling",
        lambda: Forward(
            lambda m, x: m.head(pooled(F.gelu(m.n(m.p(m.a(x)))))), a=conv(3, 8), p=nn.MaxPool2d(2), n=nn.BatchNorm2d(8), head=head()
        ),
    ),
    Pattern(
        "batch norm before the convolution",
        lambda: Forward(
            lambda m, x: m.head(pooled(m.b(F.relu(m.n(m.a(x) + m.skip(x)))))),
            a=conv(3, 8),
            skip=conv(3, 8),
            n=nn.BatchNorm2d(8),
            b=conv(8, 8),
            head=head(),
        ),
    ),
    Pattern(
        "linear layers with a batch norm between",
        lambda: Forward(
            lambda m, x: m.head(F.relu(m.n(m.mid(x.flatten(1))))), mid=nn.Linear(192, 8, bias=False), n=nn.BatchNorm1d(8), head=head()
        ),
    ),
    Pattern(
        "linear layers on tokens",
        lambda: Forward(
            lambda m, x: m.head(m.mix(m.patch(x).flatten(2).transpose(1, 2)).mean(1)),
            patch=nn.Conv2d(3, 8, 4, stride=4),
            mix=nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
            head=head(),
        ),
    ),
    Pattern(
        "residual add of linear layers",
        lambda: Forward(
            lambda m, x: m.head(F.relu(m.down(F.relu(m.up(pooled(F.relu(m.a(x)))))) + m.skip(pooled(m.b(x))))),
            a=conv(3, 8),
            b=conv(3, 8),
            up=nn.Linear(8, 16),
            down=nn.Linear(16, 8),
            skip=nn.Linear(8, 8),
            head=head(),
        ),
    ),
    Pattern(
        "one linear layer on tokens and on their mean",
        lambda: Forward(
            lambda m, x: m.head(m.mix(m.mix(m.patch(x).flatten(2).transpose(1, 2)).mean(1))),
            patch=conv(3, 8),
            mix=nn.Linear(8, 8),
            head=head(),
        ),
    ),
    Pattern(
        "squeeze and excitation",
        lambda: Forward(
            lambda m, x: m.head(pooled(m.scale(m.a(x)))),
            a=conv(3, 8),
            scale=Forward(
                lambda m, x: x * torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1))))),
                down=nn.Conv2d(8, 4, 1),
                up=nn.Conv2d(4, 8, 1),
            ),
            head=head(),
        ),
    ),
    Pattern(
        "numbers and a normalisation inside",
        lambda: Forward(lambda m, x: m.head(pooled(m.a(m.b(x * 0.5 - 0.1)) / 3 + 1.0)), a=nn.Hardswish(), b=conv(3, 8), head=head()),
    ),
    Pattern(
        "padding that mirrors",
        lambda: Forward(lambda m, x: m.head(pooled(F.relu(m.a(x)))), a=conv(3, 8, padding_mode="reflect"), head=head()),
    ),
    Pattern("padding by name", lambda: Forward(lambda m, x: m.head(pooled(F.relu(m.a(x)))), a=conv(3, 8, padding="same"), head=head())),
    Pattern(
        "in-place activations",
        lambda: Forward(
            lambda m, x: m.head(pooled(m.r(m.b(m.r(m.a(x))).add_(m.c(x))))),
            a=conv(3, 8),
            b=conv(8, 8),
            c=conv(3, 8),
            r=nn.ReLU(inplace=True),
            head=head(),
        ),
    ),
    Pattern(
        "in place, and on under the old name",
        lambda: Forward(_on_under_the_old_name, a=conv(3, 8), b=conv(8, 8), r=nn.ReLU(True), head=head()),
    ),
    Pattern("in place, and on under both names", lambda: Forward(_on_under_both_names, a=conv(3, 8), b=conv(8, 8), head=head())),
    Pattern(
        "classifier by convolution",
        lambda: Forward(lambda m, x: m.head(F.relu(m.a(x))).mean((2, 3)), a=conv(3, 8), head=nn.Conv2d(8, CLASSES, 1)),
    ),
    Pattern("a forward with optional arguments", Asked),
    Pattern("one gain of two norms", Tied),
]
