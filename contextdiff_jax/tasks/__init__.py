"""Training tasks beside the diffusion model, run by the same loop."""
