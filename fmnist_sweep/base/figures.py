"""Matplotlib without a display, whatever backend the environment names.

Every other module imports Matplotlib's names from here.
"""

import io
import os

# Matplotlib's import fails if MPLBACKEND names a backend that is not installed. A notebook sets the
# variable for its kernel's child processes. Writing a PNG needs no backend.
_backend = os.environ.pop("MPLBACKEND", None)
from matplotlib import ticker  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import imread  # noqa: E402

if _backend is not None:
    os.environ["MPLBACKEND"] = _backend

__all__ = ["Axes", "Figure", "as_label", "imread", "png", "ticker"]


def as_label(text: str) -> str:
    """Return a user's text with dollar signs escaped, which would otherwise enclose a formula."""
    return text.replace("$", r"\$")


def png(drawn: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    image = io.BytesIO()
    drawn.savefig(image, format="png")
    return image.getvalue()
