"""What networks start from, checked before torch is imported: names, published weights, adapters."""

from __future__ import annotations

from core.candidate import SELF
from core.config import Config, TeacherConfig
from core.errors import UserError
from core.students import STUDENTS
from core.students.zoo import check_zoo_name, in_zoo
from core.tables import lookup
from search.space import Space, options

LIBRARIES = "torchvision:<name> or timm:<name>"


def check_starts(space: Space, config: Config) -> None:
    """Raises UserError for a teacher that is not known, or for published weights or adapters where they mean nothing."""
    for teacher in config.teachers:
        check_teacher(teacher)
    check_students_start(space, config)
    check_lora(space, config)


def check_teacher(teacher: TeacherConfig) -> None:
    """Its name is known, published weights are those of a library's network, and weights come from one place."""
    library = teacher.model is None and in_zoo(teacher.name)
    if library:
        check_zoo_name(teacher.name, "teacher.name")
        if teacher.width != 1.0:
            raise UserError(f"teacher.width must be 1.0, as {teacher.name} has its own channels, but got {teacher.width:g}; leave it out")
    elif teacher.model is None:
        lookup(STUDENTS, "student", teacher.name)
    if teacher.pretrained and not library:
        named = teacher.model or teacher.name
        raise UserError(f"teacher.pretrained needs a library's network, but the teacher is {named}; set teacher.name to {LIBRARIES}")
    if teacher.pretrained and teacher.weights is not None:
        both = f"teacher.pretrained is true and teacher.weights is {teacher.weights}"
        raise UserError(f"a teacher's weights must come from one place, but {both}; drop one")
    if teacher.train.lora is not None and not (teacher.pretrained or teacher.weights):
        raise untrained("teacher.train", "teacher.pretrained or teacher.weights")


def check_students_start(space: Space, config: Config) -> None:
    """`self` is a network with a file or a library of its own, and published weights are those of a library's network."""
    teacher, names = config.teacher, options(space.student.name)
    if SELF in names and teacher.model is None and not in_zoo(teacher.name):
        raise UserError(
            f"student.name self is your own network: name it with --model my_net.py:build, or a library's with teacher.name {LIBRARIES}"
        )
    if config.parent.pretrained and not any(map(in_zoo, names)):
        listed = ", ".join(names)
        raise UserError(f"parent.pretrained needs a library's student, {LIBRARIES}, but student.name is {listed}; leave it out")


def check_lora(space: Space, config: Config) -> None:
    """Adapters change trained weights a little: there must be some, and they must be floating-point."""
    if config.parent.train.lora is not None:
        if not config.parent.pretrained:
            raise untrained("parent.train", "parent.pretrained")
        if bare := [name for name in options(space.student.name) if name != SELF and not in_zoo(name)]:
            law = f"parent.train.lora adapts published weights, but student.name has {', '.join(bare)}, of which there are none"
            raise UserError(f"{law}; leave it out, or name networks of {LIBRARIES} alone")
    if config.finetune.lora is not None and "scratch" in options(space.distil.init):
        raise untrained("finetune", "distil.init inherit")
    if config.finetune.lora is not None and "quantise, prune" in options(space.order):
        law = "finetune.lora adapts float weights, but with order quantise, prune it would train quantised ones"
        raise UserError(f"{law}; leave it out, or set order to prune, quantise")
    if config.quantise.train.lora is not None:
        raise UserError("quantise.train.lora must be null, as quantised weights train themselves, but it is set; leave it out")


def untrained(key: str, remedy: str) -> UserError:
    """The refusal of adapters on initial weights."""
    return UserError(f"{key}.lora adapts weights that are trained, but here they are not; set {remedy}, or leave {key}.lora out")
