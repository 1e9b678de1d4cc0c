"""Training steps kept on disk, so that a later process neither traces nor compiles them again.

Otherwise each process imports PyTorch's compiler, traces the step and compiles it, which takes
seconds even if PyTorch's own caches hold the machine code. A step kept here loads in milliseconds,
with the bits of the step that `torch.compile` makes.

`<key>.so` is a compiled step. `<key>-<name>.pt` is a function as a list of PyTorch's basic
operations: an eager step, or the evaluation of a batch. The key is a hash of everything that the
function depends on. Only functions made of PyTorch's modules and of this package's are kept: the
source of a user's model can change without a trace in the key.
"""

import hashlib
import io
import logging
import math
import os
import pickle
import platform
import tempfile
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from filelock import FileLock

from fmnist_sweep.base.errors import first_line
from fmnist_sweep.base.files import cache_folder, write_atomically

log = logging.getLogger(__name__)

# The files that are kept, by their suffix; those that have not been used for longest are removed.
# A compiled step takes 2 MB, a traced one 15 kB.
MAX_FILES = {".so": 200, ".pt": 2000}
_TRUSTED_MODULES = (
    "builtins",
    "collections",
    "torch",
    "torchvision",
    "fmnist_sweep.engine",
    "fmnist_sweep.models",
)

# A step as a function of a flat list of tensors, which it changes in place.
FlatStep = Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]


def folder() -> Path:
    """Return the folder of the kept steps."""
    return cache_folder() / "steps"


def is_portable(signature: Hashable) -> bool:
    """Return whether a stack key's signature tells the step apart in every process.

    Args:
        signature: `StackKey.signature`.
    """
    if not isinstance(signature, bytes):
        return False
    finder = _ModuleFinder(io.BytesIO(signature))
    try:
        finder.load()
    except Exception:  # the user's objects may raise any exception
        return False
    return all(_is_trusted(module) for module in finder.modules)


def _is_trusted(module: str) -> bool:
    return any(module == known or module.startswith(f"{known}.") for known in _TRUSTED_MODULES)


class _ModuleFinder(pickle.Unpickler):
    """Unpickles, and collects the modules of all classes and functions."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.modules: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.modules.add(module)
        return super().find_class(module, name)


class StepLibrary:
    """The steps of one stack key on disk.

    Args:
        signature: `StackKey.signature`; must be portable.
        settings: everything else that the step depends on, besides the tensors' shapes.
    """

    def __init__(self, signature: Hashable, *settings: Hashable) -> None:
        self.identity = (signature, settings, _environment())
        self.opened: dict[str, FlatStep | None] = {}

    def compiled(self, step: FlatStep, tensors: list[torch.Tensor]) -> FlatStep | None:
        """Return the step, compiled for tensors of these shapes; None if that is impossible.

        Compile it if it is not kept yet. Processes that want the same step wait for the first.
        """
        if not hasattr(torch._C, "_aoti"):  # private: another version of PyTorch may lack it
            return None
        return self._open(".so", tensors, partial(_compile, step), _load_compiled)

    def traced(self, name: str, step: FlatStep, tensors: list[torch.Tensor]) -> FlatStep | None:
        """Return a function as a list of operations, with the bits of the function itself.

        Args:
            name: tells the functions of a stack key apart.
            step: the function.
            tensors: its arguments, of the shapes with which it will be called.
        """
        trace = partial(_trace_to_file, step)
        return self._open(f"-{name}.pt", tensors, trace, _load_traced)

    def _open(
        self,
        suffix: str,
        tensors: list[torch.Tensor],
        make: Callable[[list[torch.Tensor], Path], None],
        load: Callable[[Path], FlatStep],
    ) -> FlatStep | None:
        shapes = repr([(tuple(t.shape), t.stride(), t.dtype) for t in tensors])
        if (known := f"{shapes}{suffix}") not in self.opened:
            key = hashlib.sha256(repr((self.identity, shapes)).encode()).hexdigest()[:32]
            name = f"{key}{suffix}"
            try:
                self.opened[known] = _open_file(folder() / name, partial(make, tensors), load)
            except Exception as error:  # such as a full disk, or a compiler that fails
                log.debug("The step %s is not kept: %s", name, first_line(error))
                self.opened[known] = None
        return self.opened[known]


def _open_file(
    path: Path,
    make: Callable[[Path], None],
    load: Callable[[Path], FlatStep],
    is_first_try: bool = True,
) -> FlatStep:
    """Load a kept step, after making it if it is missing or damaged."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                make(path)
                _remove_oldest(path.parent)
    with suppress(OSError):
        path.touch()  # it was used
    try:
        return load(path)
    except Exception:
        path.unlink()
        if not is_first_try:
            raise
        return _open_file(path, make, load, is_first_try=False)


