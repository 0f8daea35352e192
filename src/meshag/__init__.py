"""MeshAG: a distributed orchestrator for AI agents that talk."""

__version__ = "0.1.0"
