import gzip
import os
import socket

import pytest

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.lines import Lines


def test_lines_are_counted_with_and_without_a_last_line_break(tmp_path):
    path = tmp_path / "data.tsv"
    for content, count in (("a\nb\n", 2), ("a\nb", 2), ("", 0), ("\n\n", 2)):
        path.write_text(content)
        lines = Lines(path)
        assert [number for number, _ in lines] == list(range(1, count + 1))
        assert lines.count == count


def test_packed_lines_are_those_that_were_packed(tmp_path):
    path = tmp_path / "DATA.TSV.GZ"
    path.write_bytes(gzip.compress("\ufeffä\nb\r\n".encode(), mtime=0))
    assert list(Lines(path)) == [(1, "ä\n"), (2, "b\r\n")]


@pytest.mark.parametrize(
    "content",
    [b"a\nb\n", gzip.compress(b"a\n" * 999, mtime=0)[:-12], gzip.compress(b"a", mtime=0)[:9]],
)
def test_what_cannot_be_unpacked_is_named(tmp_path, content):
    path = tmp_path / "data.csv.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"data.csv.gz: cannot be read \(.+\). Give a readable"):
        list(Lines(path))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(b"a", mtime=0), r"gzip. End its name in \.gz"),
        (b"PAR1\x15", r"Parquet. End its name in \.parquet"),
        (b"PK\x03\x04\x14", "a workbook. Unpack it, or save it as CSV"),
    ],
)
def test_a_file_that_is_no_text_is_named_by_its_kind(tmp_path, content, kind):
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"train.csv: no text, but .*{kind}"):
        list(Lines(path))


def test_what_may_never_end_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "fifo.csv")
    (tmp_path / "device.csv").symlink_to("/dev/zero")
    (tmp_path / "folder.csv").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(tmp_path, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/socket.csv")
        os.close(here)
        kinds = {"link": "FIFO"} | {name: name for name in ("device", "socket")}
        for name, kind in {"fifo": "FIFO", "folder": "directory", **kinds}.items():
            with pytest.raises(InputError, match=rf"{name}.csv: cannot be read \(Is a {kind}\)"):
                list(Lines(tmp_path / f"{name}.csv"))
