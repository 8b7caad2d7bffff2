"""Read data sets of pages: ViDoRe v1, v2 and v3 and Jina-VDR as the Hub has them, or the same as JSON lines.

The form "beir" has three tables: queries, a corpus of pages, and graded judgements (qrels). The form "qa" has one, of
pages and the query of each, if it has one. The two give different figures (`pages.search.merge`). Ids and texts are
held; images are read again each time they are wanted.
"""

import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeclip.errors import InputError
from edgeclip_bench.quality.datasets import Caption, ImageTextData, PageData, PageImage, PageQueries, Pages
from edgeclip_bench.quality.image_files import ImageFinder
from edgeclip_bench.quality.pages.pieces import (
    NEEDED,
    Pieces,
    Role,
    Splits,
    check_shards,
    find_pieces,
    is_language,
    repository_of,
)
from edgeclip_bench.quality.pages.tables import SUFFIXES, Table
from edgeclip_bench.quality.records import Record, as_text, list_folder, plain_suffix
from edgeclip_bench.quality.selection import Selection, choose_split
from edgeclip_bench.quality.text_layouts import is_retrieval, last_grades, place_grades, read_grade

_IMAGE = ("image", "image_path", "image_file")
_FILE_NAME = ("image_filename", "file_name")
_DOCUMENT_ID = ("corpus-id", "corpus_id", "_id", "id")
_QUERY_ID = ("query-id", "query_id", "_id", "id")
_QUERY = ("query", "text", "question")
_PAGE_TEXT = ("text", "text_description", "markdown")
_LANGUAGE = ("language", "lang")
_TEST = (None, "test")


@dataclass(frozen=True, slots=True)
class PageTable:
    """The images in a column of a table, and the texts in another, read again at each iteration."""

    table: Table
    column: str
    finder: ImageFinder
    count: int
    text: str | None = None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[PageImage]:
        for record in self.table.page_rows([self.column, *([self.text] if self.text else [])]):
            text = ""
            if self.text and record.get(self.text) is not None:
                text = record.text(self.text, may_be_empty=True)
            yield PageImage(where=record.where, source=_source(record, self.column, self.finder), text=text)


def open_pages(folder: Path, selection: Selection) -> tuple[PageData, ...] | None:
    """The page data sets of a folder, one for each task; None for a folder that holds none.

    A folder of a collection has a folder for each task. Raises InputError for a piece that is missing or damaged, and
    MissingExtraError where pyarrow is missing and parquet must be read.
    """
    if (read := _reader(folder)) is not None:
        name = selection.name if selection.is_named else _name_of(folder)
        return (read(replace(selection, name=name)),)
    inner = [path for path in list_folder(folder) if path.is_dir() and not is_language(path.name)]
    tasks = [(path, its) for path in inner if _may_be_task(path) and (its := _reader(path)) is not None]
    taken = {path for path, _ in tasks}
    if tasks and (texts := [path.name for path in inner if path not in taken and is_retrieval(path)]):
        warnings.warn(
            f"{folder}: left out {', '.join(texts)}, which has texts and no images of pages; evaluate it by itself",
            stacklevel=2,
        )
    return tuple(its(replace(selection, name=_name_of(path))) for path, its in tasks) or None


def open_page_table(file: Path, selection: Selection) -> PageData | None:
    """The data set in a single file of the form "qa"; None for a file of another form."""
    if not _is_page_table(file):
        return None
    pieces = Pieces(file.parent)
    pieces.add(None, "table", None, file)
    return _read_tables(pieces, selection)


