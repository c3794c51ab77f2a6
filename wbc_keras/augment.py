"""Random changes to training cells: where their pixels lie, how sharp and of what colours.

The random numbers are drawn outside the layer as a function of seed, epoch and cell, so that two
runs see the same pictures, a resumed run goes on with the right ones, and two epochs differ. The
layer itself is a pure function in `keras.ops`: it runs in ``tf.data``, on a device, under XLA.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from wbc_keras.config import AugmentConfig

# The first ten come from one stream, what was added later from others: older figures stay
# repeatable.
_COLUMNS = (
    "flip",
    "turn",
    "rotation",
    "shift_y",
    "shift_x",
    "zoom",
    "brightness",
    "contrast",
    "hue",
    "saturation",
)
_STRENGTHS = ["flip", "quarter_turns", "rotation", "shift", "zoom"]
_STRENGTHS += ["brightness", "contrast", "hue", "saturation", "stain", "sharpness", "tint"]
_STAIN_COLUMNS = 6  # a strength and an offset for each of three stains
_SHARPNESS_COLUMNS = 1
_TINT_COLUMNS = 3  # a gain for each of R, G, B
# Columns of each stream of random numbers; mixing cells draws from stream 3.
_STREAMS = {1: len(_COLUMNS), 2: _STAIN_COLUMNS, 4: _SHARPNESS_COLUMNS, 5: _TINT_COLUMNS}
UNIFORMS = sum(_STREAMS.values())  # random numbers a cell and epoch
# Standard deviations of blurs, in shares of the shorter side: 1.4 and 2.9 pixels at 96. Platelets
# are enlarged that much by the crop: unblurred, softness alone would tell them from leukocytes.
_SOFT, _SOFTER = 0.015, 0.03
# Optical densities of haematoxylin, eosin and DAB in R, G, B (Ruifrok and Johnston 2001, table 1).
# A Wright-Giemsa smear has other dyes; what is wanted is three axes of absorption to vary.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
# RGB to YIQ (NTSC, FCC 1953): hue is a rotation of I and Q, saturation their length.
_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32
)


def draw_uniforms(cells: int, *, seed: int, epoch: int) -> np.ndarray:
    """Draw what one epoch's augmentation needs: float32 ``(cells, 20)`` in [0, 1), row = cell."""
    # The last number parts these streams from each other and from that of the cells' order.
    parts = [
        np.random.default_rng([seed, epoch, stream]).random((cells, columns), dtype=np.float32)
        for stream, columns in _STREAMS.items()
    ]
    return np.concatenate(parts, axis=1)


