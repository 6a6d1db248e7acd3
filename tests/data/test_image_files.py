import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hf_segkd.data.image_files import UnreadableImageError, open_image, read_rgb

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def encoded(kind, picture=None, **options):
    file = io.BytesIO()
    (Image.fromarray(PIXELS) if picture is None else picture).save(file, kind, **options)
    return file.getvalue()


def read(content, **options):
    return read_rgb(io.BytesIO(content), "photo", **options)


def png(width, height, *chunks):
    """A PNG whose header says what it likes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunk(*rest) for rest in chunks)


@pytest.mark.filterwarnings("ignore")  # PIL tells much of damaged TIFFs
@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_whatever_is_wrong_with_a_file_it_is_one_error_that_names_it(kind):
    # PIL's readers raise OSError, SyntaxError, ValueError, struct.error ... for such files.
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    whole, draw = encoded(kind, exif=exif), random.Random(0)
    errors, deep = [], []
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            content[draw.randrange(min(len(content), 400))] = draw.randrange(256)
        try:
            read(bytes(content), max_pixels=10_000)
        except UnreadableImageError as error:
            errors.append(str(error))
        except ValueError as error:
            errors.append(str(error))
            deep.append("8 bits" in errors[-1] or "channels (bands)" in errors[-1])
    assert len(errors) > 10
    assert all(error.startswith("photo: ") for error in errors)
    assert all(deep)


def test_the_size_in_the_header_is_judged_before_anything_is_decoded():
    with pytest.raises(UnreadableImageError, match=r"photo: 9000 x 9000 pixels, more than the limit of 1,000,000:"):
        read(png(9000, 9000, (b"IDAT", b"")), max_pixels=1_000_000)  # there is nothing to decode
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        read(png(30_000, 30_000, (b"IDAT", b"")))


def test_a_text_that_unpacks_to_more_than_it_may_is_refused():
    bomb = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(70_000_000)))
    with pytest.raises(UnreadableImageError, match="photo: cannot be decoded"):
        read(png(2, 2, bomb, (b"IDAT", zlib.compress(bytes(14))), (b"IEND", b"")))


@pytest.mark.parametrize("content", [b"", png(0, 4), png(4, 0), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_empty_or_of_another_kind_is_no_picture(content):
    with pytest.raises(UnreadableImageError, match="no picture that can be read"):
        read(content)


def test_a_picture_of_a_kind_that_runs_a_program_is_not_opened_whatever_its_name(tmp_path):
    encoded_eps = encoded("EPS")
    assert Image.open(io.BytesIO(encoded_eps)).format == "EPS"
    (tmp_path / "photo.png").write_bytes(encoded_eps)
    with pytest.raises(UnreadableImageError, match="no picture that can be read"):
        open_image(str(tmp_path / "photo.png"), "photo.png")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_animations_and_files_of_pages_are_refused(kind):
    second = Image.new("RGB", (32, 24), "red")
    with pytest.raises(UnreadableImageError, match="photo: holds several pictures"):
        read(encoded(kind, save_all=True, append_images=[second]))
    assert read(encoded(kind)).size == (32, 24)


def test_of_a_phones_photo_with_previews_the_photo_is_read():
    content = encoded("MPO", save_all=True, append_images=[Image.new("RGB", (8, 6), "red")])
    assert Image.open(io.BytesIO(content)).n_frames == 2
    assert np.array_equal(read(content), read(encoded("JPEG")))


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("RGBA", "PNG"), ("LA", "PNG")])
def test_other_colours_are_turned_into_rgb(mode, kind):
    plain = Image.new("RGB", (16, 16), (200, 200, 200))
    assert np.abs(np.asarray(read(encoded(kind, plain.convert(mode)))).astype(int) - 200).max() <= 2


def test_more_than_8_bits_are_refused_in_grey_and_cut_in_colour():
    for mode in ("I;16", "F"):
        with pytest.raises(ValueError, match=f"photo: the image has mode {mode}, more than 8 bits"):
            read(encoded("TIFF", Image.new(mode, (4, 4))))
    deep = bytearray(png(1, 1, (b"IDAT", zlib.compress(b"\0\x12\xff\x34\xff\x56\xff")), (b"IEND", b"")))
    deep[24] = 16  # bits per channel
    deep[29:33] = struct.pack(">I", zlib.crc32(bytes(deep[12:29])))
    assert read(bytes(deep)).getpixel((0, 0)) == (0x12, 0x34, 0x56)