def captions_of(folder: Path, data: Sequence[PageData]) -> ImageTextData:
    """Pages as images, and each query as the caption of the page with its highest grade.

    InputError for pages that are no files, and for several tasks.
    """
    if len(data) > 1:
        raise InputError(f"{folder}: holds {', '.join(one.name for one in data)}; name the folder of one")
    images: list[Path] = []
    captions: list[Caption] = []
    for pages in data[0].corpora:
        rows = {document: len(images) + row for row, document in reversed(list(enumerate(pages.documents)))}
        for page in pages.images:
            if isinstance(page.source, bytes):
                raise InputError(f"{page.where}: wanted an image file beside JSON lines, found one inside of parquet")
            images.append(page.source)
        for part in (part for part in data[0].parts if part.pages is pages):
            best: dict[int, tuple[int, int]] = {}  # of each query its highest grade, and that page
            for query, document, grade in part.grades:
                if document in rows and grade > best.get(query, (0, 0))[0]:
                    best[query] = grade, rows[document]
            captions += [
                Caption(text=part.queries[query], image=row, language=part.language)
                for query, (_, row) in best.items()
            ]
    return ImageTextData(name=data[0].name, images=tuple(images), captions=tuple(captions))


def _name_of(folder: Path) -> str:
    """The name of a task: that of its folder, of a repository in the Hub's cache the part behind the owner's."""
    return repository_of(folder) or Path(os.path.abspath(folder)).name


def _may_be_task(folder: Path) -> bool:
    """Whether a folder holds folders or tables at all. One of a million images is not sorted to find that out."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return False
    with os.scandir(folder) as entries:
        return any(entry.is_dir() or plain_suffix(Path(entry.name)) in SUFFIXES for entry in entries)


def _reader(folder: Path) -> Callable[[Selection], PageData] | None:
    """What reads the folder as one task; None for a folder that is none."""
    pieces = find_pieces(folder)
    if any(not pieces.languages(role) for role in NEEDED):
        if tables := _page_tables(pieces):
            return lambda selection: _read_tables(tables, selection)
        if not (_has_pages(pieces) or pieces.has("queries", "qrels")):
            return None
    elif not _has_pages(pieces):
        if all(plain_suffix(file) != ".parquet" for file in _files(pieces, "corpus")):
            return None
        raise InputError(f"{folder}: its corpus has no images; texts alone are read from JSON lines, corpus.jsonl")
    return lambda selection: _read_pieces(pieces, selection)


def _files(pieces: Pieces, role: Role) -> list[Path]:
    return [
        file
        for language in pieces.languages(role)
        for files in pieces.find(language, role).values()
        for file in files
    ]


def _has_pages(pieces: Pieces) -> bool:
    """Whether the corpus, where there is one, has images: judged by its first file."""
    return any(_image_columns(_columns_of(file)) for file in _files(pieces, "corpus")[:1])


def _image_columns(columns: Collection[str]) -> tuple[str, ...]:
    """The columns that may have images. A file name beside a text may be that of the text."""
    return tuple(name for name in (*_IMAGE, *(() if "text" in columns else _FILE_NAME)) if name in columns)


def _page_tables(pieces: Pieces) -> Pieces | None:
    """The tables among the pieces that are of the form "qa"."""
    found = Pieces(pieces.folder)
    for language in pieces.languages("table"):
        for split, files in pieces.find(language, "table").items():
            for file in files:
                if not file.name.startswith(("metadata.", "captions.")) and _is_page_table(file):
                    found.add(language, "table", split, file)
    return found if found.files else None


def _is_page_table(file: Path) -> bool:
    columns = _columns_of(file)
    return "query" in columns and "image" in columns


def _columns_of(file: Path) -> set[str]:
    """The names of a file's columns; none of a text file that is no such table."""
    try:
        return set(Table.open([file]).columns)
    except InputError:
        if plain_suffix(file) == ".parquet":
            raise
        return set()


def _choose(
    splits: Splits, asked: str | None, folder: Path, *, follows: bool = False
) -> tuple[str | None, list[Path]]:
    """The split of a piece and its files; one that `follows` the judgements may have a single split of any name."""
    named = [split for split in splits if split is not None]
    split = None
    if named:
        split = named[0] if follows and len(named) == 1 else choose_split(named, asked, folder)
    check_shards(splits[split])
    return split, splits[split]


