"""Whose files are in runs/<study>/: databases elsewhere may have another study of the same name."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from core.files import write_atomically
from search.storage import safe_url

if TYPE_CHECKING:
    import optuna

IDENTITY_KEY = "identity"
"""Study attribute: drawn when a run first opens the study, and kept by copies of it."""
FILE = "study.json"


def claim(study: optuna.Study, folder: Path, url: str) -> None:
    """Write into the run's folder whose it is. Hold the study's lock."""
    if IDENTITY_KEY not in study.user_attrs:
        study.set_user_attr(IDENTITY_KEY, uuid.uuid4().hex)
    facts = {IDENTITY_KEY: study.user_attrs[IDENTITY_KEY], "storage": safe_url(url)}
    if _claimed(folder) != facts:
        write_atomically(folder / FILE, json.dumps(facts, indent=1) + "\n")


def check_folder(study: optuna.Study | None, folder: Path, url: str) -> None:
    """Raises UserError where the run's folder is another study's than that of `url`, or than the one that would be made there.

    A database has one study of a name: what another one of the same database left there is of a study that was deleted.
    """
    known, here = _claimed(folder), safe_url(url)
    if known is None or known["storage"] == here:
        return
    if study is None or study.user_attrs.get(IDENTITY_KEY) != known[IDENTITY_KEY]:
        law = f"a run's folder holds the files of one study, but {folder} has those of one in {known['storage']}, and this is {here}"
        raise UserError(f"{law}; give that --storage, choose another --study, or move the folder away")


def _claimed(folder: Path) -> dict[str, str] | None:
    """What the file says; None where there is none, or none that is whole."""
    try:
        facts: dict[str, str] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and {IDENTITY_KEY, "storage"} <= facts.keys() else None
