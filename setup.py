"""Reads everything from settings.ini, which nbdev shares."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(root / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
extras = {name: cfg[f"{name}_requirements"].split() for name in ("lab", "hub", "fid", "site", "dev")}
extras["dev"] += extras["lab"] + extras["hub"] + extras["site"]


class BuildWithoutIndex(build_py):
    """Leaves out `_modidx.py`, the index that nbdev writes at each export and nothing in the library reads."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [(package, module, path) for package, module, path in modules if module != "_modidx"]


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["diffusion_course", "diffusion_course.*"]),
    package_data={"diffusion_course": ["py.typed", "*.js", "weights/*", "weights/*/*"]},
    cmdclass={"build_py": BuildWithoutIndex},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    python_requires=">=" + cfg["min_python"],
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
