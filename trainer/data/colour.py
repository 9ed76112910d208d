"""From other colours to sRGB: wide primaries, HDR and gamma, as numbers.

Sources: transfer functions and luminance weights ITU-R BT.2100-2 (PQ: SMPTE ST 2084); white of HDR at 203 cd/m2 ITU-R
BT.2408; numbers of primaries, transfer functions and matrices ITU-T H.273; sRGB IEC 61966-2-1; matrices from
chromaticities SMPTE RP 177; change of white Bradford (ICC.1, annex E); the shoulder is the Moebius curve of FFmpeg's
filter tonemap.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WHITE = 203.0
"""cd/m2 of HDR that become sRGB's white."""

PEAK = 1000.0
"""cd/m2: what HDR is mastered for most often, and HLG's nominal peak; brighter parts are cut off."""

KNEE = 0.85
"""Light above this share of white is compressed, so that what is brighter than white is not all one white."""

PQ, HLG, SRGB = "pq", "hlg", "srgb"

_TRANSFERS = {16: PQ, 18: HLG, 8: "power 1"}
"""Others are shown as sRGB by players: their greys stay as they are."""

_D65 = (0.3127, 0.3290)
_BT709 = (0.64, 0.33), (0.30, 0.60), (0.15, 0.06)
_PRIMARIES = {
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
}
"""Wide ones (BT.2020, DCI-P3, Display P3): red, green, blue, white. Others differ little from BT.709, and players show
them as if they were."""

_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
            9: (0.2627, 0.0593)}
"""Of red and blue in luma, by number of the matrix."""

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

_LEVELS = 65536

_ROWS = 64
"""That are converted at a time, so that what lies between fits into a processor's cache."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """What numbers of red, green and blue mean, where it is not sRGB."""

    transfer: str
    """PQ, HLG, SRGB, or "power" with its exponent."""
    to_bt709: tuple[tuple[float, ...], ...] | None
    """From linear light to that of BT.709's primaries; None where these are its own."""

    @classmethod
    def of(cls, primaries: int, transfer: int) -> Encoding | None:
        """By the numbers of H.273; None where they mean sRGB or nothing that is known."""
        curve = _TRANSFERS.get(transfer, SRGB)
        if curve in (PQ, HLG) and primaries == 2:
            primaries = 9  # BT.2100 has no others
        wide = _PRIMARIES.get(primaries)
        return cls(curve, _to_bt709(*wide) if wide else None) if wide or curve != SRGB else None

    @classmethod
    def measured(
        cls, gamma: float, white: tuple[float, float] | None, corners: Sequence[tuple[float, float]]
    ) -> Encoding | None:
        """By a PNG's gAMA (0: none) and cHRM; None where they mean sRGB, or nothing possible."""
        curve = SRGB if gamma <= 0 or abs(gamma * 2.2 - 1) < 0.05 else f"power {1 / gamma:.4f}"
        matrix = None
        if white and np.abs(np.subtract((*corners, white), (*_BT709, _D65))).max() > 0.01:
            try:
                matrix = _to_bt709(*corners, white)
            except (np.linalg.LinAlgError, ArithmeticError):
                return None
        return cls(curve, matrix) if matrix or curve != SRGB else None

    @property
    def is_hdr(self) -> bool:
        return self.transfer in (PQ, HLG)


def to_srgb(samples_HW3: np.ndarray, encoding: Encoding, matrix: int | None = None) -> np.ndarray:
    """sRGB, uint8, of another encoding; what sRGB cannot show is clipped.

    Args:
        samples_HW3: uint8 or uint16 red, green and blue, full range; with a matrix, uint16 luma and chroma, limited.
        matrix: by its number in H.273.
    """
    srgb_HW3 = np.empty(samples_HW3.shape, np.uint8)
    with np.errstate(all="ignore"):  # another pack may have made rounding to zero an error
        for top in range(0, len(samples_HW3), _ROWS):
            rows = samples_HW3[top:top + _ROWS]
            rows = rows / np.float32(np.iinfo(rows.dtype).max) if matrix is None else _from_yuv(rows, matrix)
            srgb_HW3[top:top + _ROWS] = _srgb_table()[_level(_light(rows, encoding))]
    return srgb_HW3


