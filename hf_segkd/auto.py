"""`register_when_transformers_loads`: makes the Auto classes know our networks, without importing transformers early.

`AutoModel.register` takes classes, and importing those takes seconds (torch, transformers). So `import hf_segkd` only
adds an import hook: right after transformers has loaded one of its Auto modules, our classes are registered there. If
it has loaded them before, they are registered at once.
"""

import importlib
import importlib.abc
import importlib.util
import sys

# Auto module of transformers -> our function that fills it.
_REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": "register_configs",
    "transformers.models.auto.modeling_auto": "register_models",
    "transformers.models.auto.image_processing_auto": "register_image_processors",
}


def register_when_transformers_loads() -> None:
    """Register our classes with each Auto module of transformers, now or as soon as it is imported."""
    if any(isinstance(finder, _AutoModuleFinder) for finder in sys.meta_path):
        return
    for name in _REGISTRATIONS:
        if name in sys.modules:
            _register(name)
    sys.meta_path.insert(0, _AutoModuleFinder())


def _register(auto_module: str) -> None:
    getattr(importlib.import_module("hf_segkd.models.auto_registration"), _REGISTRATIONS[auto_module])()


class _AutoModuleFinder(importlib.abc.MetaPathFinder):
    """Finds the Auto modules as Python would, and has them call `_register` once they are loaded."""

    def __init__(self) -> None:
        self.searching = False

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _REGISTRATIONS or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader) -> None:
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module) -> None:
        self.loader.exec_module(module)
        _register(module.__name__)

    def __getattr__(self, name: str):
        return getattr(self.loader, name)
