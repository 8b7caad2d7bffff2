"""Images with captions as users have them on disk, read into `ImageTextData`.

Captions lose the space round them and are otherwise what the file says; all of an image's captions are kept. An image
that has none in the languages asked for stays: a text may still find it, so that what is measured for a language does
not depend on which others were asked for.
"""

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeclip.errors import InputError
from edgeclip.inputs.image_folder import Found, list_images
from edgeclip_bench.quality.datasets import Caption, ImageTextData
from edgeclip_bench.quality.image_files import ImageFinder, MissingImageError, quote
from edgeclip_bench.quality.records import Record, as_list, as_text, list_folder, read_lines, read_records
from edgeclip_bench.quality.selection import Selection, choose_split

# Where people unpack what the layout's authors publish, beside its file.
_FLICKR_AND_COCO = ("images", "flickr30k_images", "flickr30k-images", "val2014", "train2014", "val2017", "train2017")
# The folders of the XTD10 repository: MIC's English, German and French, and STAIR's Japanese, lie apart.
_XTD10_FOLDERS = ("", "XTD10", "MIC", "STAIR")
_XTD10_NAMES = "test_image_names.txt"
_XTD10_CAPTIONS = "test_1kcaptions_"
# The only code there that is no ISO 639-1.
_XTD10_LANGUAGES = {"jp": "ja"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An image as a file names it (the likelier name first), its captions and their languages."""

    where: str
    names: tuple[str, ...]
    captions: tuple[tuple[str, str | None], ...]


def read_captions(path: Path, selection: Selection) -> ImageTextData:
    """edgeclip's own layout, JSON lines: {"image": "a.jpg", "caption": "..."}.

    "captions" may stand instead: a list, or an object of lists or single captions by language. "language" names a
    line's. An image may stand on several lines. Images lie in the file's folder or in its images/.
    """
    selection.refuse(path, "a list of captions", split="which has no splits")
    benchmark = selection.name.lower()  # nothing else says what it is
    items = (
        Item(where=record.where, names=(record.text("image"),), captions=_captions_of(record))
        for record in read_records(path)
    )
    return gather(items, path, selection, folders=("images",), benchmark=benchmark, is_split_up=True)


def read_image_folder(folder: Path, selection: Selection) -> ImageTextData:
    """A folder of images, each with a .txt of the same name beside it: a caption on each line."""
    layout = "a folder of images with a .txt beside each"
    selection.refuse(folder, layout, images="which holds the images", split="which has no splits")
    found = list_images(folder)
    images = [Path(path) for path in found]
    texts = {image.with_suffix(".txt"): image for image in images}
    if len(texts) < len(images):
        twin = next(image for image in images if texts[image.with_suffix(".txt")] != image)
        raise InputError(f"{twin}: another image has the same name but for the suffix, so the same .txt")
    used, found.left_out = {*images, *texts}, Found()
    for path in list_folder(folder):
        if path not in used and not path.is_dir():
            found.left_out.add(path.name)
    found.print_notes()
    items = (_read_text_beside(image, text) for text, image in texts.items())
    return gather(items, folder, selection, benchmark=selection.name.lower())


def read_karpathy(path: Path, document: Record, selection: Selection) -> ImageTextData:
    """Karpathy's split of Flickr8k, Flickr30k or COCO (dataset_flickr30k.json), by default its test split.

    {"images": [{"filename", "filepath" (COCO: "val2014"), "split", "sentences": [{"raw"}]}]} from
    cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip. "restval" counts as train, as all train on it.
    """
    entries = [
        ("train" if entry.text("split") == "restval" else entry.text("split"), entry)
        for entry in _objects(document, "images")
    ]
    if not entries:
        raise document.error("'images' is empty")
    split = choose_split({split for split, _ in entries}, selection.split, path)
    items = (_karpathy_item(entry) for of, entry in entries if of == split)
    benchmark = str(document.fields.get("dataset", selection.name)).lower() if split == "test" else None
    return gather(items, path, selection, folders=_FLICKR_AND_COCO, benchmark=benchmark)


def is_coco(folder: Path) -> bool:
    """Say whether the folder holds COCO's captions, as annotations/captions_val2017.json."""
    return bool(_coco_captions(folder))


def choose_coco(folder: Path, selection: Selection) -> Path:
    """The captions of the split among those in annotations/: "val" of captions_val2017.json, or "val2017"."""
    files = {file.stem.removeprefix("captions_"): file for file in _coco_captions(folder)}
    splits = {re.sub(r"\d+$", "", name): file for name, file in files.items()}
    if len(splits) < len(files) or selection.split in files:  # val2014 and val2017 are both "val"
        splits = files
    return splits[choose_split(splits, selection.split, folder)]


def read_coco(path: Path, document: Record, selection: Selection) -> ImageTextData:
    """COCO's own captions (captions_val2017.json), or another dataset's in that format.

    {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}, from cocodataset.org. The file
    usually lies in annotations/, the images in val2017/ beside that folder. Figures are published of Karpathy's
    splits, so only a name that was asked for makes it a known test.
    """
    selection.refuse(path, "COCO captions", split="of which each split is a file")
    files: dict[str, tuple[str, str]] = {}
    for entry in _objects(document, "images"):
        key = entry.id("id")
        if key in files:
            raise entry.error(f"id {key} is there twice")
        files[key] = entry.where, entry.text("file_name")
    captions: dict[str, list[tuple[str, None]]] = {key: [] for key in files}
    for entry in _objects(document, "annotations"):
        key = entry.id("image_id")
        if key not in captions:
            raise entry.error(f"image_id {key} is not among the images")
        captions[key].append((entry.text("caption"), None))
    items = (Item(where=where, names=(name,), captions=tuple(captions[key])) for key, (where, name) in files.items())
    is_apart = selection.images is None and path.absolute().parent.name == "annotations"
    beside = tuple(path.parent / ".." / name for name in _FLICKR_AND_COCO) if is_apart else ()
    benchmark = selection.name.lower() if selection.is_named else None
    return gather(items, path, selection, folders=_FLICKR_AND_COCO, beside=beside, benchmark=benchmark)


def read_crossmodal(path: Path, selection: Selection) -> ImageTextData:
    """Crossmodal-3600: captions.jsonl of captions.zip, and `<key>.jpg` of images.tgz, in images/ or beside.

    {"image/key": "...", "image/locale": "en", "en": {"caption": [...], ...}, "de": ...}, one line an image, 36
    languages; from google.github.io/crossmodal-3600. "image/locale" says where the image is from, not what is
    captioned.
    """
    selection.refuse(path, "Crossmodal-3600", split="which has no splits")
    items = map(_crossmodal_item, read_records(path))
    return gather(items, path, selection, folders=("images",), benchmark="xm3600")


def is_xtd10(folder: Path) -> bool:
    """Say whether the folder is XTD10's or holds it."""
    files = (folder / part / _XTD10_NAMES for part in _XTD10_FOLDERS)
    return any(file.is_file() for file in files) or bool(_xtd10_captions(folder))


def read_xtd10(folder: Path, selection: Selection) -> ImageTextData:
    """XTD10: 1000 COCO images, one caption of each in every language whose file is there.

    test_image_names.txt and test_1kcaptions_<language>.txt, line for line, as in the repository
    adobe-research/Cross-lingual-Test-Dataset-XTD10: its XTD10/, MIC/ and STAIR/, or all in one folder. Images (COCO's
    train2014 and val2014) lie in the folder or in one so named.
    """
    selection.refuse(folder, "XTD10", split="which has no splits")
    lists = [file for part in _XTD10_FOLDERS if (file := folder / part / _XTD10_NAMES).is_file()]
    texts = _xtd10_captions(folder)
    if len(lists) != 1 or not texts:
        found = f"{len(lists)} of {_XTD10_NAMES} and {len(texts)} of {_XTD10_CAPTIONS}*.txt"
        raise InputError(f"{folder}: holds {found}; XTD10 has one of the first and one of the second a language")
    selection.check_languages(texts, folder)
    names = _read_column(lists[0])
    columns = []
    for language, file in sorted(texts.items()):
        if selection.wants(language):
            columns.append([(text, language) for _, text in _read_column(file)])
            if len(columns[-1]) != len(names):
                raise InputError(f"{file}: {len(columns[-1])} lines, but {lists[0]} has {len(names)}")
    items = (
        Item(where=where, names=(name,), captions=tuple(captions))
        for (where, name), *captions in zip(names, *columns, strict=True)
    )
    return gather(items, folder, selection, folders=_FLICKR_AND_COCO, benchmark="xtd10")


def gather(
    items: Iterable[Item],
    path: Path,
    selection: Selection,
    *,
    folders: tuple[str, ...] = (),
    beside: tuple[Path, ...] = (),
    benchmark: str | None,
    is_split_up: bool = False,
) -> ImageTextData:
    """The data that the items are: the first `limit` images, and their captions in the languages asked for.

    Images lie in the folder asked for or else in that of `path`, in one of `folders` there, or in one of `beside`.
    Fewer images are an easier test, so a `limit` makes it no known one. An image may come twice only where
    `is_split_up`.
    """
    base = selection.images or (path if path.is_dir() else path.parent)
    finder = ImageFinder(base=base, folders=folders, beside=beside)
    images: dict[Path, int] = {}
    indices: dict[str, int | None] = {}  # by name, so that a file is looked for once; None where it is missing
    captions: list[Caption] = []
    languages: dict[str | None, None] = {}
    for item in items:
        if not item.captions:
            raise InputError(f"{item.where}: image {quote(item.names[0])} has no caption")
        name = os.path.normpath(item.names[0])
        if name not in indices:
            if len(images) == selection.limit:
                if is_split_up:  # a later line may have another caption of an image that is taken
                    continue
                break
            try:
                indices[name] = images.setdefault(finder.find(item.where, *item.names), len(images))
            except MissingImageError as error:
                if selection.on_missing is None:
                    raise
                selection.on_missing(str(error))
                indices[name] = None
        elif not is_split_up and indices[name] is not None:
            raise InputError(f"{item.where}: image {quote(item.names[0])} is there twice")
        if (image := indices[name]) is not None:
            for text, language in item.captions:
                languages[language] = None
                if selection.wants(language):
                    captions.append(Caption(text=text.strip(), image=image, language=language))
    if not images:
        raise InputError(f"{path}: holds no image with captions")
    selection.check_languages(languages, path)
    return ImageTextData(
        name=selection.name,
        images=tuple(images),
        captions=tuple(captions),
        benchmark=benchmark if selection.limit is None else None,
    )


def _objects(document: Record, key: str) -> Iterator[Record]:
    """The objects that the document has under `key`."""
    for index, value in enumerate(document.array(key)):
        yield Record.of(value, f"{document.where}: {key}[{index}]")


def _captions_of(record: Record) -> tuple[tuple[str, str | None], ...]:
    language = record.text("language") if record.get("language") is not None else None
    if ("caption" in record) == ("captions" in record):
        both = "both" if "caption" in record else "neither"
        raise record.error(f"has {both} of 'caption' and 'captions', wanted one")
    value = record.get("captions")
    if not isinstance(value, dict):
        return _texts(record.get("caption") if "caption" in record else value, record.where, language)
    if language is not None:
        raise record.error("'captions' are by language, so 'language' must not be there")
    by_language = [
        _texts(texts, f"{record.where}: 'captions'", as_text(key, record.where, "a language"))
        for key, texts in value.items()
    ]
    return tuple(itertools.chain.from_iterable(by_language))


def _texts(value: object, where: str, language: str | None) -> tuple[tuple[str, str | None], ...]:
    """One caption or a list of them, with their language."""
    values = value if isinstance(value, list) else [value]
    return tuple((as_text(text, where, "a caption"), language) for text in values)


def _read_text_beside(image: Path, text: Path) -> Item:
    if not text.is_file():
        raise InputError(f"{image}: {text.name} with its captions is not beside it")
    captions = tuple((line, None) for _, line in read_lines(text) if line.strip())
    return Item(where=str(text), names=(image.name,), captions=captions)


def _karpathy_item(entry: Record) -> Item:
    name = entry.text("filename")
    folder = entry.text("filepath") if "filepath" in entry else ""
    objects = (Record.of(value, f"{entry.where}: 'sentences'") for value in entry.array("sentences"))
    sentences = (Record(entry.where, sentence.fields) for sentence in objects)
    return Item(
        where=entry.where,
        names=(f"{folder}/{name}", name) if folder else (name,),
        captions=tuple((sentence.text("raw"), None) for sentence in sentences),
    )


def _crossmodal_item(record: Record) -> Item:
    captions: list[tuple[str, str | None]] = []
    for language, value in record.fields.items():
        if isinstance(value, dict):
            of_language = Record(f"{record.where}: {language!r}", value)
            captions += _texts(as_list(of_language.take("caption"), of_language.where), of_language.where, language)
    return Item(where=record.where, names=(f"{record.text('image/key')}.jpg",), captions=tuple(captions))


def _coco_captions(folder: Path) -> list[Path]:
    return sorted(file for file in (folder / "annotations").glob("captions_*.json") if file.is_file())


def _xtd10_captions(folder: Path) -> dict[str, Path]:
    """The file of each language."""
    files: dict[str, Path] = {}
    for part in _XTD10_FOLDERS:
        for file in sorted((folder / part).glob(f"{_XTD10_CAPTIONS}*.txt")):
            code = file.stem.removeprefix(_XTD10_CAPTIONS)
            language = _XTD10_LANGUAGES.get(code, code)
            if language in files:
                raise InputError(f"{file}: {files[language]} has the captions in {language!r} too; keep one")
            files[language] = file
    return files


def _read_column(file: Path) -> list[tuple[str, str]]:
    """The lines, after `file:number`; InputError for a blank one, unless only such follow."""
    lines = [(where, line.strip()) for where, line in read_lines(file)]
    while lines and not lines[-1][1]:
        lines.pop()
    for where, line in lines:
        as_text(line, where, "the line")
    return lines
