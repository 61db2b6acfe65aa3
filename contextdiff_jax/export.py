"""The export under its earlier name: programs import it from here; it lies in `pipeline/`."""

from contextdiff_jax.pipeline.export import is_export, read_config, read_networks, write

__all__ = ["is_export", "read_config", "read_networks", "write"]
