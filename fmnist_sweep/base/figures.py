"""Matplotlib, in one place: without a display, whatever backend is asked for.

Every other file takes what it draws with from here, so that matplotlib is imported once and right.
"""

import io
import os

# It would refuse to be imported with the name of a backend that is not installed, as a notebook
# sets it for its kernel's children; a PNG needs none.
_backend = os.environ.pop("MPLBACKEND", None)
from matplotlib import ticker  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import imread  # noqa: E402

if _backend is not None:
    os.environ["MPLBACKEND"] = _backend

__all__ = ["Axes", "Figure", "as_label", "imread", "png", "ticker"]


def as_label(text: str) -> str:
    """A user's text as a label that shows it: what stands between dollars would be a formula."""
    return text.replace("$", r"\$")


def png(drawn: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    image = io.BytesIO()
    drawn.savefig(image, format="png")
    return image.getvalue()
