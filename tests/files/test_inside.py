import pytest

from increlora_jax.errors import InputError
from increlora_jax.files.inside import inside


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_text("x")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["a", "a.b", "sub/a", "..a", "a..", "...", "tür", " "])
def test_names_that_stay_are_paths_in_the_folder(folder, name):
    assert inside(folder, name, "index") == folder / name


@pytest.mark.parametrize(
    "name",
    [
        "../secret", "..", ".", "", "a/../../secret", "/etc/passwd", "//host/share", "C:\\secret",
        "C:secret", "a\\..\\..\\secret", "\\secret", "a\0b", "sub/..", 3, None, ["a"],
    ],
)  # fmt: skip
def test_names_that_leave_are_refused_with_what_said_them(folder, name):
    with pytest.raises(InputError, match=r"index.json: .* is not the name of a file in .*model"):
        inside(folder, name, "index.json")


def test_links_are_followed(folder):
    (folder / "out").symlink_to(folder.parent)
    (folder / "in").symlink_to(folder / "a")
    (folder / "loop").symlink_to(folder / "loop")
    assert inside(folder, "in", "index") == folder / "in"
    for name in ("out", "out/secret"):
        with pytest.raises(InputError, match=f"index: {name} is a link that leads out"):
            inside(folder, name, "index")


def test_a_folder_may_itself_be_a_link(folder, tmp_path):
    (tmp_path / "alias").symlink_to(folder)
    assert inside(tmp_path / "alias", "a", "index") == tmp_path / "alias" / "a"


def test_a_snapshot_may_link_to_its_own_blobs_alone(tmp_path):
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "good").symlink_to("../../blobs/1")
    (snapshot / "bad").symlink_to("../../../models--y/blobs/1")
    assert inside(snapshot, "good", "index") == snapshot / "good"
    with pytest.raises(InputError, match="bad is a link that leads out"):
        inside(snapshot, "bad", "index")


def test_a_subfolder_of_the_hubs_cache_leads_to_its_blobs_too(tmp_path):
    snapshot = tmp_path / "models--me" / "snapshots" / "abc" / "0_Transformer"
    snapshot.mkdir(parents=True)
    blob = tmp_path / "models--me" / "blobs" / "1"
    blob.parent.mkdir()
    blob.write_text("x")
    (snapshot / "shard").symlink_to(blob)
    assert inside(snapshot, "shard", "index").read_text() == "x"
