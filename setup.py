"""The packages; everything else is in pyproject.toml. The recipes in configs/ are installed inside the package, where
`contextdiff --config=t2i.py:small` looks them up."""

from setuptools import find_namespace_packages, setup

SHIPPED = "contextdiff_jax.shipped.configs"

setup(
    packages=[*find_namespace_packages(include=["contextdiff_jax*"]), SHIPPED],
    package_dir={SHIPPED: "configs"},
)
