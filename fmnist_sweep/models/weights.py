"""Readers of weight files, of torchvision and of runs, with errors in one line."""

import functools
import pickle
import socket
import warnings
from http.client import HTTPException
from pathlib import Path

import torch
from torchvision.models import get_model_weights

State = dict[str, torch.Tensor]

# Seconds without an answer after which a download fails.
PATIENCE = 5.0


def read(path: Path) -> State:
    """Read a state dict without executing code from the file.

    Returns:
        Tensors by name, on the CPU. Later calls for the same file return the same tensors: do not
        change them in place.

    Raises:
        ValueError: the file does not exist, cannot be read, is damaged or is no state dict.
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


# A sweep builds its model once for the check and once per trial, usually from the same file.
@functools.lru_cache(maxsize=2)
def _read(path: Path, modified: int, size: int) -> State:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise ValueError(_DAMAGED) from None
        raise ValueError(
            "holds more than tensors, and loading it would execute code of its own, which is "
            "refused; save model.state_dict() alone"
        ) from None
    except Exception:  # the type depends on the place of the damage
        raise ValueError(_DAMAGED) from None
    if not isinstance(state, dict):
        raise ValueError(f"holds a {type(state).__name__}, not a state dict (tensors by name)")
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise ValueError(
                f"is not a state dict: its {name!r} is a {type(value).__name__}, not a tensor; "
                "save model.state_dict() alone"
            )
    return state


_DAMAGED = "is damaged, or not a file that torch.save has written"


def default(architecture: str) -> Path:
    """Return the path of torchvision's default weights, downloaded if the file does not exist.

    The folder is torch.hub's, `checkpoints` in `torch.hub.get_dir()`.

    Raises:
        ValueError: the download failed; the message says which file to put where.
    """
    url = get_model_weights(architecture).DEFAULT.url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[-1])
    if not path.exists():
        _download(url, path)
    return path


def _download(url: str, path: Path) -> None:
    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # torch.hub sets no timeout
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sha256_prefix = path.stem.rpartition("-")[-1]  # part of torchvision's file names
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256_prefix)
    except (OSError, HTTPException, RuntimeError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise ValueError(
            f"{url} cannot be downloaded ({reason}); put {path.name} into {path.parent}, "
            "or name its path as model.weights"
        ) from None
    finally:
        socket.setdefaulttimeout(previous_timeout)
