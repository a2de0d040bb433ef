"""Size and SHA-256 of a file, or of a folder as one thing."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

STAMP = ".snakemake_timestamp"
"""Left by Snakemake inside folders that a job made; no content."""


def facts(path: Path) -> dict[str, object]:
    """Return bytes and sha256 of a file or folder."""
    return {"bytes": n_bytes(path), "sha256": sha256(path)}


def n_bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    return sum(part.stat().st_size for part in files(path))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file; of a folder: of its sorted relative names and contents."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in files(path):
        digest.update(f"{part.relative_to(path).as_posix()}\0{part.stat().st_size}\0".encode())
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def files(path: Path) -> Iterator[Path]:
    """Yield the file itself, or all files of a folder by name, without those of Snakemake."""
    if path.is_file():
        yield path
    else:
        yield from sorted(part for part in path.rglob("*") if part.is_file() and part.name != STAMP)
