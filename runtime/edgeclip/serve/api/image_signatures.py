"""Recognise the beginning of an image's file, so surely that no key, hash or text is taken for one. Pure.

`edgeclip.inputs.image_kinds` tells the files of a folder apart, which were put there as images: 3 bytes suffice. Here
anything may come, so as much as possible of a format's first 24 bytes is compared: "BM" alone would be a bitmap in
every 65,536th string. Formats that the decoder refuses are here too: its error says which it takes.
"""

import re

# The bytes that `begins_image` wants, where there are so many. An SVG's first element may stand behind much else.
LOOKED_AT_BYTES = 3072
# No key, digest or signature that is in common use is a JPEG of less; no JPEG that decodes is smaller.
_LEAST_OF_WEAK = 120
_MARKER = rb"[\x01\xc0-\xcf\xdb-\xef\xf0-\xf8\xfe]"
_SURE = re.compile(
    rb"\x89PNG\r\n\x1a\n|[\x8a\x8b][MJ]NG\r\n\x1a\n"
    # JPEG: a first segment of less than 4096 bytes, or one that says what it holds.
    rb"|\xff\xd8\xff+(?:[\xc0-\xcf\xdb-\xdd\xe0-\xef\xf7\xf8\xfe][\0-\x0f]|[\xe0-\xef]..(?:Exif|http|ICC_|Phot|JF[IX][FX]|MPF))"
    rb"|GIF8[79]a"
    rb"|RIFF.{4}WEBP"
    rb"|II[*+U]\0|MM\0[*+]|II\xbc[\0\1]|II(?:RO|RS)\x08\0|MMOR\0"  # TIFF and raw files in it, JPEG XR
    rb"|BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}"  # nothing in the reserved bytes, a header of a known size
    rb"|\0{3}\x0c(?:jP  |JXL )\r\n\x87\n|\xff\x4f\xff\x51"  # JPEG 2000 and JPEG XL
    rb"|\xff\x0a\xfa\x1f[\x01\x41]"  # JPEG XL of 1024 rows: pages test a browser with 45 bytes of it
    rb"|\0{2}.{2}ftyp(?:avi[fos]|he[iv][cmsx]|mi[af][12f]|msf1|crx |j2ki|MiH[ABE]|MA1[AB])"  # AVIF, HEIC and CR3
    rb"|\0\0[\1\2]\0[^\0]\0.{3}\0|icns\0"  # ICO, CUR and Apple's icons
    rb"|8BPS\0[\1\2]\0{6}|gimp xcf |v/1\x01.\0{3}|\xd7\xcd\xc6\x9a\0\0|BPG\xfb"  # Photoshop, GIMP, OpenEXR, WMF, BPG
    rb"|DDS \x7c\0{3}|qoif.{8}[\3\4][\0\1]|\x0a[\0\2-\5]\x01[\1\2\4\x08]\0{4}"  # DDS, QOI, PCX
    rb"|P[1-6]\s(?:#[^\n]*\n)?\s*\d+\s+\d+\s|P7\nWIDTH |FUJIFILMCCD-RAW"  # PNM, PAM, RAF
    rb"|%PDF-\d\.\d\s*[\r\n]|%!PS-Adobe-\d\.\d EPSF|\xc5\xd0\xd3\xc6"
    rb"|(?:\xef\xbb\xbf)?\s*<svg[\s>]",
    re.DOTALL,
)
_WEAK = re.compile(rb"\xff\xd8\xff+" + _MARKER + rb"|\xff\x0a", re.DOTALL)
_XML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|!DOCTYPE|!--|svg:svg)")
_SVG = re.compile(rb"<(?:!DOCTYPE\s+|svg:)?svg[\s>]")


def begins_image(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `head` is an image's.

    At least 24 bytes of the file, or all, must be in `head`; with LOOKED_AT_BYTES of it an SVG that begins as
    XML does is known too.
    """
    return (
        _SURE.match(head) is not None
        or (size >= _LEAST_OF_WEAK and _WEAK.match(head) is not None)
        or (_XML.match(head) is not None and _SVG.search(head, 0, LOOKED_AT_BYTES) is not None)
    )
