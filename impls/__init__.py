"""The implementations under study, one directory per framework.

Any directory named `impls` on the import path adds to this package, so a framework can be added
from outside the repository: a directory `impls/<name>/` holding `model.py` and `backend.py`.
"""

import importlib.machinery
import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)


def names() -> list[str]:
    """The frameworks there are: every sub-package with a backend, none of them imported."""
    packages = (module for module in pkgutil.iter_modules(__path__) if module.ispkg)
    return sorted(p.name for p in packages if _has_backend(p))


def _has_backend(package: pkgutil.ModuleInfo) -> bool:
    spec = package.module_finder.find_spec(package.name, None)
    places = list(spec.submodule_search_locations or []) if spec else []
    return importlib.machinery.PathFinder.find_spec("backend", places) is not None