@keras.saving.register_keras_serializable("wbc_keras")
class CellAugmentation(keras.layers.Layer):
    """Flips, turns, shifts, zooms, blurs and restains cells; a strength of 0 turns a change off.

    Args:
        flip: mirror half of the cells.
        quarter_turns: turn by 0, 90, 180 or 270 degrees (on square pictures exact).
        rotation: free rotation, degrees either way.
        shift: share of the side, either way.
        zoom: share, in or out.
        brightness: share of 255, up or down.
        contrast: share, up or down, about the picture's mean colour.
        hue: degrees in the YIQ plane, either way.
        saturation: share, up or down.
        stain: share by which each of three stains absorbs more or less, and optical density by
            which it is shifted, up or down (Tellez et al. 2019, section 3.2: HED-light at 0.05,
            HED-strong at 0.2).
        sharpness: at 1, blurred by a Gaussian of up to 3 % of the side, or sharpened by up to what
            one of 1.5 % takes away (unsharp masking); in between and less in proportion.
        tint: how much the light of R, G and B may differ, as the logarithm of their gains, up or
            down; the brightest of the three stays as it is.

    Call arguments:
        images: ``(batch, height, width, 3)``, RGB 0-255, any dtype.
        uniforms: ``(batch, 20)`` in [0, 1), rows of `draw_uniforms`.

    Returns:
        float32 ``(batch, height, width, 3)``, RGB 0-255. Pixels from outside the picture mirror it.
    """

    def __init__(
        self,
        *,
        flip: bool = True,
        quarter_turns: bool = True,
        rotation: float = 0.0,
        shift: float = 0.0,
        zoom: float = 0.0,
        brightness: float = 0.0,
        contrast: float = 0.0,
        hue: float = 0.0,
        saturation: float = 0.0,
        stain: float = 0.0,
        sharpness: float = 0.0,
        tint: float = 0.0,
        **kwargs: Any,
    ) -> None:
        # Under mixed precision too: 8 bits of mantissa do not hold the coordinate of a pixel.
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.flip = flip
        self.quarter_turns = quarter_turns
        self.rotation = rotation
        self.shift = shift
        self.zoom = zoom
        self.brightness = brightness
        self.contrast = contrast
        self.hue = hue
        self.saturation = saturation
        self.stain = stain
        self.sharpness = sharpness
        self.tint = tint

    def call(self, images: Any, uniforms: Any) -> Any:
        images = ops.cast(images, "float32")
        simple, stain, sharpness, tint = _part(uniforms)
        random = dict(zip(_COLUMNS, ops.unstack(simple, len(_COLUMNS), axis=1), strict=True))
        # What is off takes no time.
        if self.flip or self.quarter_turns or self.rotation or self.shift or self.zoom:
            images = self._move(images, random)
        if self.sharpness:
            images = _sharpen(images, _spread(sharpness, self.sharpness))
        if self.stain:
            images = _vary_stains(images, _spread(stain, self.stain))
        if self.tint:
            images = _tint(images, _spread(tint, self.tint))
        if self.brightness or self.contrast or self.hue or self.saturation:
            images = self._restain(images, random)
        return images

    def _move(self, images: Any, random: dict[str, Any]) -> Any:
        height, width = images.shape[1:3]
        angle = _spread(random["rotation"], math.radians(self.rotation))
        if self.quarter_turns:
            angle = angle + ops.floor(random["turn"] * 4) * (math.pi / 2)
        # The matrix maps output to input, so zooming in divides.
        scale = 1 / (1 + _spread(random["zoom"], self.zoom))
        mirror = ops.where(random["flip"] < 0.5, -1.0, 1.0) if self.flip else 1.0
        xx, xy = scale * ops.cos(angle) * mirror, -scale * ops.sin(angle)
        yx, yy = scale * ops.sin(angle) * mirror, scale * ops.cos(angle)
        center_x, center_y = (width - 1) / 2, (height - 1) / 2
        shift_x = center_x - xx * center_x - xy * center_y
        shift_y = center_y - yx * center_x - yy * center_y
        shift_x = shift_x + _spread(random["shift_x"], self.shift * width)
        shift_y = shift_y + _spread(random["shift_y"], self.shift * height)
        return _warp(images, (xx, xy, shift_x), (yx, yy, shift_y))

    def _restain(self, images: Any, random: dict[str, Any]) -> Any:
        hue = _spread(random["hue"], math.radians(self.hue))
        saturation = 1 + _spread(random["saturation"], self.saturation)
        contrast = 1 + _spread(random["contrast"], self.contrast)
        brightness = _spread(random["brightness"], self.brightness * 255)
        matrix = _colour_matrix(hue, saturation)
        mean = ops.mean(images, axis=(1, 2), keepdims=True)
        # One product for the whole chain: contrast * (colour @ (x - mean)) + colour @ mean.
        moved = _apply(images - mean, contrast[:, None, None] * matrix) + _apply(mean, matrix)
        return ops.clip(moved + brightness[:, None, None, None], 0.0, 255.0)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {name: getattr(self, name) for name in _STRENGTHS}

    def compute_output_shape(self, images_shape: Any, uniforms_shape: Any = None) -> Any:
        return images_shape


def make_augmentation(settings: AugmentConfig) -> CellAugmentation:
    """Return the layer of the settings' changes to single cells; mixing two is `mixing`'s."""
    strengths = dataclasses.asdict(settings)
    return CellAugmentation(**{name: strengths[name] for name in _STRENGTHS})


def _part(uniforms: Any) -> list[Any]:
    """Return each stream's columns."""
    ends = itertools.accumulate(_STREAMS.values(), initial=0)
    return [uniforms[:, start:end] for start, end in itertools.pairwise(ends)]


def _spread(uniform: Any, strength: float) -> Any:
    """Map [0, 1) to [-strength, strength)."""
    return (uniform * 2 - 1) * strength


def _sharpen(images: Any, changes: Any) -> Any:
    """Sharpen (changes ``(batch, 1)`` over 0) or blur: at -0.5 softly, at -1 twice as far."""
    soft, softer = (_blur(images, share * min(images.shape[1:3])) for share in (_SOFT, _SOFTER))
    near = ops.where(changes < 0, ops.maximum(2 * changes, -1.0), changes)
    far = ops.clip(2 * changes + 1, -1.0, 0.0)
    near, far = near[:, :, None, None], far[:, :, None, None]
    return ops.clip(images + near * (images - soft) + far * (soft - softer), 0.0, 255.0)


