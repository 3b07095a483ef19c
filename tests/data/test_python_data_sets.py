"""Python data sets that a user may well bring: sharing an open file, normalised by mean and deviation."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from kuosan.data.captions import read_beside
from kuosan.data.config import DataConfig
from kuosan.data.pictures import open_pictures
from kuosan.errors import Error
from work import instructions


class SharedFile(Dataset):  # type: ignore[type-arg]
    """Items read by seek and read of one open file, as many data sets do; two readers at once would mix them up."""

    def __init__(self, path: Path, count: int) -> None:
        self.file, self.count, self.inside, self.most = path.open("rb"), count, 0, 0
        self.counting = threading.Lock()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Tensor:
        with self.counting:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.file.seek(64 * i)
        time.sleep(0.001)  # where another thread would get its turn
        content = bytearray(self.file.read(64))
        with self.counting:
            self.inside -= 1
        return torch.frombuffer(content, dtype=torch.uint8).reshape(1, 8, 8)


def test_a_data_set_is_never_read_by_two_threads_at_once(tmp_path: Path) -> None:
    (tmp_path / "pixels").write_bytes(bytes(i for i in range(40) for _ in range(64)))
    dataset = SharedFile(tmp_path / "pixels", 40)
    pictures = open_pictures(dataset, DataConfig(path="mine", hold_out=0, workers=4))
    assert [int(pictures.pixels(i)[0, 0, 0]) for i in range(40)] == list(range(40))
    assert dataset.most == 1
    dataset.file.close()


@pytest.mark.parametrize(("low", "high"), [(-3.0, 0.9), (-0.4, 2.8)])
def test_values_beyond_minus_one_and_one_are_refused_and_never_cut_off(low: float, high: float) -> None:
    x = torch.linspace(low, high, 64).reshape(1, 1, 8, 8)
    with pytest.raises(Error, match=rf"floats from {low:g} to {high:g}.*undo the normalisation"):
        open_pictures(TensorDataset(x), DataConfig(path="mine", hold_out=0))


def test_captions_of_many_files_take_no_more_work_a_file_than_those_of_few() -> None:
    def read(count: int) -> None:
        names = [f"{i}.{suffix}" for i in range(count) for suffix in ("png", "txt")]
        assert len(read_beside(names, lambda name, limit: b"words").captions) == count

    assert instructions(lambda: read(800)) < 9 * instructions(lambda: read(100))  # comparing each with all: 64 times
