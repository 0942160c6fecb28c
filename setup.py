"""Installs mrcnn_tf: `pip install .`, or `pip install -e ".[dev]"` to work on it."""

from pathlib import Path

from setuptools import find_packages, setup

TENSORFLOW = "2.19"
NOTEBOOKS = ["ipykernel", "nbclient>=0.10", "nbformat>=5.10"]

setup(
    name="mrcnn_tf",
    version="0.1.0",
    description="Mask R-CNN in Keras 3 and TensorFlow: train, evaluate, predict, export",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["mrcnn_tf", "mrcnn_tf.*"]),
    python_requires=">=3.10,<3.14",
    install_requires=[
        f"tensorflow>={TENSORFLOW}",
        "keras>=3.12",
        "numpy>=1.26",
        "pycocotools>=2.0.8",
        "scikit-image>=0.22",
        "matplotlib>=3.8",
        "pillow>=10",
        "tqdm>=4.60",
    ],
    extras_require={
        "gpu": [f"tensorflow[and-cuda]>={TENSORFLOW}"],
        "notebooks": ["jupyterlab", *NOTEBOOKS],
        # One version of ruff: what it calls well formatted changes between versions.
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff==0.17.6",
            f"tensorboard>={TENSORFLOW}",
            *NOTEBOOKS,
        ],
    },
)
