"""A folder of pictures as a verb takes it: what is left out is said, what would be missed in silence is an error."""

from pathlib import Path

from edgeclip.errors import InputError
from edgeclip.inputs.image_folder import ImageFolder, list_images
from edgeclip.inputs.image_kinds import what_it_needs
from edgeclip.inputs.images import decodes


def list_pictures(folder: Path, *, is_recursive: bool, skips_broken: bool) -> ImageFolder:
    """The folder's pictures (`edgeclip.inputs.image_folder`), with a line on stderr for what was left out.

    Raises InputError for a folder that cannot be listed or holds none; and unless `skips_broken` for one with a
    subfolder or file that cannot be read, or with pictures that Pillow needs another library for.
    """
    found = list_images(folder, is_recursive=is_recursive)
    if not found:
        raise InputError(f"{folder}: holds no image ({'; '.join(found.notes()) or 'it is empty'})")
    if not skips_broken:
        if found.unreadable.count:
            raise InputError(f"{folder}: {found.notes()[-1]}; make it readable, or leave it out with --skip-broken")
        for kind, some in found.needing.items():
            if not decodes(kind):
                raise InputError(
                    f"{folder}: {some.count} of its {len(found)} images, e.g. {some.example}, need "
                    f"{what_it_needs(kind)}; or leave them out with --skip-broken"
                )
    found.print_notes("; --recursive does")
    return found
