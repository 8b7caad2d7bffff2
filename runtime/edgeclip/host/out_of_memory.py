"""Tell a lack of memory from what is wrong with a file: libraries have one class of exception for both."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from edgeclip.errors import OutOfMemoryError

# Words of C++, onnxruntime, CUDA, Linux, Python and Rust. 12 is ENOMEM, as where weights cannot be mapped; a thread
# that has no room for its stack is a resource that is temporarily unavailable.
_WORDS = re.compile(
    r"bad_alloc|bad allocation|failed to allocate|cannot allocate memory|out of memory|not enough memory|ALLOC_FAILED"
    r"|SystemError : 12\b|can't start new thread|failed to map segment|resource temporarily unavailable",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had."""
    return isinstance(error, MemoryError) or _WORDS.search(str(error)) is not None


@contextmanager
def naming_out_of_memory(what: str) -> Iterator[None]:
    """Raise OutOfMemoryError, which says `what` had no room, for an exception of the block that means this."""
    try:
        yield
    except (OutOfMemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust's is no Exception
        if not is_out_of_memory(error):
            raise
        words = str(error).strip().split("\n")[0] or type(error).__name__
        raise OutOfMemoryError(
            f"out of memory: {what} ({words}); give smaller inputs, fewer at once, or more memory"
        ) from error
