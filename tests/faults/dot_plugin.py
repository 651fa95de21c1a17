"""A plugin, so that worker processes know the tests' student `dot` too."""

from core.students import STUDENTS
from core.tables import register
from tests.search.studies import Dot

register(STUDENTS, "dot", Dot)
