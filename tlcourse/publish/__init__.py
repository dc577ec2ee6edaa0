"""From notebooks to what readers see."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory


def write(files: Mapping[Path, bytes]) -> None:
    """Write files, all of them or none: a full disk leaves what was there.

    They are drafted beside the first one, and must be on one disk. Links are followed.
    """
    if not files:
        return
    whole = {Path(os.path.realpath(path)): content for path, content in files.items()}
    beside = next(folder for folder in next(iter(whole)).parents if folder.is_dir())
    with TemporaryDirectory(dir=beside, prefix=".draft-") as folder:
        drafts = {Path(folder, str(i)): path for i, path in enumerate(whole)}
        for draft, path in drafts.items():
            draft.write_bytes(whole[path])
            if path.exists():
                shutil.copymode(path, draft)
        for draft, path in drafts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.replace(path)
