"""The workbench of a tiny study."""

from tests.objectives.test_evaluate import bench

__all__ = ["bench"]
