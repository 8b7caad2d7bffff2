"""Read texts with judgements as users have them on disk: retrieval (BEIR, MTEB) and pairs of sentences (STS).

Queries and sentences are kept as the file has them. Ids are held, the corpus is not: its files are read
once for the ids and again each time its texts are wanted.
"""

import csv
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeclip.errors import InputError
from edgeclip_bench.quality.datasets import StsData, TextRetrievalData
from edgeclip_bench.quality.records import (
    Record,
    as_text,
    plain_stem,
    plain_suffix,
    read_lines,
    read_records,
    read_table,
)
from edgeclip_bench.quality.selection import Selection, choose_split

_GRADES_HEADER = ["query-id", "corpus-id", "score"]
_STS_FIELDS = ("sentence1", "sentence2", "score")
# Some rows add where they are from.
_STS_BENCHMARK = ("genre", "file", "year", "number", "score", "sentence1", "sentence2")


@dataclass(frozen=True, slots=True)
class Corpus:
    """The texts of a corpus, read from its files again at each iteration; InputError if the files have changed.

    A text is title, a space and text, stripped, as BEIR (SentenceBERT.encode_corpus) and MTEB join them.
    """

    files: tuple[Path, ...]
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        ids = iter(self.ids)
        for key, record in _read_documents(self.files):
            if key != next(ids, None):
                raise record.error("the corpus has changed since its ids were read; start again")
            title = "" if record.get("title") is None else record.text("title", may_be_empty=True)
            yield f"{title} {record.text('text', may_be_empty=True)}".strip()
        if next(ids, None) is not None:
            raise InputError(f"{self.files[-1]}: the corpus is shorter than when its ids were read; start again")


def is_retrieval(folder: Path) -> bool:
    """Say whether the folder holds a corpus in JSON lines."""
    return bool(_record_files(folder, "corpus"))


def read_retrieval(folder: Path, selection: Selection) -> TextRetrievalData:
    """A retrieval dataset of BEIR, or of MTEB as JSON lines: a corpus, queries, and graded pairs.

    corpus.jsonl {"_id", "title", "text"}, queries.jsonl {"_id", "text"} ("id" will do; or several .jsonl in corpus/
    and queries/), and qrels/<split>.tsv with the header query-id, corpus-id, score, or .jsonl with these fields, or a
    single qrels.tsv or .jsonl. As in beir/datasets/data_loader.py, queries without a judgement are left out, a judged
    document that the corpus does not hold has an index past its end, and of two grades of a pair the last counts,
    both with a warning; a judged query that is nowhere is an InputError.
    """
    selection.refuse(
        folder, "a retrieval dataset", images="which has no images", languages="which names no languages"
    )
    files = _record_files(folder, "corpus")
    query_files = _record_files(folder, "queries")
    if not query_files:
        raise InputError(f"{folder}: has a corpus but no queries.jsonl")
    judgements_file = _choose_judgements(folder, selection)
    documents = {key: number for number, (key, _) in enumerate(_read_unique(files, "document"))}
    if not documents:
        raise InputError(f"{files[0]}: holds no document")
    texts = {key: record.text("text", may_be_empty=True) for key, record in _read_unique(query_files, "query")}
    judgements = []
    for where, query, document, grade in _read_judgements(judgements_file):
        if query not in texts:
            raise InputError(f"{where}: query {query!r} is not in {query_files[0].name}")
        judgements.append((query, document, grade))
    grades = last_grades(judgements, judgements_file)
    judged = {query for query, _ in grades}
    query_ids = tuple(query for query in texts if query in judged)[: selection.limit]
    for query in query_ids:
        as_text(texts[query], f"{query_files[0]}: query {query!r}", "its text")
    ids = tuple(documents)
    graded = place_grades(grades, query_ids, documents, judgements_file)
    return TextRetrievalData(
        name=selection.name,
        corpus_ids=ids,
        corpus=Corpus(files, ids),
        query_ids=query_ids,
        queries=tuple(texts[query] for query in query_ids),
        grades=graded,
    )


