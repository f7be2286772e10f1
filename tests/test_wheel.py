"""The wheel has all of the package and nothing else, also where it is built from the source archive."""

import email
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOP = ("scpo_jax", "configs", "setup.py", "README.md", "LICENSE")


def build(folder: pathlib.Path, *command: str) -> None:
    """Runs setup.py in a folder, with the setuptools that are here."""
    done = subprocess.run([sys.executable, "setup.py", "-q", *command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def files_of(wheel: pathlib.Path) -> dict[str, bytes]:
    """Path -> content of every file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(files of the wheel, of that built from the source archive, names in the latter)."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in TOP:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "src" / name)
    build(folder / "src", "sdist", f"--dist-dir={folder}", "bdist_wheel", f"--dist-dir={folder}")
    [source], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(source) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
        archive.extractall(folder / "again", filter="data")
    [unpacked] = (folder / "again").iterdir()
    build(unpacked, "bdist_wheel", f"--dist-dir={folder / 'again'}")
    [again] = (folder / "again").glob("*.whl")
    return files_of(wheel), files_of(again), names


def test_everything_is_in_it_and_nothing_else(built):
    files, _, _ = built
    own = {path for name in ("scpo_jax", "configs") for path in (ROOT / name).rglob("*") if path.is_file()}
    own = {path.relative_to(ROOT).as_posix(): path for path in own if "__pycache__" not in path.parts}
    expected = {name if name.startswith("scpo_jax/") else f"scpo_jax/{name}": path for name, path in own.items()}
    assert {"scpo_jax/configs/demo.py", "scpo_jax/templates/run.html", "scpo_jax/data/prism.py"} <= expected.keys()
    assert {name for name in files if ".dist-info/" not in name} == expected.keys()
    assert all(files[name] == path.read_bytes() for name, path in expected.items())


def test_what_an_index_shows(built):
    files, _, _ = built
    [folder] = {name.partition("/")[0] for name in files if ".dist-info/" in name}
    about = email.message_from_bytes(files[f"{folder}/METADATA"])
    assert about["Name"].replace("-", "_") == "scpo_jax" and about["Requires-Python"] == ">=3.11"
    assert "Programming Language :: Python :: 3" in about.get_all("Classifier")
    assert about["Description-Content-Type"] == "text/markdown"
    assert about.get_payload().lstrip().startswith("# scpo_jax")
    [licence] = [name for name in files if name.startswith(folder) and name.endswith("LICENSE")]
    assert files[licence] == (ROOT / "LICENSE").read_bytes()
    assert b"\nscpo = scpo_jax.main:console\n" in files[f"{folder}/entry_points.txt"]


def test_a_wheel_of_the_source_archive_is_the_same(built):
    files, again, names = built
    assert {"LICENSE", "README.md", "setup.py", "configs/demo.py", "scpo_jax/templates/run.html"} <= set(names)
    assert not [name for name in names if name.startswith("tests")]
    assert files == again
