"""An Encoder works in the workers of torch's DataLoader."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from edgeclip import Encoder
from tests.runtime.test_processes import _WITHIN_S, SAME, TEXTS


def test_torchs_data_loader_may_encode_in_its_workers(bundle: Path) -> None:
    class Texts(Dataset[NDArray[np.float32]]):
        def __init__(self, encoder: Encoder) -> None:
            self.encoder = encoder

        def __len__(self) -> int:
            return len(TEXTS)

        def __getitem__(self, index: int) -> NDArray[np.float32]:
            return self.encoder.encode_text(TEXTS[index])

    with Encoder.open(bundle, device="cpu", threads=1) as encoder:
        wanted = encoder.encode_text(TEXTS)
        loader = DataLoader(Texts(encoder), num_workers=2, batch_size=None, timeout=_WITHIN_S)
        assert np.abs(np.stack([np.asarray(vector) for vector in loader]) - wanted).max() <= SAME
