"""Pictures in a record, so that plots can be drawn again without training."""

import base64
import io

import numpy as np
from PIL import Image


def to_text(picture: np.ndarray) -> str:
    """RGB [H, W, 3] in [0, 1] as the text of a PNG file, 8 bits a color."""
    file = io.BytesIO()
    Image.fromarray(np.round(picture * 255).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def from_text(text: str) -> np.ndarray:
    """What `to_text` wrote."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) / 255
