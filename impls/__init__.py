"""The implementations under study, one directory per framework.

Any directory named `impls` on the import path extends this package. A framework can therefore be added from outside the
repository, as a directory `impls/<name>/` that holds `model.py` and `backend.py`.
"""

import importlib.machinery
import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)


def names() -> list[str]:
    """Return the names of the frameworks: every sub-package that has a backend. None of them is imported."""
    packages = (module for module in pkgutil.iter_modules(__path__) if module.ispkg)
    return sorted(package.name for package in packages if _has_backend(package))


def _has_backend(package: pkgutil.ModuleInfo) -> bool:
    spec = package.module_finder.find_spec(package.name, None)
    locations = list(spec.submodule_search_locations or []) if spec else []
    return importlib.machinery.PathFinder.find_spec("backend", locations) is not None
