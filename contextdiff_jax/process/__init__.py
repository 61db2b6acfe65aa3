"""The contextual diffusion process: noise schedules, its Gaussians (Eqs. 1-3, 18), and the charts samplers work in."""

from contextdiff_jax.process import chart, forward, schedule

__all__ = ["chart", "forward", "schedule"]
