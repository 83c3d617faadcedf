"""Images and caches that are damaged, hostile or out of reach: one clear line each, and nothing half-written."""

import errno
import os
import struct
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mas.benchmarks import DataError, archives, load_dataset
from mas.benchmarks.cache import cache_folder, digest_of
from mas.benchmarks.datasets import _load
from mas.benchmarks.loading import _copy_archives, pixels_of
from tests.data import make_folder

SPEC = {"name": "image_folder", "path": "a", "size": 8}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MAS_DATA", str(tmp_path))
    monkeypatch.setenv("MAS_CACHE", str(tmp_path / "cache"))
    make_folder(tmp_path / "a", {"x": 3, "y": 3})
    return tmp_path


def load(path="a", **options):
    _load.cache_clear()
    return load_dataset(SPEC | {"path": path} | options)


def complaint(path="a", **options):
    """Return the line that is said of images that cannot be used."""
    with pytest.raises(DataError) as error:
        load(path, **options)
    (line,) = str(error.value).splitlines()
    return line


def complaint_if_any():
    """Return what is said of folder a, or None: some damage leaves an image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow
        try:
            load()
        except DataError as error:
            (line,) = str(error).splitlines()
            assert " object at 0x" not in line
            return line
    return None


def pack(root, *, compression=zipfile.ZIP_STORED, **more):
    """Make a zip of the images of folder a, and of more files by name; return its path."""
    archive = root / "a.zip"
    with zipfile.ZipFile(archive, "w", compression) as file:
        for image in sorted((root / "a").rglob("*.png")):
            file.write(image, image.relative_to(root / "a").as_posix())
        for name, data in more.items():
            file.writestr(f"train/x/{name}.bmp", data)
    return archive


def patch(archive, offset, value, *, form="<H"):
    """Overwrite a field of the first member, in its own header and in the central directory."""
    data = bytearray(archive.read_bytes())
    for signature, start in ((b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)):
        struct.pack_into(form, data, data.index(signature) + start, value)
    archive.write_bytes(data)


@contextmanager
def without_rights():
    """Run as a user who owns nothing, where tests run as root."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def open_to_all(*folders):
    """Let every user enter a folder of pytest's."""
    for folder in folders:
        for part in (folder, *folder.parents):
            if part.stat().st_uid == os.getuid() and part != Path("/") and "pytest" in str(part):
                part.chmod(0o755)


# Zips


def test_an_encrypted_zip(root):
    patch(pack(root), 6, 1)
    line = complaint("a.zip")
    assert "a.zip: test/x/000.png is encrypted; expected a zip without a password: pack it again without" in line


def test_an_unknown_compression(root):
    patch(pack(root), 8, 99)
    line = complaint("a.zip")
    assert "a.zip: test/x/000.png is packed by method 99, which Python cannot unpack; pack it again" in line


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_data_that_are_damaged(root, compression):
    archive = pack(root, compression=compression)
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo("test/x/000.png")
    data = bytearray(archive.read_bytes())
    start = info.header_offset + 30 + len(info.filename)
    data[start : start + info.compress_size] = b"\xff" * info.compress_size
    archive.write_bytes(data)
    assert "a.zip: is damaged at test/x/000.png (" in complaint("a.zip")


def test_a_zip_whose_directory_is_damaged(root):
    archive = pack(root)
    data = archive.read_bytes()
    archive.write_bytes(data.replace(b"PK\x01\x02", b"PK\x09\x09"))
    assert "a.zip: is no readable zip (" in complaint("a.zip")


def test_a_zip_bomb_in_one_file_is_not_unpacked(root, monkeypatch):
    pack(root, compression=zipfile.ZIP_DEFLATED, bomb=bytes(8 << 20))
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    line = complaint("a.zip")
    assert "train/x/bomb.bmp unpacks to 8,388,608 bytes, " in line
    assert "allowed: 200 times; unpack it yourself and give the folder" in line


def test_a_zip_bomb_of_many_files_is_not_unpacked(root, monkeypatch):
    """Each is small enough; together they are not."""
    pack(root, compression=zipfile.ZIP_DEFLATED, **{f"part{i}": bytes(1 << 20) for i in range(70)})
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    assert "a.zip: the images unpack to 73,4" in complaint("a.zip")


def test_the_size_of_all_and_of_one_file_are_bounded(root, monkeypatch):
    pack(root)
    monkeypatch.setattr(archives, "MAX_MEMBER", 10)
    assert "000.png unpacks to" in complaint("a.zip")
    monkeypatch.setattr(archives, "MAX_MEMBER", 5000)
    monkeypatch.setattr(archives, "MAX_TOTAL", 100)
    assert "the images unpack to" in complaint("a.zip")


def test_grey_images_that_pack_well_are_no_bomb(root):
    grey = root / "grey.bmp"
    Image.new("L", (900, 900), 7).save(grey)
    pack(root, compression=zipfile.ZIP_DEFLATED, grey=grey.read_bytes())
    assert len(load("a.zip")[0]) == 7


# Images


