import os

import pytest

from increlora_jax.errors import InputError
from increlora_jax.files.bounded import open_plain, read_bounded


def test_a_file_is_read_up_to_its_bound(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bounded(tmp_path / "a", 5) == b"12345"
    with pytest.raises(InputError, match="a has more than the 4 bytes"):
        read_bounded(tmp_path / "a", 4)


def test_what_never_ends_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(InputError, match=f"{name} cannot be read: not a plain file"):
            read_bounded(tmp_path / name, 10)
        with pytest.raises(OSError, match="not a plain file"):
            open_plain(tmp_path / name)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="nothing cannot be read: No such file"):
        read_bounded(tmp_path / "nothing", 10)
    with pytest.raises(InputError, match="cannot be read"):
        read_bounded(tmp_path, 10)
