"""Weights in files: torchvision's own and those of a run; what is wrong with one, in a line."""

import functools
import pickle
import socket
import warnings
from http.client import HTTPException
from pathlib import Path

import torch
from torchvision.models import get_model_weights

State = dict[str, torch.Tensor]

# A server that does not answer is given up after so many seconds.
PATIENCE = 5.0


def read(path: Path) -> State:
    """Reads a state dict; nothing in the file is executed.

    Returns:
        Tensors by name, on the CPU, shared with later readers of the same file.

    Raises:
        ValueError: no such file, a damaged one, or one with more in it than named tensors.
    """
    try:
        status = path.stat()
        return dict(_read(path, status.st_mtime_ns, status.st_size))
    except FileNotFoundError:
        raise ValueError(
            "no such file; must be none, DEFAULT or a state dict's path, such as a run's model.pt"
        ) from None
    except IsADirectoryError:
        raise ValueError("is a folder; name the file in it (a run's is model.pt)") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None


# A sweep builds its model once for the check and once for each trial, mostly from one file.
@functools.lru_cache(maxsize=2)
def _read(path: Path, modified: int, size: int) -> State:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise ValueError(_DAMAGED) from None
        raise ValueError(
            "holds more than tensors, and loading it would execute code of its own, which is "
            "refused; save model.state_dict() alone"
        ) from None
    except Exception:  # what a damaged file raises depends on where the damage is
        raise ValueError(_DAMAGED) from None
    if not isinstance(found, dict):
        raise ValueError(f"holds a {type(found).__name__}, not a state dict (tensors by name)")
    for name, value in found.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise ValueError(
                f"is not a state dict: its {name!r} is a {type(value).__name__}, not a tensor; "
                "save model.state_dict() alone"
            )
    return found


_DAMAGED = "is damaged, or not a file that torch.save has written"


def default(architecture: str) -> Path:
    """The file of torchvision's default weights, downloaded if it is not there.

    It is looked for where torch.hub keeps its files, `checkpoints` in `torch.hub.get_dir()`.

    Raises:
        ValueError: it cannot be downloaded; says what to put where.
    """
    url = get_model_weights(architecture).DEFAULT.url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[-1])
    if not path.exists():
        _download(url, path)
    return path


def _download(url: str, path: Path) -> None:
    waited = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # torch.hub itself sets none
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digits = path.stem.rpartition("-")[-1]  # of its SHA-256, as torchvision names its files
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digits)
    except (OSError, HTTPException, RuntimeError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise ValueError(
            f"{url} cannot be downloaded ({reason}); put {path.name} into {path.parent}, "
            "or name its path as model.weights"
        ) from None
    finally:
        socket.setdefaulttimeout(waited)
