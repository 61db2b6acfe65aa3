"""The contextual diffusion process: schedules, its Gaussians (Eqs. 1-3, 18), and charts for samplers."""

from contextdiff_jax.process import chart, forward, learned, schedule

__all__ = ["chart", "forward", "learned", "schedule"]
