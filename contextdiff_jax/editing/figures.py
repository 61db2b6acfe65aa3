"""Figures of an edited clip. Published ones differ between papers by their definitions, so each says what it is.

Frames are float [F, H, W, 3] in [-1, 1]; embeddings are CLIP's, [F, D]. Colour values count from 0 to 1 here.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import uniform_filter

from contextdiff_jax.data.clips import Motion

SSIM_WINDOW = 7
_C1, _C2 = 0.01**2, 0.03**2


def unit(features: np.ndarray) -> np.ndarray:
    """Features [..., D] of length one, in double precision."""
    features = np.asarray(features, np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def clip_text(images: np.ndarray, text: np.ndarray) -> float:
    """CLIP-text: the cosine of each frame's embedding [F, D] with the edited prompt's [D], averaged over frames."""
    return float(np.mean(unit(images) @ unit(text)))


def clip_temp_all(images: np.ndarray) -> float:
    """CLIP-temp of ContextDiff: the cosine of two frames' embeddings, averaged over all pairs of different frames."""
    cosines = unit(images) @ unit(images).T
    return float(np.mean(cosines[np.triu_indices(len(cosines), 1)]))


def clip_temp_neighbours(images: np.ndarray) -> float:
    """CLIP-temp of FateZero: the cosine of two frames' embeddings, averaged over neighbouring frames."""
    return float(np.mean(np.sum(unit(images)[1:] * unit(images)[:-1], axis=-1)))


def frame_accuracy(images: np.ndarray, target: np.ndarray, source: np.ndarray) -> float:
    """Share of frames whose embedding is nearer (by cosine) to the edited prompt's [D] than to the source prompt's."""
    return float(np.mean(unit(images) @ unit(target) > unit(images) @ unit(source)))


def psnr(frames: np.ndarray, reference: np.ndarray, where: np.ndarray | None = None) -> float:
    """10 log10(1 / mse) in decibels, the mean over all pixels of all frames, or over those of `where` bool [F, H, W].

    Outside an object's mask this is the background PSNR. NaN where no pixel is left.
    """
    squares = lambda x, y: ((np.asarray(x, np.float64) - np.asarray(y, np.float64)) / 2.0) ** 2
    mse = _mean_over_frames(squares, frames, reference, where)
    return float(-10.0 * np.log10(np.maximum(mse, 1e-10)))


def ssim(frames: np.ndarray, reference: np.ndarray, where: np.ndarray | None = None) -> float:
    """Structural similarity (Wang et al. 2004) in 7 x 7 uniform windows, K1 = 0.01, K2 = 0.03, unbiased variances.

    Averaged over channels and over all pixels, or over those of `where`, bool [F, H, W]: a window that reaches beyond
    those counts with its centre. Windows that reach beyond the picture see it mirrored.
    """
    return _mean_over_frames(_similarity, frames, reference, where)


def _similarity(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """SSIM of the window around each pixel of two frames [H, W, 3]."""
    x, y = ((np.asarray(v, np.float64) + 1.0) / 2.0 for v in (x, y))
    mean = lambda v: uniform_filter(v, (SSIM_WINDOW, SSIM_WINDOW, 1), mode="reflect")
    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    mx, my = mean(x), mean(y)
    vx, vy, vxy = (unbiased * (mean(a * b) - p * q) for a, b, p, q in ((x, x, mx, mx), (y, y, my, my), (x, y, mx, my)))
    return (2 * mx * my + _C1) * (2 * vxy + _C2) / ((mx**2 + my**2 + _C1) * (vx + vy + _C2))


def _mean_over_frames(
    of_pixels: Callable[[np.ndarray, np.ndarray], np.ndarray],
    frames: np.ndarray,
    reference: np.ndarray,
    where: np.ndarray | None,
) -> float:
    """Mean of what a function of two frames [H, W, 3] says of their pixels, over all of them or those of `where`; NaN
    where none is left. Frame by frame: a clip may be long, and copies of it in double precision large."""
    total, count = 0.0, 0
    for f, (x, y) in enumerate(zip(frames, reference, strict=True)):
        values = of_pixels(x, y).mean(axis=-1)
        values = values if where is None else values[where[f]]
        total, count = total + values.sum(), count + values.size
    return float(total / count) if count else float("nan")


def warp_error(frames: np.ndarray, motion: Motion) -> float:
    """Mean squared difference of each frame and the one before it warped by the flow, where the flow holds.

    E = mean over f and valid pixels p of |x_{f+1}(p) - x_f(p + flow_f(p))|^2 / 3, colours from 0 to 1, x_f read
    bilinearly. Papers multiply this by 10^2 or 10^3; here it is the number itself. On embedded clips the flow is the
    exact motion of the source, otherwise that of the user's file.
    """
    colours = lambda frame: (np.asarray(frame, np.float64) + 1.0) / 2.0
    _, height, width, _ = frames.shape
    ys, xs = np.mgrid[:height, :width]
    total, count = 0.0, 0
    for f, (flow, valid) in enumerate(zip(motion.flow, motion.valid, strict=True)):
        warped = bilinear(colours(frames[f]), xs + flow[..., 0], ys + flow[..., 1])
        squares = ((colours(frames[f + 1]) - warped) ** 2).mean(axis=-1)
        total, count = total + squares[valid].sum(), count + valid.sum()
    return float(total / count) if count else float("nan")


def bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """image [H, W, C] read at x, y [...]; beyond the border its last pixels."""
    height, width, _ = image.shape
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    right, down = (x - x0)[..., None], (y - y0)[..., None]
    top = image[y0, x0] * (1 - right) + image[y0, x1] * right
    bottom = image[y1, x0] * (1 - right) + image[y1, x1] * right
    return top * (1 - down) + bottom * down


def heat_in_mask(heat: np.ndarray, inside: np.ndarray) -> float:
    """Share of the attention to a word [F, h, w] that lies on its object, inside bool [F, H, W] (H a multiple of h)."""
    frames, height, width = heat.shape
    cells = inside.reshape(frames, height, inside.shape[1] // height, width, inside.shape[2] // width).mean(axis=(2, 4))
    return float((heat * cells).sum() / max(heat.sum(), 1e-12))