def png(width, height):
    """Return a PNG whose header claims a size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_a_decompression_bomb(root):
    (root / "a/train/x/001.png").write_bytes(png(60_000, 60_000))
    line = complaint()
    assert "a/train/x/001.png: is no readable image (Image size (3600000000 pixels) exceeds limit" in line


def test_a_narrow_image_that_would_be_huge_once_resized(root):
    Image.new("L", (1_000_000, 1)).save(root / "a/train/x/001.png")
    line = complaint(size=64)
    assert "a/train/x/001.png: is 1000000 x 1 pixels, and 64000000 x 64 with its shorter side at 64" in line


@pytest.mark.parametrize("name", ["000.png", "001.gif", "002.tif", "003.webp", "004.bmp", "005.jpg", "006.ppm"])
def test_images_cut_off_or_overwritten_anywhere_name_the_file(root, name):
    file = root / "a/train/x" / name
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    Image.fromarray(noise).save(file)
    whole = file.read_bytes()
    draw = np.random.default_rng(1)
    for _ in range(12):
        damaged = bytearray(whole[: draw.integers(1, len(whole))])
        damaged[draw.integers(len(damaged))] ^= 0xFF
        file.write_bytes(damaged)
        line = complaint_if_any()
        assert line is None or f"a/train/x/{name}: is " in line


def test_a_broken_image_of_a_named_data_set_says_which():
    class Broken:
        _split = "train"

        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise OSError("image file is truncated")

    with pytest.raises(DataError, match=r"^Birds: image 0 cannot be read \(image file is truncated\); put "):
        pixels_of(Broken(), 8, title="Birds")


# Rights


def test_folders_and_files_of_another_user(root):
    open_to_all(root, root / "a")
    cache_folder().mkdir()
    cache_folder().chmod(0o777)
    for path in ("a/train/x", "a/train/x/001.png"):
        mode = (root / path).stat().st_mode
        (root / path).chmod(0)
        with without_rights():
            line = complaint()
        assert f"{path}: cannot be read (Permission denied); " in line
        (root / path).chmod(mode)


def test_a_zip_of_another_user(root):
    open_to_all(root)
    pack(root).chmod(0)
    with without_rights():
        assert "a.zip: cannot be read (Permission denied); " in complaint("a.zip")


# The cache


def cached():
    return sorted((cache_folder() / "decoded").glob("*.npy"))


def pixels():
    return torch.cat([part.pixels for part in load()])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        lambda data: b"\x93NUMPX" + data[6:],
    ],
)
def test_a_damaged_cached_array_is_named_and_made_anew(damage):
    before = pixels().clone()
    file = cached()[0]
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match=rf"{file.name}: does not match its checksum; it is made anew"):
        assert torch.equal(pixels(), before)
    assert file.read_bytes() == whole
    assert torch.equal(pixels(), before)  # and no warning


def test_an_array_of_the_same_shape_with_other_content_is_not_used():
    before = pixels().clone()
    file = cached()[0]
    other = np.load(file) + 1
    file.unlink()
    np.save(file, other)
    with pytest.warns(UserWarning, match="does not match its checksum"):
        assert torch.equal(pixels(), before)


@pytest.mark.parametrize("other", [np.zeros((6, 3, 8, 9), np.uint8), np.zeros((6, 3, 8, 8))])
def test_an_array_of_another_form_is_not_used(other):
    """Not even if its checksum holds."""
    before = pixels().clone()
    file = cached()[0]
    file.unlink()
    np.save(file, other)
    file.with_suffix(".sha256").write_text(digest_of(file))
    with pytest.warns(UserWarning, match="is made anew"):
        assert torch.equal(pixels(), before)


def test_an_array_without_a_checksum_is_made_anew():
    """Arrays of versions before 0.2 have none."""
    before = pixels().clone()
    for file in cached():
        file.with_suffix(".sha256").unlink()
        np.save(file, np.load(file) + 1)
    assert torch.equal(pixels(), before)
    assert all(file.with_suffix(".sha256").is_file() for file in cached())


def test_a_disk_that_is_full_leaves_nothing(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for place in ("numpy.save", "pathlib.Path.replace"):
        with monkeypatch.context() as patched:
            patched.setattr(place, full)
            line = complaint()
        assert f"{cache_folder()}: cannot be written (No space left on device); make room, or set MAS_CACHE" in line
        assert [path for path in cache_folder().rglob("*") if path.is_file()] == []
    assert len(load()[0]) == 6


def test_a_disk_that_is_full_leaves_no_half_copy_of_an_archive(root, monkeypatch):
    (root / "MNIST/raw").mkdir(parents=True)
    (root / "MNIST/raw/x.gz").write_bytes(b"whole")

    def full(source, target):
        target.write(b"wh")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfileobj", full)
        with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); make room"):
            _copy_archives(root, "MNIST")
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == []
    _copy_archives(root, "MNIST")
    assert (cache_folder() / "data/MNIST/raw/x.gz").read_bytes() == b"whole"


def test_a_cache_that_cannot_be_written(root):
    """What it holds is used; what it does not hold is said before anything is decoded."""
    before = pixels().clone()
    open_to_all(root, cache_folder() / "decoded")
    for file in cached():
        file.chmod(0o644)
        file.with_suffix(".sha256").chmod(0o644)
    for folder in (cache_folder(), cache_folder() / "decoded"):
        folder.chmod(0o555)
    with without_rights():
        assert torch.equal(pixels(), before)
        line = complaint(size=9)
    assert f"{cache_folder()}: cannot be written (Permission denied); make room, or set MAS_CACHE to a folder" in line


def test_a_cache_that_is_a_file(root):
    (root / "cache").write_text("x")
    assert "cache: cannot be written (" in complaint()


def test_no_home_directory(root, monkeypatch):
    for name in ("MAS_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(*_):
        raise KeyError("no such user")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    line = complaint()
    assert line == "no home directory to keep decoded images in; set MAS_CACHE to a folder that can be written"
    _load.cache_clear()
    assert len(load_dataset("digits")[0]) == 1437  # needs no cache
    monkeypatch.delenv("MAS_DATA")
    with pytest.raises(DataError, match=r"^no home directory"):  # there is no place to look for data in
        load_dataset("digits")
