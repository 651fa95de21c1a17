"""Published checkpoints, renamed to the layout of our students.

Layouts covered, those of mdistiller's `mdistiller/models/cifar` (RepDistiller's and CRD's models have the same), with the parts whose
names differ from ours:

    resnet8 ... resnet110, resnet8x4, resnet32x4   layer1.0.downsample.0 (convolution), .1 (norm); fc
    resnet18, resnet34, resnet50                   layer1.0.shortcut.0, .1; linear. torchvision's downsample and fc too; its 7x7 stem
                                                   does not fit our 3x3 one, as loading then says
    wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2         block1.layer.0.convShortcut; fc
    vgg8, vgg11, vgg13, vgg16                      block0.0 (convolution), .1 (norm), .3, .4; classifier: all as ours
    mobilenet_v2                                   conv1.0, blocks.0.0.conv.0, conv2.0; classifier.0
    shufflenet_v1, shufflenet_v2                   layer1.0.conv1; linear

Around them: the state dict of a DataParallel (`module.` before every key) and that of mdistiller's distiller (`student.` before the
student's keys; the teacher's and the method's own are left out). light_cnn and airbench are published nowhere in another layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from core.students import STUDENTS
from core.tables import lookup

RENAMES = (
    (re.compile(r"^(layer\d+\.\d+)\.downsample\."), r"\1.shortcut."),
    (re.compile(r"^(block\d+\.layer\.\d+)\.convShortcut\."), r"\1.shortcut."),
    (re.compile(r"^(?:fc|linear|classifier\.0)\."), "classifier."),
)
"""One table for all: no two of the layouts use one name for different parts."""

WRAPPERS = ("module.", "student.")


def remap(name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a published `state_dict` under the keys of `STUDENTS[name]`; keys that are ours already stay.

    Values are passed on as they are; whether they fit is for the loader to say. UserError for an unknown student.
    """
    lookup(STUDENTS, "student", name)
    return {renamed(key): value for key, value in unwrapped(state_dict).items()}


def renamed(key: str) -> str:
    """Our name of one published key."""
    for pattern, ours in RENAMES:
        key = pattern.sub(ours, key)
    return key


def unwrapped(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that training code puts before a network's keys; of several networks the student."""
    inner = dict(state_dict)
    for prefix in WRAPPERS:
        if any(key.startswith(prefix) for key in inner):
            inner = {key.removeprefix(prefix): value for key, value in inner.items() if key.startswith(prefix)}
    return inner
