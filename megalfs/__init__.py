"""megalfs distributes large files through a verified swarm, from ordinary tools."""

__all__ = ["__version__"]

__version__ = "0.1.0"