def last_grades(judgements: Iterable[tuple[str, str, int]], file: Path) -> dict[tuple[str, str], int]:
    """The grade of each judged pair (query, document), of several the last, with a warning; InputError for none."""
    grades: dict[tuple[str, str], int] = {}
    changed = 0
    for query, document, grade in judgements:
        changed += grades.get((query, document), grade) != grade
        grades[query, document] = grade
    if not grades:
        raise InputError(f"{file}: holds no judgement")
    if max(grades.values()) <= 0:
        raise InputError(f"{file}: no grade is above 0, so no query has an answer and every nDCG would be 0")
    if changed:
        warnings.warn(
            f"{file}: {changed} judgements contradict an earlier one of the same pair; the last counts, as in BEIR",
            stacklevel=3,
        )
    return grades


def place_grades(
    grades: Mapping[tuple[str, str], int], query_ids: Sequence[str], documents: dict[str, int], file: Path
) -> tuple[tuple[int, int, int], ...]:
    """The grades by indices; documents that the corpus lacks get one past its end, are added, and warned of."""
    numbers = {query: number for number, query in enumerate(query_ids)}
    size, absent, graded = len(documents), [], []
    for (query, document), grade in grades.items():
        if query in numbers:
            if documents.setdefault(document, len(documents)) >= size:
                absent.append(document)
            graded.append((numbers[query], documents[document], grade))
    if absent:
        warnings.warn(
            f"{file}: {len(absent)} of {len(graded)} judgements are of documents that the corpus does not "
            f"hold ({absent[0]!r}); nothing can find them, which lowers scores here as in BEIR and MTEB",
            stacklevel=3,
        )
    return tuple(graded)


def is_sts(file: Path) -> bool:
    """Say whether the first record of a .jsonl, .tsv or .csv is a pair of sentences with a score."""
    try:
        if plain_suffix(file) == ".jsonl":
            record = next(read_records(file))
            return all(field in record for field in _STS_FIELDS)
        _name_columns(*next(_read_rows(file)))
    except (StopIteration, InputError):
        return False
    return True


def choose_sts(files: list[Path], selection: Selection, folder: Path) -> Path:
    """The file of the split among several: test.jsonl, or sts-test.csv."""
    splits: dict[str, Path] = {}
    for file in files:
        split = re.split(r"[-_.]", plain_stem(file))[-1]
        if split in splits:
            raise InputError(f"{folder}: {splits[split].name} and {file.name} are both of {split!r}; name the file")
        splits[split] = file
    return splits[choose_split(splits, selection.split, folder)]


def read_sts(file: Path, selection: Selection) -> tuple[StsData, ...]:
    """Pairs of sentences with a score, one dataset for each language that is named.

    JSON lines with sentence1, sentence2, score, and perhaps "lang" or "language" (MTEB: "en", "en-de"); a table with
    that header; the STS benchmark's own files (no header, seven columns or more); or three columns without a header
    (stsb-multi-mt). A table with tabs has no quoting, as the STS benchmark and GLUE write it; one with commas has.
    """
    selection.refuse(file, "a file of sentence pairs", images="which has no images")
    pairs: dict[str | None, list[tuple[str, str, float]]] = {}
    for record in read_records(file) if plain_suffix(file) == ".jsonl" else _read_pair_rows(file):
        first, second = record.take("sentence1"), record.take("sentence2")
        named = next((field for field in ("language", "lang") if record.get(field) is not None), None)
        language = record.text(named) if named else None
        score = record.number("score", "the score")
        if not math.isfinite(score):
            raise record.error(f"the score is {score}")
        pair = as_text(first, record.where, "sentence 1"), as_text(second, record.where, "sentence 2"), score
        of_language = pairs.setdefault(language, [])
        if selection.wants(language) and len(of_language) != selection.limit:
            of_language.append(pair)
    if not pairs:
        raise InputError(f"{file}: holds no pair of sentences")
    selection.check_languages(pairs, file)
    found = []
    for language, of_language in pairs.items():
        if of_language:
            firsts, seconds, scores = zip(*of_language, strict=True)
            found.append(StsData(name=selection.name, first=firsts, second=seconds, scores=scores, language=language))
    return tuple(found)


