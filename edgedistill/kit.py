"""Where the folders of data, `teachers/` and `export/`, are: inside a wheel or beside the package."""

from __future__ import annotations

from pathlib import Path

from edgedistill.errors import Error

PACKAGE = Path(__file__).parent


def checkout() -> Path | None:
    """The repository's root when the package runs from a checkout or an editable install, else None."""
    root = PACKAGE.parent
    # Without this guard the sibling folders of a wheel would be somebody else's site-packages.
    return root if (root / "pyproject.toml").is_file() and (root / "teachers").is_dir() else None


def folder(name: str) -> Path:
    """The folder `name` ("teachers" or "export"). Raises `Error` naming both places tried."""
    inside = PACKAGE / "_kit" / name
    if inside.is_dir():
        return inside
    root = checkout()
    if root and (root / name).is_dir():
        return root / name
    raise Error(f"the folder {name}/ is in neither {inside} nor beside {PACKAGE}; reinstall edgedistill")
