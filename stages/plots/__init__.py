"""Drawing ECGs as paper shows them. Lives here: pictures of signals. Not here: figures of numbers (`stages.report`)."""

from stages.plots.ecg import Shade, plot_ecg
from stages.plots.files import PICTURE_FORMATS, picture_format, require_matplotlib, save_picture
from stages.plots.layouts import LAYOUTS
from stages.plots.scale import scale_of

__all__ = ["LAYOUTS", "PICTURE_FORMATS", "Shade", "picture_format", "plot_ecg", "require_matplotlib"]
__all__ += ["save_picture", "scale_of"]
