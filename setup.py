"""Installs the package; imports nothing that is not in the standard library or setuptools."""

import sys

if sys.version_info < (3, 10):
    sys.exit(
        f"detco_d2 needs Python 3.10 or newer, and this is {sys.version.split()[0]}. Call a newer "
        "one, for example: make demo PYTHON=python3.11"
    )

from setuptools import find_packages, setup

setup(
    name="detco_d2",
    version="0.1.0",
    description="DetCo pretraining in Detectron2, from unlabelled images to a better detector",
    packages=find_packages(include=["detco_d2*"]),
    python_requires=">=3.10",
    # Detectron2 is on no package index under its own name: tools/setup_env.py installs it.
    install_requires=["torch", "torchvision", "fvcore", "pycocotools", "opencv-python", "scipy"],
    # What Detectron2's Cityscapes loader and evaluators import; the SVM of the probes; weight files
    # of that format; the writer for Weights & Biases.
    extras_require={
        "cityscapes": ["cityscapesscripts", "shapely"],
        "probe": ["scikit-learn"],
        "safetensors": ["safetensors"],
        "wandb": ["wandb"],
    },
    package_data={"detco_d2.reports": ["page.html.j2"]},
)