def _from_yuv(yuv_HW3: np.ndarray, matrix: int) -> np.ndarray:
    red, blue = _WEIGHTS[matrix]
    green = 1 - red - blue
    luma, of_blue, of_red = ((yuv_HW3[..., i].astype(np.float32) - zero) / span
                             for i, (zero, span) in enumerate(((4096, 56064), (32768, 57344), (32768, 57344))))
    return np.stack((
        luma + 2 * (1 - red) * of_red,
        luma - 2 * blue * (1 - blue) / green * of_blue - 2 * red * (1 - red) / green * of_red,
        luma + 2 * (1 - blue) * of_blue), -1)


def is_known(matrix: int) -> bool:
    """Whether to_srgb has the matrix."""
    return matrix in _WEIGHTS


def _light(samples_HW3: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Linear light of BT.709's primaries, 1 is white."""
    light_HW3 = _light_table(encoding.transfer)[_level(samples_HW3)]
    if encoding.to_bt709:
        light_HW3 = np.maximum(light_HW3 @ np.float32(encoding.to_bt709).T, 0)
    if encoding.is_hdr:
        brightest_HW1 = light_HW3.max(-1, keepdims=True)  # all three by one factor: the hue stays
        if brightest_HW1.max() > KNEE:
            light_HW3 = light_HW3 * (_shoulder(brightest_HW1) / np.maximum(brightest_HW1, 1e-6))
    return light_HW3


def _level(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0, 1) * (_LEVELS - 1) + 0.5).astype(np.uint16)


def _shoulder(light: np.ndarray) -> np.ndarray:
    """The same up to KNEE, then ever less, and 1 at PEAK."""
    peak, knee = PEAK / WHITE, KNEE
    a = -knee ** 2 * (peak - 1) / (knee ** 2 - 2 * knee + peak)
    b = (knee ** 2 - 2 * knee * peak + peak) / (peak - 1)
    above = np.maximum(light, knee)
    return np.where(light <= knee, light, (b + knee) ** 2 / (b - a) * (above + a) / (above + b))


@functools.lru_cache(maxsize=16)
def _light_table(transfer: str) -> np.ndarray:
    """Light of each level, 1 is white."""
    signal = np.linspace(0, 1, _LEVELS)
    if transfer == PQ:  # BT.2100, table 4
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
        power = signal ** (1 / m2)
        light = 10_000 / WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    elif transfer == HLG:  # BT.2100, table 5
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(signal <= 0.5, signal ** 2 / 3, (np.exp((signal - c) / a) + b) / 12)
        # there the system gamma 1.2 is applied to the luminance; to each channel it is the same for greys, and
        # saturated colours stay within BT.709
        light = PEAK / WHITE * scene ** 1.2
    elif transfer == SRGB:
        light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    else:
        light = signal ** float(transfer.split()[1])
    return light.astype(np.float32)


@functools.cache
def _srgb_table() -> np.ndarray:
    light = np.linspace(0, 1, _LEVELS)
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (signal * 255 + 0.5).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _to_bt709(
    red: tuple[float, float], green: tuple[float, float], blue: tuple[float, float], white: tuple[float, float]
) -> tuple[tuple[float, ...], ...]:
    """From linear light of these primaries (x, y each) to that of BT.709's; white stays white."""
    source, target = _to_xyz(red, green, blue, white), _to_xyz(*_BT709, _D65)
    cones = _BRADFORD @ np.stack((_xyz(white), _xyz(_D65)), 1)
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(cones[:, 1] / cones[:, 0]) @ _BRADFORD
    matrix = np.linalg.inv(target) @ adapted @ source
    if not np.isfinite(matrix).all():
        raise ArithmeticError("no primaries")
    return tuple(map(tuple, matrix.tolist()))


def _to_xyz(*places: tuple[float, float]) -> np.ndarray:
    corners, white = np.stack([_xyz(place) for place in places[:3]], 1), _xyz(places[3])
    return corners * np.linalg.solve(corners, white)


def _xyz(place: tuple[float, float]) -> np.ndarray:
    x, y = place
    return np.array([x / y, 1, (1 - x - y) / y])
