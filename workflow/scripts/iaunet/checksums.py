"""Size and SHA-256 of a file, or of a folder as one thing."""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

Stamp = tuple[int, ...]
"""Of a file: device, number, size and time; an edited file has another one."""

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


def sha256_of_model(path: Path) -> str:
    """Return the SHA-256 of a file that many steps read; a process computes it once."""
    return _sha256_of(path, stamp(path))


@functools.lru_cache(maxsize=2)
def _sha256_of(path: Path, of: Stamp) -> str:
    return sha256(path)


def stamp(path: Path) -> Stamp:
    """Return what tells a file from what it was."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def files(path: Path) -> Iterator[Path]:
    """Yield the file itself, or all files of a folder by name, without those of Snakemake."""
    if path.is_file():
        yield path
    else:
        yield from sorted(part for part in path.rglob("*") if part.is_file() and part.name != STAMP)
