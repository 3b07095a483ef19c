"""Write CLIP's merges, those of its first 49,408 tokens, into the package.

    pip install --no-deps --target /tmp/open_clip open-clip-torch==3.3.0
    python tools/build_clip_vocabulary.py /tmp/open_clip/open_clip/bpe_simple_vocab_16e6.txt.gz

The list is OpenAI's (CLIP, MIT licence), as OpenCLIP hands it on: 262,144 merges, the most frequent first, of which
CLIP uses 48,894. Credits: LICENSES-DATA.md.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

TARGET = Path(__file__).parents[1] / "src/kuosan/text/assets/clip_merges.txt.gz"
MERGES = 49_408 - 2 * 256 - 2  # without a byte's token each, within a word and at its end, and without the two marks


def main(source: str) -> None:
    """Read the list, keep what CLIP uses, write it without a date."""
    lines = gzip.decompress(Path(source).read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    assert len(lines) == MERGES and all(len(line.split(" ")) == 2 for line in lines)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(gzip.compress("\n".join(lines).encode("utf-8"), 9, mtime=0))
    print(f"{len(lines):,} merges, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
