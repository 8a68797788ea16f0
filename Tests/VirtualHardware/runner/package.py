"""Builds a Swift package for a guest's architecture."""

from pathlib import Path

from parts import Parts


def build(package: Path, parts: Parts) -> list[Path]:
    raise NotImplementedError
