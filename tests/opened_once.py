"""Counts what a verb opens and resolves: a fixture that wraps every name under which a module holds such a function."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

# what opens or resolves: module, name, and what makes two calls different from each other
CALLS = {
    "checkpoint": ("kuosan.storage.checkpoint", "load", lambda *args, **_: str(args[0])),
    "image": ("kuosan.data.decoding", "decode", lambda *args, **_: hash(bytes(args[0]))),
    "choose": ("kuosan.sample.plan", "choose", lambda *args, **_: repr(args[1])),
    "guides": ("kuosan.sample.plan", "check_guides", lambda *args, **_: ""),
    "size": ("kuosan.sample.plan", "of", lambda *args, **_: ""),
}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, Any]]:
    """How often each thing was opened or resolved, by every name under which a module holds the function."""
    import kuosan.evaluate.compare
    import kuosan.evaluate.reconstruct
    import kuosan.evaluate.run
    import kuosan.sample.invert
    import kuosan.sample.replay  # noqa: F401

    found: Counter[tuple[str, Any]] = Counter()

    def counting(kind: str, real: Callable[..., Any], key: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            found[kind, key(*args, **options)] += 1
            return real(*args, **options)

        return call

    for kind, (home, name, key) in CALLS.items():
        real = getattr(sys.modules[home], name)
        replaced = counting(kind, real, key)
        for module in [each for each in sys.modules.values() if getattr(each, "__name__", "").startswith("kuosan")]:
            for attribute, value in list(vars(module).items()):
                if value is real:
                    monkeypatch.setattr(module, attribute, replaced)
    return found
