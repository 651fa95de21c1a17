"""Names and shapes of the tensors in mdistiller's checkpoints (mdistiller/models/cifar at a08d46f), for 3-channel images."""

from __future__ import annotations

Layout = dict[str, tuple[int, ...]]


def conv(name: str, inputs: int, outputs: int, kernel: int = 3, groups: int = 1, bias: bool = False) -> Layout:
    weight: Layout = {f"{name}.weight": (outputs, inputs // groups, kernel, kernel)}
    return weight | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, channels: int) -> Layout:
    parts: Layout = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return parts | {f"{name}.num_batches_tracked": ()}


def linear(name: str, inputs: int, classes: int) -> Layout:
    return {f"{name}.weight": (classes, inputs), f"{name}.bias": (classes,)}


def conv_norm(number: int, prefix: str, inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> Layout:
    """`<prefix>conv<number>` and `<prefix>bn<number>`."""
    return conv(f"{prefix}conv{number}", inputs, outputs, kernel, groups) | norm(f"{prefix}bn{number}", outputs)


def basic_stages(filters: tuple[int, ...], counts: tuple[int, ...], strides: tuple[int, ...], projection: str) -> Layout:
    layout: Layout = {}
    inputs = filters[0]
    for stage, (outputs, count, stride) in enumerate(zip(filters[1:], counts, strides, strict=True), start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}."
            layout |= conv_norm(1, prefix, inputs, outputs) | conv_norm(2, prefix, outputs, outputs)
            if block == 0 and (stride != 1 or inputs != outputs):
                layout |= conv(f"{prefix}{projection}.0", inputs, outputs, 1) | norm(f"{prefix}{projection}.1", outputs)
            inputs = outputs
    return layout


def cifar_resnet(depth: int, filters: tuple[int, ...], classes: int) -> Layout:
    blocks = (depth - 2) // 6
    stages = basic_stages(filters, (blocks,) * 3, (1, 2, 2), "downsample")
    return conv_norm(1, "", 3, filters[0]) | stages | linear("fc", filters[-1], classes)


def deep_resnet(counts: tuple[int, ...], classes: int) -> Layout:
    stages = basic_stages((64, 64, 128, 256, 512), counts, (1, 2, 2, 2), "shortcut")
    return conv_norm(1, "", 3, 64) | stages | linear("linear", 512, classes)


def resnet50(classes: int) -> Layout:
    layout = conv_norm(1, "", 3, 64)
    inputs = 64
    for stage, (inner, count) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}."
            layout |= (
                conv_norm(1, prefix, inputs, inner, 1) | conv_norm(2, prefix, inner, inner) | conv_norm(3, prefix, inner, 4 * inner, 1)
            )
            if block == 0:
                layout |= conv(f"{prefix}shortcut.0", inputs, 4 * inner, 1) | norm(f"{prefix}shortcut.1", 4 * inner)
            inputs = 4 * inner
    return layout | linear("linear", 2048, classes)


def wrn(depth: int, factor: int, classes: int) -> Layout:
    layout = conv("conv1", 3, 16)
    inputs = 16
    for stage, outputs in enumerate((16 * factor, 32 * factor, 64 * factor), start=1):
        for block in range((depth - 4) // 6):
            prefix = f"block{stage}.layer.{block}."
            layout |= norm(f"{prefix}bn1", inputs) | conv(f"{prefix}conv1", inputs, outputs)
            layout |= norm(f"{prefix}bn2", outputs) | conv(f"{prefix}conv2", outputs, outputs)
            layout |= conv(f"{prefix}convShortcut", inputs, outputs, 1) if inputs != outputs else {}
            inputs = outputs
    return layout | norm("bn1", inputs) | linear("fc", inputs, classes)


def vgg(stages: list[list[int]], classes: int) -> Layout:
    layout: Layout = {}
    inputs = 3
    for stage, counts in enumerate(stages):
        for index, outputs in enumerate(counts):
            layout |= conv(f"block{stage}.{3 * index}", inputs, outputs, bias=True) | norm(f"block{stage}.{3 * index + 1}", outputs)
            inputs = outputs
    return layout | linear("classifier", inputs, classes)


def mobilenet_v2(classes: int) -> Layout:
    layout = conv("conv1.0", 3, 16) | norm("conv1.1", 16)
    inputs = 16
    stages = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for stage, (expansion, channels, count) in enumerate(stages):
        for block in range(count):
            prefix, inner, outputs = f"blocks.{stage}.{block}.conv.", inputs * expansion, channels // 2
            layout |= conv(f"{prefix}0", inputs, inner, 1) | norm(f"{prefix}1", inner)
            layout |= conv(f"{prefix}3", inner, inner, groups=inner) | norm(f"{prefix}4", inner)
            layout |= conv(f"{prefix}6", inner, outputs, 1) | norm(f"{prefix}7", outputs)
            inputs = outputs
    return layout | conv("conv2.0", inputs, 1280, 1) | norm("conv2.1", 1280) | linear("classifier.0", 1280, classes)


def shufflenet_v1(classes: int) -> Layout:
    layout = conv_norm(1, "", 3, 24, 1)
    inputs = 24
    for stage, (outputs, count) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
        for block in range(count):
            made = outputs - inputs if block == 0 else outputs
            prefix, inner, groups = f"layer{stage}.{block}.", made // 4, 1 if inputs == 24 else 3
            layout |= conv_norm(1, prefix, inputs, inner, 1, groups) | conv_norm(2, prefix, inner, inner, 3, inner)
            layout |= conv_norm(3, prefix, inner, made, 1, 3)
            inputs = outputs
    return layout | linear("linear", 960, classes)


def shufflenet_v2(classes: int) -> Layout:
    layout = conv_norm(1, "", 3, 24, 1)
    inputs = 24
    for stage, (outputs, count) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
        half, prefix = outputs // 2, f"layer{stage}.0."
        layout |= conv_norm(1, prefix, inputs, inputs, 3, inputs) | conv_norm(2, prefix, inputs, half, 1)
        layout |= conv_norm(3, prefix, inputs, half, 1) | conv_norm(4, prefix, half, half, 3, half) | conv_norm(5, prefix, half, half, 1)
        for block in range(1, count + 1):
            prefix = f"layer{stage}.{block}."
            layout |= conv_norm(1, prefix, half, half, 1) | conv_norm(2, prefix, half, half, 3, half) | conv_norm(3, prefix, half, half, 1)
        inputs = outputs
    return layout | conv_norm(2, "", 464, 1024, 1) | linear("linear", 1024, classes)


def layouts(classes: int) -> dict[str, Layout]:
    """Of every student that mdistiller has, under our names."""
    thin, wide = (16, 16, 32, 64), (32, 64, 128, 256)
    vggs = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3)}
    return {
        **{f"resnet{depth}": cifar_resnet(depth, thin, classes) for depth in (8, 14, 20, 32, 44, 56, 110)},
        **{f"resnet{depth}x4": cifar_resnet(depth, wide, classes) for depth in (8, 32)},
        "resnet18": deep_resnet((2, 2, 2, 2), classes),
        "resnet34": deep_resnet((3, 4, 6, 3), classes),
        "resnet50": resnet50(classes),
        **{f"wrn_{depth}_{factor}": wrn(depth, factor, classes) for depth in (16, 40) for factor in (1, 2)},
        **{
            f"vgg{depth}": vgg([[width] * count for width, count in zip((64, 128, 256, 512, 512), counts, strict=True)], classes)
            for depth, counts in vggs.items()
        },
        "mobilenet_v2": mobilenet_v2(classes),
        "shufflenet_v1": shufflenet_v1(classes),
        "shufflenet_v2": shufflenet_v2(classes),
    }