def _blur(images: Any, deviation: float) -> Any:
    """Blur ``(batch, h, w, 3)`` by a Gaussian; pixels from outside the picture mirror it."""
    reach = math.ceil(3 * deviation)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2).astype(np.float32)
    across = np.repeat(taps / taps.sum(), 3).reshape(1, -1, 3, 1)
    images = ops.pad(images, [[0, 0], [reach, reach], [reach, reach], [0, 0]], mode="symmetric")
    for kernel in (across, across.transpose(1, 0, 2, 3)):
        images = ops.depthwise_conv(images, kernel, padding="valid")
    return images


def _vary_stains(images: Any, changes: Any) -> Any:
    """Scale each stain by 1 + a change and shift it by another, in optical density.

    Unmixing, scaling and mixing are one matrix a picture.
    """
    density = -ops.log((images + 1.0) / 256.0)
    scaled = (1.0 + changes[:, :3])[:, :, None] * _STAINS
    matrix = ops.transpose(ops.matmul(np.linalg.inv(_STAINS), scaled), (0, 2, 1))
    shift = ops.matmul(changes[:, 3:], _STAINS)
    density = _apply(density, matrix) + shift[:, None, None, :]
    return ops.clip(256.0 * ops.exp(-density) - 1.0, 0.0, 255.0)


def _tint(images: Any, log_gains: Any) -> Any:
    """Weaken two of the three channels ``(batch, 3)`` against the strongest, as coloured light."""
    gains = ops.exp(log_gains - ops.max(log_gains, axis=1, keepdims=True))
    return images * gains[:, None, None, :]


def _warp(images: Any, to_x: tuple[Any, Any, Any], to_y: tuple[Any, Any, Any]) -> Any:
    """Sample ``(batch, h, w, 3)`` bilinearly, each output pixel at an affine map of its place.

    Written out because TensorFlow's own transform keeps XLA from compiling what it stands in;
    compiled, this takes a third of its time.
    """
    height, width = images.shape[1:3]
    column, row = ops.arange(width, dtype="float32"), ops.arange(height, dtype="float32")[:, None]
    x, y = (
        _mirror(a[:, None, None] * column + b[:, None, None] * row + c[:, None, None], size)
        for (a, b, c), size in ((to_x, width), (to_y, height))
    )
    # One less than the last, so that the neighbour to the right or below is a pixel too.
    left, top = ops.minimum(ops.floor(x), width - 2), ops.minimum(ops.floor(y), height - 2)
    right_share, lower_share = (x - left)[..., None], (y - top)[..., None]
    starts = ops.arange(ops.shape(images)[0], dtype="int32") * (height * width)
    corner = ops.cast(top * width + left, "int32") + starts[:, None, None]
    pixels = ops.reshape(images, (-1, 3))
    upper, lower = (
        ops.take(pixels, corner + down, axis=0) * (1 - right_share)
        + ops.take(pixels, corner + down + 1, axis=0) * right_share
        for down in (0, width)
    )
    return upper * (1 - lower_share) + lower * lower_share


def _mirror(place: Any, size: int) -> Any:
    """Fold places outside 0 to size - 1 back: ... 1 0 | 0 1 ... n | n n-1 ..."""
    folded = size - ops.abs(ops.mod(place + 0.5, 2.0 * size) - size) - 0.5
    return ops.clip(folded, 0.0, size - 1.0)


def _colour_matrix(hue: Any, saturation: Any) -> Any:
    """Return ``(batch, 3, 3)``: RGB to YIQ, rotate and stretch I and Q, and back."""
    cos, sin = saturation * ops.cos(hue), saturation * ops.sin(hue)
    one, zero = ops.ones_like(cos), ops.zeros_like(cos)
    rows = [[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]]
    turned = ops.stack([ops.stack(row, axis=-1) for row in rows], axis=1)
    return ops.matmul(ops.matmul(np.linalg.inv(_YIQ), turned), _YIQ)


def _apply(images: Any, matrix: Any) -> Any:
    """Multiply every pixel of ``(batch, h, w, 3)`` by its picture's ``(batch, 3, 3)``."""
    height, width = images.shape[1:3]
    pixels = ops.reshape(images, (-1, height * width, 3))
    coloured = ops.matmul(pixels, ops.transpose(matrix, (0, 2, 1)))
    return ops.reshape(coloured, (-1, height, width, 3))
