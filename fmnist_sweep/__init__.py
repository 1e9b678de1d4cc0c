"""Hyperparameter sweeps around an MLP baseline on Fashion-MNIST.

    import fmnist_sweep as fs

    fs.train("optimizer.lr=0.01")
    fs.compare(fs.sweep("search=mlp", name="a"), "multirun/b")

`train`, `sweep` and `compare` are modules too, of commands and of the sweeper; they can be called.
Nothing is imported before it is used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist_sweep.api import Comparison, Error, Run, Sweep, compare, load, sweep, train

__all__ = ["Comparison", "Error", "Run", "Sweep", "compare", "load", "sweep", "train"]


class _CallableModule(ModuleType):
    """A module that is called as the function of the same name in `fmnist_sweep.api`."""

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        return getattr(import_module(f"{__name__}.api"), self.__name__.rpartition(".")[2])(
            *arguments, **more
        )


def _callable_module(name: str) -> property:
    def get(_: ModuleType) -> ModuleType:
        module = import_module(f"{__name__}.{name}")
        module.__class__ = _CallableModule
        return module

    # The import system sets the attribute, which stays what it is.
    return property(get, lambda *_: None)


class _Package(ModuleType):
    train = _callable_module("train")
    sweep = _callable_module("sweep")
    compare = _callable_module("compare")


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
