"""`python -m kuosan` is `kuosan`."""

from __future__ import annotations

from kuosan.cli.main import main

if __name__ == "__main__":
    main()
