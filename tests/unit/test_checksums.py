"""Checksums of files and of folders."""

import hashlib

from iaunet import checksums


def test_the_checksum_of_a_folder_is_that_of_names_and_contents(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "c").mkdir(parents=True)
        (tmp_path / name / "c" / "0").write_bytes(b"pixels")
    assert checksums.sha256(tmp_path / "a") == checksums.sha256(tmp_path / "b")
    (tmp_path / "b" / "c" / "0").rename(tmp_path / "b" / "c" / "1")
    assert checksums.sha256(tmp_path / "a") != checksums.sha256(tmp_path / "b")


def test_a_file_is_told_by_its_bytes_and_a_folder_without_what_snakemake_leaves(tmp_path):
    (tmp_path / "f").write_bytes(b"pixels")
    assert checksums.sha256(tmp_path / "f") == hashlib.sha256(b"pixels").hexdigest()
    before = checksums.sha256(tmp_path)
    (tmp_path / checksums.STAMP).touch()
    assert checksums.sha256(tmp_path) == before
    assert checksums.n_bytes(tmp_path) == 6


def test_a_file_that_changes_has_another_stamp_and_its_checksum_is_made_anew(tmp_path):
    path, seen = tmp_path / "m", set()
    for content in (b"a", b"ab", b"abc"):
        path.write_bytes(content)
        assert checksums.sha256_of_model(path) == hashlib.sha256(content).hexdigest()
        seen.add(checksums.stamp(path))
    assert len(seen) == 3
