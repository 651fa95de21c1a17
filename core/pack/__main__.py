"""python -m core.pack"""

from core.cli import run_main
from core.pack.report import main

raise SystemExit(run_main(main))
