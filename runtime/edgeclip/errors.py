"""Every error and warning that edgeclip raises on purpose.

    EdgeclipError
    ├── BundleError          a bundle that is missing, damaged, or not for this version
    ├── DeviceError          a device that is unknown, absent, or gives wrong numbers
    │   ├── OutOfMemoryError     memory that a graph or an input needs and cannot get        (also MemoryError)
    │   └── WrongVectorsError    a graph that answered with NaN, or a vector that is not of length 1
    ├── InputError           a text, image or option that cannot be encoded      (also ValueError)
    ├── MissingExtraError    a package that an extra would have installed        (also ImportError)
    └── BuildError           an export or quantisation that came out wrong

Each message says in one line what was found, what was wanted and what to do. The command line prints it and exits 1.
"""


class EdgeclipError(Exception):
    """The root of the tree: catching it catches every error edgeclip raises on purpose."""


class BundleError(EdgeclipError):
    """The bundle is missing, incomplete, damaged, or of a schema this version does not read."""


class DeviceError(EdgeclipError):
    """The device is unknown, cannot run here, or answered the self-test wrongly."""


class OutOfMemoryError(DeviceError, MemoryError):
    """A graph or an input needs more memory than this process can get; the bundle is sound."""


class WrongVectorsError(DeviceError):
    """A graph whose files are as exported answered with NaN, or with a vector that is not of length 1."""


class InputError(EdgeclipError, ValueError):
    """A text, an image or an option cannot be encoded as given."""


class MissingExtraError(EdgeclipError, ImportError):
    """A package is not installed; the message names the extra that installs it."""


class BuildError(EdgeclipError):
    """An export or a quantisation found something wrong and wrote nothing."""


class UnprovedWarning(UserWarning):
    """A bundle was quantised, and what that cost was never measured."""


class TightMemoryWarning(UserWarning):
    """What is opened needs about as much memory as there is, or more than other processes leave of it."""


class CheckpointWarning(UserWarning):
    """A checkpoint is not in the official layout; the message says what was undone, or what cannot be known."""


class TruncationWarning(UserWarning):
    """`cut` texts were longer than max_length and lost their end."""

    def __init__(self, message: str, *, cut: int = 0) -> None:
        super().__init__(message)
        self.cut = cut


class SkippedWarning(UserWarning):
    """The images of the indices `skipped` could not be read and were skipped, as `on_error="skip"` asks."""

    def __init__(self, message: str, *, skipped: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.skipped = skipped