@cache
def _environment() -> tuple[str, ...]:
    """Return what a step depends on besides its definition and its tensors."""
    package = Path(__file__).parent.parent
    sources = sorted((*package.glob("engine/*.py"), *package.glob("models/*.py")))
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    torchvision = ""
    with suppress(PackageNotFoundError):
        torchvision = version("torchvision")
    return digest.hexdigest(), torch.__version__, torchvision, platform.machine(), _instructions()


def _instructions() -> str:
    """Return the processor's instruction sets, for which a step is compiled."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor() + torch.backends.cpu.get_cpu_capability()


def _trace(step: FlatStep, tensors: list[torch.Tensor]) -> Any:
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(lambda *inputs: tuple(step(list(inputs))), tracing_mode="fake")(*tensors)


def _compile(step: FlatStep, tensors: list[torch.Tensor], path: Path) -> None:
    graph = _trace(step, tensors)
    # Would warn about a missing CUDA runtime where only the CUDA tools are installed.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # Precompiled headers save 7 s for each step and cost 19 s (an AMD EPYC): not worth it for the
    # first.
    is_first = not any(path.parent.glob("*.so"))
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        library = Path(scratch, "step.so")
        torch._inductor.aot_compile(
            graph,
            tuple(tensors),
            options={
                "aot_inductor.output_path": str(library),
                # The wrapper only calls kernels. Optimised, it takes longer to compile.
                "aot_inductor.compile_wrapper_opt_level": "O0",
                "aot_inductor.enable_line_tables": False,
                "aot_inductor.precompile_headers": not is_first,
                # Spares the compilation of a program that tries the instruction set.
                "cpp.vec_isa_ok": True,
            },
        )
        os.replace(library, path)


def _load_compiled(path: Path) -> FlatStep:
    # The documented loader imports the compiler, and unzips a package for every process.
    run: FlatStep = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1).run
    return run


def _trace_to_file(step: FlatStep, tensors: list[torch.Tensor], path: Path) -> None:
    graph = _trace(step, tensors)
    names = [node.target for node in graph.graph.nodes if node.op == "get_attr"]
    constants = {name: getattr(graph, name) for name in names}
    file = io.BytesIO()
    torch.save({"code": graph.code, "constants": constants}, file)
    write_atomically(path, file.getvalue())


def _load_traced(path: Path) -> FlatStep:
    kept = torch.load(path, weights_only=True)
    names: dict[str, Any] = {
        "torch": torch,
        "device": torch.device,
        "inf": math.inf,
        "nan": math.nan,
    }
    exec(kept["code"], names)
    forward, constants = names["forward"], SimpleNamespace(**kept["constants"])
    return lambda tensors: forward(constants, *tensors)


def _remove_oldest(steps: Path) -> None:
    """Remove the steps that have not been used for longest."""
    for suffix, most in MAX_FILES.items():
        kept = sorted(steps.glob(f"*{suffix}"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-most]:
            path.unlink(missing_ok=True)
            Path(f"{path}.lock").unlink(missing_ok=True)
