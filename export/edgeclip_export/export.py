"""The whole export: find the checkpoint, say where it came from, write its bundle."""

import re
from pathlib import Path

from edgeclip.errors import BuildError
from edgeclip.manifest import TARGETS, Manifest, Source, Target
from edgeclip_export.bundle import write_bundle
from edgeclip_export.checkpoint import CARD
from edgeclip_export.families import known_repository
from edgeclip_export.families.family import Progress
from edgeclip_export.hub import fetch_checkpoint, is_hub_id
from edgeclip_export.opening import open_checkpoint
from edgeclip_graph.narrowing import Narrow


def export(
    checkpoint: str,
    out: Path,
    target: Target,
    revision: str | None,
    task: str | None,
    narrow: Narrow | None,
    progress: Progress,
) -> Manifest:
    """`edgeclip_export.export_checkpoint`, after the imports."""
    if target not in TARGETS:
        raise BuildError(f"unknown target {target!r}; targets are {', '.join(TARGETS)}")
    if narrow is not None and target != "cpu":
        raise BuildError(
            f"{narrow.name} is exported at once for cpu alone; export fp32 for {target}, then edgeclip quantize"
        )
    if out.exists():  # said before a download, and again where it matters
        raise BuildError(f"{out}: exists already; remove it or choose another name")
    folder, name, commit = Path(checkpoint), Path(checkpoint).resolve().name, None
    if is_hub_id(checkpoint):
        fetched = fetch_checkpoint(checkpoint, revision)
        folder, name, commit = fetched.folder, fetched.repo_id, fetched.revision
    elif revision is not None:
        raise BuildError(f"--revision {revision} is for a Hub id, and {checkpoint} is a folder")
    opened = open_checkpoint(folder)
    known = known_repository(name)
    progress("hashing the checkpoint", 0, 1)
    source = Source(
        name=name,
        revision=commit,
        weights_sha256=opened.checkpoint.hash_weights(),
        license=(known and known.license) or _card_license(folder / CARD),
    )
    from edgeclip_export.threads import one_thread  # torch, which no earlier step needs

    with one_thread(), opened.family.open(opened.checkpoint, task) as model:
        progress(f"found {model.layout}", 0, 1)
        return write_bundle(model, opened.family.name, source, out, target, narrow, progress)


def _card_license(card: Path) -> str | None:
    """The licence in a model card's front matter, None when there is no card or it does not say.

    Where `license` is "other", its `license_name` is meant.
    """
    try:
        text = card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    said = dict(re.findall(r"^(license|license_name):\s*(\S+)\s*$", front[1], re.MULTILINE)) if front else {}
    license: str | None = said.get("license")
    return said.get("license_name", license) if license == "other" else license
