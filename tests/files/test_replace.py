"""What is replaced is there whole, old or new, wherever a kill or an error strikes."""

import errno
import os
import shutil
import subprocess
import sys
from itertools import count

import pytest

from increlora_jax.errors import WriteError
from increlora_jax.files.replace import find_folder, remove, replace_file, replace_folder

TOUCHES = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir")
"""The functions of `os` through which a replacement changes the disk."""


class KilledError(BaseException):
    """Ends everything where it is raised, as a kill does."""


def fill(folder, content):
    (folder / "deep").mkdir()
    for name in ("a", "deep/b"):
        (folder / name).write_text(content)


def read_folder(path):
    found = find_folder(path)
    contents = {(found / name).read_text() for name in ("a", "deep/b")}
    assert sorted(p.name for p in found.rglob("*")) == ["a", "b", "deep"]
    [content] = contents
    return content


def write_folder(path, content):
    with replace_folder(path) as aside:
        fill(aside, content)


def write_file(path, content):
    with replace_file(path) as aside:
        aside.write_text(content)


def read_file(path):
    return path.read_text()


BOTH = pytest.mark.parametrize(
    ("write", "read"),
    [(write_file, read_file), (write_folder, read_folder)],
    ids=["file", "folder"],
)


@BOTH
def test_the_new_takes_the_place_of_the_old_and_leaves_nothing_beside_it(tmp_path, write, read):
    for content in ("one", "two", "three"):
        write(tmp_path / "it", content)
        assert read(tmp_path / "it") == content
        assert [p.name for p in tmp_path.iterdir()] == ["it"]


def fail_at(patch, moment, is_after, error):
    """Let the `moment`-th call that touches the disk raise, before or after it does its work."""
    calls = count()

    def wrap(function):
        def touched(*args, **kwargs):
            is_now = next(calls) == moment
            if is_now and not is_after:
                raise error
            try:
                return function(*args, **kwargs)
            finally:
                if is_now:
                    raise error

        return touched

    for name in TOUCHES:
        patch.setattr(os, name, wrap(getattr(os, name)))


def strike_everywhere(folder, write, read, error, is_after):
    """Strike at every moment of a replacement; returns what was read after each."""
    seen, told = [], []
    for moment in count():
        write(folder / "it", "old")
        write(folder / "it", "newer")  # now there has been an old one before
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, moment, is_after, error)
            try:
                write(folder / "it", "new")
            except (KilledError, WriteError) as raised:
                told.append(str(raised))
            else:
                return seen, told
        seen.append(read(folder / "it"))
        write(folder / "it", "next")
        assert read(folder / "it") == "next"
        assert [p.name for p in folder.iterdir()] == ["it"]
    raise AssertionError


@BOTH
@pytest.mark.parametrize("is_after", [False, True])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path, write, read, is_after):
    seen, _ = strike_everywhere(tmp_path, write, read, KilledError(), is_after)
    assert set(seen) == {"newer", "new"}
    assert seen == sorted(seen, key=["newer", "new"].index)  # and never the old one again


@BOTH
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EXDEV, errno.EACCES, errno.EIO])
def test_an_error_at_any_moment_is_told_and_leaves_the_old(tmp_path, write, read, code):
    error = OSError(code, os.strerror(code))
    seen, told = strike_everywhere(tmp_path, write, read, error, is_after=False)
    assert all(message.startswith(f"{tmp_path / 'it'} cannot be written") for message in told)
    # Once the new one is in its place, only the syncing of the folder around it can fail.
    assert seen == ["newer"] * (len(seen) - 1) + ["new"]


def fill_halfway(path):
    with replace_folder(path) as aside:
        (aside / "half").write_text("h")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_error_while_the_new_is_filled_leaves_the_old(tmp_path):
    write_folder(tmp_path / "it", "old")
    with pytest.raises(WriteError, match=r"it cannot be written: .*No space left"):
        fill_halfway(tmp_path / "it")
    assert read_folder(tmp_path / "it") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["it"]


def test_other_errors_while_filling_come_through_and_leave_the_old(tmp_path):
    write_folder(tmp_path / "it", "old")
    with pytest.raises(KeyError), replace_folder(tmp_path / "it"):
        raise KeyError("x")
    assert read_folder(tmp_path / "it") == "old"


def test_a_parent_that_is_a_file_is_told(tmp_path):
    (tmp_path / "parent").write_text("")
    for write in (write_file, write_folder):
        with pytest.raises(WriteError, match=r"parent/it cannot be written"):
            write(tmp_path / "parent" / "it", "x")


def test_what_lies_in_the_way_does_not_matter(tmp_path):
    for name in (".it.new", ".it.old"):
        (tmp_path / name).write_text("a file where a folder goes")
    write_folder(tmp_path / "it", "x")
    assert read_folder(tmp_path / "it") == "x"


def test_a_link_in_the_way_is_removed_and_not_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (tmp_path / "in").mkdir()
    for name in (".it.new", ".it.old"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "precious")
    write_folder(tmp_path / "in" / "it", "x")
    assert (tmp_path / "precious" / "file").read_text() == "x"
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["it"]


def test_removing_takes_what_a_kill_left(tmp_path):
    for name in ("it", ".it.old", ".it.new"):
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / "other").write_text("")
    remove(tmp_path / "it")
    remove(tmp_path / "it")
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_a_disk_that_is_full_is_told_and_leaves_the_old(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a small disk")
    try:
        write_folder(disk / "it", "old")
        with pytest.raises(WriteError, match="No space left"):
            write_folder(disk / "it", "x" * 100_000)
        assert read_folder(disk / "it") == "old"
        remount = ["mount", "-o", "remount,ro", str(disk)]
        subprocess.run(remount, check=True)
        for write in (write_folder, write_file):
            with pytest.raises(WriteError, match="Read-only file system"):
                write(disk / "it", "new")
        assert read_folder(disk / "it") == "old"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


KILLS = """
import os, random, signal, sys, time
from itertools import count
from pathlib import Path
from increlora_jax.files.replace import find_folder, replace_folder

def write(path, content):
    with replace_folder(path) as aside:
        for name in "ab":
            (aside / name).write_text(content)

path, draw = Path(sys.argv[1]), random.Random(0)
write(path, "0")
last = 0
for _ in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        for number in count(last + 1):
            write(path, str(number))
    time.sleep(draw.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    a, b = (int((find_folder(path) / name).read_text()) for name in "ab")
    assert a == b >= last, (a, b, last)
    last = a
print(last)
"""


def kill_processes(tmp_path, kills):
    command = [sys.executable, "-c", KILLS, str(tmp_path / "it"), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > kills / 10


def test_killed_processes_leave_the_old_or_the_new(tmp_path):
    kill_processes(tmp_path, 40)


@pytest.mark.slow
def test_thousands_of_killed_processes_leave_the_old_or_the_new(tmp_path):
    kill_processes(tmp_path, 2000)
