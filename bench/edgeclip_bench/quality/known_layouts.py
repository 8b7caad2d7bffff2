"""The layouts of evaluation data that are read, and the message for a path that has none of them."""

from itertools import islice
from pathlib import Path

from edgeclip.errors import InputError
from edgeclip_bench.quality.records import check_pointer

# Every layout, as the message and docs/evaluating.md list them.
LAYOUTS = (
    "captions.jsonl of edgeclip",
    "captions.jsonl of Crossmodal-3600",
    "Hugging Face's imagefolder with metadata.jsonl or metadata.csv",
    "Kaggle's Flickr8k captions.txt and Flickr30k results.csv",
    "Flickr's .token files",
    "images with a .txt beside each",
    "a .json of Karpathy's splits",
    "a .json of COCO's captions",
    "XTD10",
    "a BEIR or MTEB corpus.jsonl with queries and qrels",
    "pages with queries and qrels (ViDoRe, Jina-VDR), in parquet or JSON lines",
    "pages and their queries in one table, in parquet or JSON lines",
    "a folder of such data sets of pages",
    "sentence pairs in .jsonl, .tsv or .csv",
    "a folder of images for each class",
)
PARQUET = (
    "parquet is read only as pages with queries: write it as JSON lines beside it, with "
    "pandas.read_parquet('x.parquet').to_json('x.jsonl', orient='records', lines=True)"
)
# How much of what was found a message lists.
LISTED = 8
_LOOKED_AT = 1000


def not_understood(path: Path, found: str) -> InputError:
    """The error for a file or folder of no known layout: what it has instead, and every layout that is read.

    Raises InputError where a file of it was not fetched.
    """
    for file in islice((one for one in (path, *path.glob("**/*")) if one.is_file()), _LOOKED_AT):
        check_pointer(file)  # the reason why nothing is known
    is_parquet = path.suffix == ".parquet" or (path.is_dir() and next(path.glob("**/*.parquet"), None) is not None)
    hint = f"; {PARQUET}" if is_parquet else ""
    return InputError(f"{path}: no layout that is known: {found}{hint}; understood are: {'; '.join(LAYOUTS)}")
