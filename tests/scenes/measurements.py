"""What a proof measured, made up."""

from edgeclip.manifest import Measurement, Modality, RetrievalChange, Space


def measured(
    worst: float = 1.0,
    modality: Modality = "text",
    retrieval: RetrievalChange | None = None,
    space: Space = "single",
) -> Measurement:
    """Figures of vectors with this worst cosine to the source's."""
    return Measurement(
        modality=modality,
        space=space,
        against="fp32 bundle",
        data="photos",
        samples=9,
        worst_cosine=worst,
        p1_cosine=worst,
        mean_cosine=1.0,
        largest_difference=0.0,
        sqnr_db=30.0,
        weight_bytes=5,
        retrieval=retrieval,
    )
