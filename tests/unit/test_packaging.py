"""What is in the wheel, and that an installation can find all its parts."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {
    "core": "thalweg",
    "contrib": "thalweg.contrib",
    "stores": "thalweg.stores",
    "transports": "thalweg.transports",
}

# Declared in pyproject.toml before their code exists. Each must come off this list with its code: a name that loads
# although it stands here fails the test.
NOT_WRITTEN: set[str] = set()


def sources() -> list[Path]:
    return [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]


def dotted(folder: Path) -> str:
    """The package that a folder is installed as."""
    if folder.name == "pytest_thalweg":
        return folder.name
    top, *rest = folder.relative_to(ROOT).parts
    return ".".join([FOLDERS[top], *rest])


def entry_points() -> list[tuple[str, str]]:
    groups = PROJECT["project"].get("entry-points", {}) | {"console_scripts": PROJECT["project"]["scripts"]}
    return sorted((group, name) for group, entries in groups.items() for name in entries)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """Names of all files in the wheel. Built from a copy, for setuptools leaves traces in the folder it builds in."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in (*FOLDERS, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, "dist"], cwd=copy, check=True, capture_output=True)
    [file] = copy.glob("dist/*.whl")
    with zipfile.ZipFile(file) as archive:
        return frozenset(archive.namelist())


def test_every_folder_with_python_files_is_a_listed_package() -> None:
    present = {dotted(path.parent) for path in sources() if path.suffix == ".py"}
    assert present == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_folder_with_python_files_has_an_init_file() -> None:
    folders = {path.parent for path in sources() if path.suffix == ".py"}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel: frozenset[str]) -> None:
    packed = {name for name in wheel if ".dist-info/" not in name}
    assert packed == {f"{dotted(path.parent).replace('.', '/')}/{path.name}" for path in sources()}


def test_the_wheel_says_that_it_is_typed_and_under_which_licence(wheel: frozenset[str]) -> None:
    info = f"thalweg-{PROJECT['project']['version']}.dist-info"
    assert {"thalweg/py.typed", f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"} <= wheel


def test_the_installed_version_is_the_declared_one() -> None:
    assert importlib.metadata.version("thalweg") == PROJECT["project"]["version"]


@pytest.mark.parametrize(
    ("group", "name"),
    [
        pytest.param(
            group,
            name,
            id=f"{group}:{name}",
            marks=[pytest.mark.xfail(reason="not written yet", strict=True)]
            if f"{group}:{name}" in NOT_WRITTEN
            else [],
        )
        for group, name in entry_points()
    ],
)
def test_an_entry_point_loads(group: str, name: str) -> None:
    [entry] = importlib.metadata.distribution("thalweg").entry_points.select(group=group, name=name)
    loaded = entry.load()
    assert isinstance(loaded, ModuleType) if group == "pytest11" else callable(loaded)


def test_nothing_is_said_to_be_missing_that_is_not_declared() -> None:
    assert {f"{group}:{name}" for group, name in entry_points()} >= NOT_WRITTEN
