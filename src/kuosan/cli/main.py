"""The shell: `kuosan VERB ...`. Verbs load when they are called; bad flags and --help are answered without torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import cyclopts
from cyclopts import App

import kuosan
from kuosan.errors import Error, is_out_of_memory, sentence

app = App(
    name="kuosan",
    help="Diffusion models on your own pictures: train, resume, sample, evaluate.",
    version=kuosan.__version__,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says that it stopped
)
app.command("kuosan.cli.train:train", name="train", help="Train a model on pictures, or go on with a run.")
app.command("kuosan.cli.sample:sample", name="sample", help="Make pictures with a trained model.")
app.command("kuosan.cli.evaluate:evaluate", name="evaluate", help="Measure how good a model's pictures are.")
app.command("kuosan.cli.invert:invert", name="invert", help="Encode pictures to noise and decode them again.")
app.command("kuosan.cli.restore:restore", name="restore", help="Fill holes, enlarge, deblur or colour pictures.")
app.command("kuosan.cli.compare:compare", name="compare", help="Measure how well models restore damaged pictures.")
app.command(
    "kuosan.cli.reconstruct:reconstruct", name="reconstruct", help="Measure how an autoencoder gives pictures back."
)
app.command("kuosan.cli.export:export", name="export", help="Write a trained model as one folder to hand on.")
app.command("kuosan.cli.doctor:doctor", name="doctor", help="Say what of a folder would be used, and why not the rest.")
app.command(
    "kuosan.cli.demo:demo", name="demo", help="Train on built-in portraits for a few minutes and show everything."
)


def main(tokens: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake is one clear line and exit code 2, never a traceback."""
    # torch's worker threads spin while they wait: on a busy machine that costs 5-25x. Read when libgomp loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    words = list(sys.argv[1:] if tokens is None else tokens)
    try:
        code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        if words[:1] in (["train"], ["evaluate"]) and not {"--help", "-h"}.isdisjoint(words):
            from kuosan.cli import settings

            settings.show(words[0])
    except cyclopts.UnusedCliTokensError as error:
        extra = " ".join(error.unused_tokens or ())
        print(f"kuosan: error: {extra!r} is more than `kuosan {words[0]}` takes; see --help.", file=sys.stderr)
        sys.exit(2)
    except cyclopts.CycloptsError as error:
        print(f"kuosan: error: {' '.join(sentence(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Error as error:
        print(f"kuosan: error: {sentence(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"kuosan: error: out of memory: {' '.join(str(error).split())[:200]} Compute fewer pictures at once "
            "(train: --micro-batch 8; sample and evaluate: --batch 4), or use a smaller --network or --size.",
            file=sys.stderr,
        )
        sys.exit(71)  # sysexits' EX_OSERR
    except KeyboardInterrupt:
        print("kuosan: stopped.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