def _record_files(folder: Path, what: str) -> tuple[Path, ...]:
    """`what`.jsonl, or every .jsonl in the folder `what`; each may be gzipped."""
    for name in (f"{what}.jsonl", f"{what}.jsonl.gz"):
        if (folder / name).is_file():
            return (folder / name,)
    return tuple(sorted(file for file in (folder / what).glob("*") if plain_suffix(file) == ".jsonl"))


def _choose_judgements(folder: Path, selection: Selection) -> Path:
    alone = [file for file in sorted(folder.glob("qrels.*")) if plain_suffix(file) in (".tsv", ".jsonl")]
    if alone:
        selection.refuse(alone[0], "the only list of judgements", split="which names no splits")
        return alone[0]
    files = [file for file in sorted((folder / "qrels").glob("*")) if plain_suffix(file) in (".tsv", ".jsonl")]
    if not files:
        raise InputError(f"{folder}: has a corpus but no judgements (qrels/test.tsv or .jsonl, or qrels.jsonl)")
    splits = {plain_stem(file): file for file in files}
    return splits[choose_split(splits, selection.split, folder)]


def _read_documents(files: tuple[Path, ...]) -> Iterator[tuple[str, Record]]:
    """The records of the files, each after its id."""
    for file in files:
        for record in read_records(file):
            yield record.id("id" if "_id" not in record and "id" in record else "_id"), record


def _read_unique(files: tuple[Path, ...], what: str) -> Iterator[tuple[str, Record]]:
    """The same; InputError for an id that is there twice."""
    seen: set[str] = set()
    for key, record in _read_documents(files):
        if key in seen:
            raise record.error(f"{what} {key!r} is there twice")
        seen.add(key)
        yield key, record


def _read_judgements(file: Path) -> Iterator[tuple[str, str, str, int]]:
    """The place, the query, the document and the grade of each judgement."""
    for record in read_records(file) if plain_suffix(file) == ".jsonl" else _read_grade_rows(file):
        yield record.where, record.id("query-id"), record.id("corpus-id"), read_grade(record)


def read_grade(record: Record) -> int:
    """The grade that a judgement's score is; InputError unless it is a whole number."""
    grade = record.number("score", "the score")
    if not grade.is_integer():
        raise record.error(f"the score is {grade}, wanted a whole number")
    return int(grade)


def _read_grade_rows(file: Path) -> Iterator[Record]:
    rows = read_table(file, delimiter="\t")
    where, header = next(rows, (f"{file}:1", []))
    if [name.lower() for name in header] != _GRADES_HEADER:
        raise InputError(f"{where}: wanted the header {', '.join(_GRADES_HEADER)} between tabs, found {header}")
    for where, row in rows:
        if len(row) != len(header):
            raise InputError(f"{where}: {len(row)} columns, wanted {', '.join(header)}")
        yield Record(where, dict(zip(_GRADES_HEADER, row, strict=True)))


def _read_pair_rows(file: Path) -> Iterator[Record]:
    """The sentences and the score of each row of a table."""
    names: tuple[str, ...] = ()
    for where, row in _read_rows(file):
        if not names:
            names = _name_columns(where, row)
            if names == tuple(row):
                continue
        if len(row) < len(names) or (len(row) > len(names) and names != _STS_BENCHMARK):
            raise InputError(f"{where}: {len(row)} columns, wanted {len(names)}")
        yield Record(where, {field: row[names.index(field)] for field in _STS_FIELDS})


def _read_rows(file: Path) -> Iterator[tuple[str, list[str]]]:
    _, line = next(read_lines(file), ("", ""))
    if "\t" in line:
        return read_table(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return read_table(file, delimiter=",")


def _name_columns(where: str, row: list[str]) -> tuple[str, ...]:
    """The names of a table's columns by its first row: that row itself, where it is a header."""
    if set(_STS_FIELDS) <= set(row):
        return tuple(row)
    if len(row) >= len(_STS_BENCHMARK) and _is_number(row[_STS_BENCHMARK.index("score")]):
        return _STS_BENCHMARK
    if len(row) == len(_STS_FIELDS) and _is_number(row[2]):
        return _STS_FIELDS
    wanted = f"a header with {', '.join(_STS_FIELDS)}, these three without one, or the STS benchmark's seven"
    raise InputError(f"{where}: columns that say no pair of sentences; wanted {wanted}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
