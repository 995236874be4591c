"""What pip puts on a user's machine."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import pytest

from edgedistill import kit

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    return build("build_wheel", out)


def build(hook: str, out: Path) -> Path:
    """The wheel that hatchling's `hook` (PEP 517, PEP 660) writes to `out`."""
    code = (f"import os, sys; os.chdir(sys.argv[1]); from hatchling.build import {hook}; print({hook}(sys.argv[2]))")
    done = subprocess.run([sys.executable, "-c", code, str(ROOT), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.strip().splitlines()[-1]


def test_an_editable_install_points_to_the_checkout(tmp_path: Path) -> None:
    archive = zipfile.ZipFile(build("build_editable", tmp_path))
    paths = [archive.read(name).decode().strip() for name in archive.namelist() if name.endswith(".pth")]
    assert paths == [str(ROOT)]


def test_the_wheel_holds_one_import_name_and_every_card(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"edgedistill", "edgedistill-0.1.0.dist-info"}
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files", "teachers", "export"], capture_output=True, text=True)
    wanted = {f"edgedistill/_kit/{name}" for name in tracked.stdout.split()}
    assert len(wanted) > 15 and wanted <= set(names)
    assert not [name for name in names if name.endswith((".pyc", ".gguf"))]


def test_the_installed_wheel_lists_its_cards_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clean"
    venv.create(folder, with_pip=False)
    python = next(p for p in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if p.exists())
    site = Path(subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                               capture_output=True, text=True, check=True).stdout.strip())
    zipfile.ZipFile(wheel).extractall(site)
    # The dependencies come from this environment; a plain path in a .pth brings no editable install with it.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = subprocess.run([python, "-m", "edgedistill", "teach", "--list"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "smollm2-135m" in done.stdout and "wordmath" in done.stdout
    where = subprocess.run([python, "-c", "import edgedistill; print(edgedistill.__file__)"], cwd=tmp_path,
                           capture_output=True, text=True, check=True)
    assert str(site) in where.stdout


def test_help_is_nearly_as_fast_as_importing_typer() -> None:
    def fastest(*command: str) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        return min(times)

    assert fastest("-m", "edgedistill", "--help") < max(0.4, 2 * fastest("-c", "import typer"))


def test_the_resolver_finds_the_folders_beside_the_package() -> None:
    assert kit.checkout() == ROOT
    assert (kit.folder("teachers") / "models").is_dir()
    with pytest.raises(Exception, match="reinstall edgedistill"):
        kit.folder("nothing")


def test_the_public_surface_is_the_verbs_and_the_device_class() -> None:
    from edgedistill.bench import bench
    from edgedistill.demo import demo
    from edgedistill.doctor import doctor
    from edgedistill.edge import Answer, Student
    from edgedistill.evaluate import evaluate
    from edgedistill.export import export
    from edgedistill.report import report
    from edgedistill.run import run
    from edgedistill.study import study
    from edgedistill.teach import teach
    from edgedistill.train import train

    assert all(map(callable, (bench, demo, doctor, evaluate, export, report, run, study, teach, train)))
    assert {name for name in vars(Student) if not name.startswith("_")} == {"load", "answer", "generate"}
    assert list(Answer.__dataclass_fields__) == ["text", "value", "confidence", "rationale", "votes"]


HEAVY = "torch", "transformers", "llama_cpp", "onnx", "matplotlib", "datasets"


def test_no_module_imports_a_heavy_package_outside_its_room() -> None:
    rooms = ("edgedistill.train.", "edgedistill.export.")
    modules = sorted(".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                     for p in (ROOT / "edgedistill").rglob("*.py") if p.stem != "__main__")
    light = [name for name in modules if not name.startswith(rooms)]
    assert len(light) > 20 and {"edgedistill.train", "edgedistill.export", "edgedistill.teach"} <= set(light)
    code = f"import sys\nfor m in {light}: __import__(m)\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