# The form "beir"


def _read_pieces(pieces: Pieces, selection: Selection) -> PageData:
    for role in NEEDED:
        if not pieces.languages(role):
            pieces.find(None, role)  # says which is missing
    named = dict.fromkeys(language for role in ("queries", *NEEDED) for language in pieces.languages(role))
    languages: list[str | None] = [one for one in named if one is not None] or [None]
    if languages != [None]:
        selection.check_languages(languages, pieces.folder)
        languages = [one for one in languages if selection.wants(one)]
    corpora: dict[tuple[Path, ...], Pages] = {}
    parts: list[PageQueries] = []
    split: str | None = None
    for language in languages:
        split, judgements = _choose(pieces.find(language, "qrels"), selection.split, pieces.folder)
        _, files = _choose(pieces.find(language, "corpus"), split, pieces.folder, follows=True)
        if tuple(files) not in corpora:
            corpora[tuple(files)] = _read_corpus(files, pieces.folder, selection)
        pages = corpora[tuple(files)]
        _, query_files = _choose(pieces.find(language, "queries"), split, pieces.folder, follows=True)
        parts += _read_queries(Table.open(query_files), Table.open(judgements), pages, language, selection)
    if not parts:
        raise InputError(f"{pieces.folder}: no query of it is judged")
    return PageData(name=selection.name, parts=tuple(parts), is_whole=selection.limit is None and split in _TEST)


def _read_corpus(files: Sequence[Path], folder: Path, selection: Selection) -> Pages:
    table = Table.open(files)
    key, image = table.need("the pages' ids", *_DOCUMENT_ID), _image_columns(table.columns)[0]
    finder = _finder(table, folder, selection)
    ids: dict[str, None] = {}
    for record in _checked(table, [key], image, finder):
        document = record.id(key)
        if document in ids:
            raise record.error(f"page {document!r} is there twice")
        ids[document] = None
    return Pages(
        form="beir",
        ids=tuple(ids),
        images=PageTable(table, image, finder, len(ids), _text_column(table, selection)),
        documents=tuple(range(len(ids))),
    )


def _read_queries(
    table: Table, judgements: Table, pages: Pages, language: str | None, selection: Selection
) -> list[PageQueries]:
    """The judged queries, in a part for each language that a column names; all search the whole corpus."""
    key, text = table.need("the queries' ids", *_QUERY_ID), table.need("the queries", *_QUERY)
    spoken = table.find(*_LANGUAGE) if language is None else None
    grades = _read_grades(judgements)
    judged = dict.fromkeys(query for query, _ in grades)
    known: set[str] = set()
    by_language: dict[str | None, dict[str, str]] = {}
    for record in table.rows([key, text, spoken] if spoken else [key, text]):
        query = record.id(key)
        if query in known:
            raise record.error(f"query {query!r} is there twice")
        known.add(query)
        its = record.text(spoken) if spoken else language
        if query in judged:
            by_language.setdefault(its, {})[query] = as_text(record.take(text), record.where, f"query {query!r}")
    if lost := next((query for query in judged if query not in known), None):
        raise InputError(f"{judgements.files[0]}: query {lost!r} is not in {table.files[0]}")
    if spoken or language is None:
        selection.check_languages(by_language, table.files[0])
        by_language = {one: its for one, its in by_language.items() if selection.wants(one)}
    documents = {document: place for place, document in enumerate(pages.ids)}
    parts = []
    for one, texts in by_language.items():
        ids = tuple(texts)[: selection.limit]
        parts.append(
            PageQueries(
                language=one,
                pages=pages,
                query_ids=ids,
                queries=tuple(texts[query] for query in ids),
                grades=place_grades(grades, ids, dict(documents), judgements.files[0]),
            )
        )
    return parts


def _read_grades(table: Table) -> Mapping[tuple[str, str], int]:
    query, document = table.need("the queries' ids", *_QUERY_ID[:2]), table.need("the pages' ids", *_DOCUMENT_ID[:2])
    rows = table.rows([query, document, table.need("the grades", "score")])
    return last_grades(
        ((record.id(query), record.id(document), read_grade(record)) for record in rows), table.files[0]
    )


# The form "qa"


def _read_tables(pieces: Pieces, selection: Selection) -> PageData:
    languages = pieces.languages("table")
    if languages != [None]:
        selection.check_languages(languages, pieces.folder)
        languages = [one for one in languages if one is not None and selection.wants(one)]
    else:
        selection.refuse(pieces.folder, "queries beside their pages", languages="which name no languages")
    parts = []
    for language in languages:
        split, files = _choose(pieces.find(language, "table"), selection.split, pieces.folder)
        parts.append(_read_table(Table.open(files), language, pieces.folder, selection))
    return PageData(name=selection.name, parts=tuple(parts), is_whole=selection.limit is None and split in _TEST)


def _read_table(table: Table, language: str | None, folder: Path, selection: Selection) -> PageQueries:
    """One right page for each different query: that of the last row with it. Rows without a query are pages alone."""
    finder = _finder(table, folder, selection)
    name = table.find(*_FILE_NAME)
    places: dict[str, int] = {}  # of the documents
    documents: list[int] = []  # of each row
    right: dict[str, int] = {}
    columns = ["query", *([name] if name else [])]
    for record in _checked(table, columns, "image", finder, names=name is None):
        document = record.text(name) if name else _file_name(record)
        documents.append(places.setdefault(document, len(places)))
        query = record.get("query")
        if query is not None and (not isinstance(query, str) or query.strip()):
            right[as_text(query, record.where, "the query")] = documents[-1]
    if not right:
        raise InputError(f"{table.files[0]}: holds no query")
    queries = tuple(right)[: selection.limit]
    return PageQueries(
        language=language,
        pages=Pages(
            form="qa",
            ids=tuple(places),
            images=PageTable(table, "image", finder, len(documents), _text_column(table, selection)),
            documents=tuple(documents),
        ),
        query_ids=queries,
        queries=queries,
        grades=tuple((row, right[query], 1) for row, query in enumerate(queries)),
    )


# Images


def _text_column(table: Table, selection: Selection) -> str | None:
    """The column of texts beside the images, if these are asked for."""
    return table.need("the texts beside the pages", *_PAGE_TEXT) if selection.with_text else None


def _finder(table: Table, folder: Path, selection: Selection) -> ImageFinder:
    """The images lie with the table, with the data set, or where the user says."""
    base = selection.images or table.files[0].parent
    beside = () if base == folder else (folder / "images", folder)
    return ImageFinder(base=base, folders=("images", "pages"), beside=beside)


def _checked(
    table: Table, columns: Sequence[str], image: str, finder: ImageFinder, *, names: bool = False
) -> Iterator[Record]:
    """The rows without the images' bytes; of text files each image is looked for. `names`: the images' names too."""
    if plain_suffix(table.files[0]) == ".parquet":
        yield from table.rows([*columns, f"{image}.path"] if names else columns)
        return
    for record in table.rows([*columns, image]):
        _source(record, image, finder)
        yield record


def _file_name(record: Record) -> str:
    """The name of a row's image file, where no column of its own has it."""
    value: Any = record.get("image")
    name = value.get("path") if isinstance(value, dict) else value
    return as_text(name, record.where, "the name of its image (image_filename)")


def _source(record: Record, column: str, finder: ImageFinder) -> Path | bytes:
    """An image as the table has it: {bytes, path}, of which one may be null; bytes; or the name of a file."""
    value: Any = record.get(column)
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if value is None:
        raise record.error("the page has no image")
    return finder.find(record.where, as_text(value, record.where, f"{column!r}"))
