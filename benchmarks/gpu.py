"""On one GPU: training and sampling beside diffusers on the same networks, memory, FLOPs, what compiling would give.

    python benchmarks/gpu.py --out figures              # about 2 minutes on an H100: figures/gpu.json, figures/gpu.md
    python benchmarks/gpu.py --out figures --smoke      # small numbers, to see that it runs; also without a GPU

Each contestant is a process of its own and waits while the others have their turn (A B C, B C A, ...). What each runs,
`gpu_contestants.py` says. A peer that is not installed or fails is named in the report and left out; the figures so far
are written after every part, so a run that is cut short leaves them.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from turns import spread

NOMINAL = 989.4  # TFLOP/s of dense bf16 by the data sheet of an H100 or H200 (SXM)
FULL, LOW = ("kuosan-fp32", "diffusers-fp32"), ("kuosan-bf16", "diffusers-bf16")
COMPILE_SECONDS = 60.0
TITLES = {
    "32": "google/ddpm-cifar10-32's network at 32 px",
    "64": "diffusers' script's network at 64 px",
    "small": "kuosan's default network at 32 px",
}
BEGIN = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for gpu.json and gpu.md")
    parser.add_argument("--only", default=",".join((*LOW, *FULL)), help="comma-separated contestants")
    parser.add_argument("--networks", default="32,64,small", help="those that are trained")
    parser.add_argument("--samples", type=int, default=64, help="images sampled at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=150, help="no part begins after these")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and few steps")
    parser.add_argument("--device", default="", help="cuda where there is one, else cpu")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(args)
    if args.smoke:
        args.samples, args.rounds = min(args.samples, 2), 2
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kuosan-benchmark-") as folder:
        args.folder = Path(folder)
        Race(args).run()


# a worker


def serve(args: argparse.Namespace) -> None:
    """Does what each line of its input asks and answers on one line: {"build": task}, {"turn": n} or {"drop": 1}."""
    answers, sys.stdout = sys.stdout, io.StringIO()
    warnings.simplefilter("ignore")
    import torch
    from gpu_contestants import build, wait

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cuda = args.device == "cuda"
    advance: Any = None
    for line in sys.stdin:
        try:
            asked = json.loads(line)
            told: dict[str, Any] = {}
            if "turn" not in asked:
                getattr(advance, "close", lambda: None)()
                advance = None
                gc.collect()
            if cuda and "turn" not in asked:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            if "build" in asked:
                told, advance = build(args, asked["build"])
            if "turn" in asked:
                wait(args)
                wall, mine = time.perf_counter(), time.process_time()
                advance(asked["turn"])
                wait(args)
                told = {"wall": time.perf_counter() - wall, "processor": time.process_time() - mine}
                told["peak"] = torch.cuda.max_memory_allocated() if cuda else 0
        except Exception as error:
            traceback.print_exc()
            told = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(told), file=answers, flush=True)


class Worker:
    """A contestant's process; `ask` gives its answer, with "error" where it failed, ended or took too long."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.error = name, ""
        flags = [f"--{key}={getattr(args, key)}" for key in ("samples", "folder", "device")]
        flags += ["--smoke"] * args.smoke
        command = [sys.executable, __file__, "--worker", name, *flags]
        environment = {"OMP_NUM_THREADS": "4", **os.environ}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def send(self, **asked: Any) -> None:
        """Ask, and do not wait for the answer."""
        try:
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
        except OSError:
            self.error = self.error or "the process ended"

    def answer(self, seconds: float = 120) -> dict[str, Any]:
        """The next answer."""
        if self.error:
            return {"error": self.error}
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            why = "it ended" if ready else f"no answer in {seconds:.0f} s"
            self.error = self.error or why
            self.end()
            return {"error": self.error}
        told: dict[str, Any] = json.loads(line)
        return told

    def ask(self, seconds: float = 120, **asked: Any) -> dict[str, Any]:
        """Ask and wait."""
        self.send(**asked)
        return self.answer(seconds)

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


# the race


class Race:
    """All parts, one after the other, and what they found."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.found: dict[str, Any] = {"train": {}, "sample": {}, "forward": {}, "pass": {}, "norm": {}, "failed": {}}
        self.names = args.only.split(",")
        self.workers = {name: Worker(name, args) for name in self.names}  # they import while the card is measured
        self.helper = Worker("kuosan-bf16", args)

    def run(self) -> None:
        """Every part that there is time for; what fails in one is noted, and the next begins."""
        try:
            self.part("card", self.card)
            self.part("training 32", lambda: self.train("32"))
            self.part("sampling", self.sample)
            for name in self.args.networks.split(","):
                if name != "32":
                    self.part(f"training {name}", lambda name=name: self.train(name))
            self.part("profile", self.profile)
            for worker in self.workers.values():
                worker.end()
            self.part("forward", self.forward)
            self.part("compiling", self.compiling)
        finally:
            for worker in (*self.workers.values(), self.helper):
                worker.end()
        print(self.report())

    def part(self, name: str, act: Any) -> None:
        """Do a part, unless the time is over, and write what is known."""
        begin = time.monotonic()
        if begin - BEGIN > self.args.seconds:
            self.found["failed"][name] = "left out: the time was over"
        else:
            act()
            print(
                f"{name}: {time.monotonic() - begin:.1f} s ({time.monotonic() - BEGIN:.1f} s so far)", file=sys.stderr
            )
        self.args.out.joinpath("gpu.json").write_text(json.dumps(self.found, indent=1) + "\n")
        self.args.out.joinpath("gpu.md").write_text(self.report())

    def fail(self, name: str, told: dict[str, Any]) -> bool:
        """Whether an answer says that something went wrong, which is then noted."""
        if "error" in told:
            self.found["failed"][name] = told["error"]
        return "error" in told

    def card(self) -> None:
        told = self.helper.ask(build="card")
        if not self.fail("the card", told):
            self.found["card"] = told
        if any("diffusers" in name for name in self.names):
            self.fail("shared weights", self.helper.ask(build="prime"))

    def all(self, task: str, names: list[str], **asked: Any) -> dict[str, dict[str, Any]]:
        """What each answers, all at once; those that fail are noted and left out."""
        for name in names:
            self.workers[name].send(**asked)
        told = {name: self.workers[name].answer() for name in names}
        return {name: answer for name, answer in told.items() if not self.fail(f"{name}, {task}", answer)}

    def race(self, task: str, names: list[str], amount: int, warm_up: int) -> dict[str, dict[str, Any]]:
        """What each contestant says of itself, and its turns."""
        running = {name: {**told, "turns": []} for name, told in self.all(task, names, build=task).items()}
        warm = self.all(task, list(running), turn=warm_up)
        running = {name: told for name, told in running.items() if name in warm}
        for i in range(self.args.rounds):
            order = list(running)
            for name in order[i % len(order) :] + order[: i % len(order)] if order else []:
                turn = self.workers[name].ask(turn=amount)
                if self.fail(f"{name}, {task}", turn):
                    running.pop(name)
                else:
                    running[name]["turns"].append(turn)
        for name in names:
            self.workers[name].ask(drop=1)
        return running

    def train(self, network: str) -> None:
        steps = 1 if self.args.smoke else {"32": 20, "64": 20, "small": 40}[network]
        found = self.race(f"train:{network}", self.names, steps, 1 if self.args.smoke else 5)
        for told in found.values():
            told["rates"] = [told["batch"] * steps / turn["wall"] for turn in told["turns"]]
            told["busy_processor"] = statistics.median(turn["processor"] / turn["wall"] for turn in told["turns"])
            told["peak"] = max(turn["peak"] for turn in told["turns"])
            told["tflops"] = statistics.median(told["rates"]) * told["flops"] / 1e12
        self.found["train"][network] = found

    def sample(self) -> None:
        import numpy as np

        steps = 3 if self.args.smoke else 50
        found = self.race("sample", self.names, steps, 2)
        if "diffusers-bf16" in self.names:
            for told in self.race("sample:half", ["diffusers-bf16"], steps, 2).values():
                found["diffusers-fp16 weights"] = told
        files = {path.stem: path for path in self.args.folder.glob("*.npy")}
        for name, told in found.items():
            told["seconds"] = [turn["wall"] for turn in told["turns"]]
            told["peak"] = max(turn["peak"] for turn in told["turns"])
            if name != "diffusers-fp32" and name in files and "diffusers-fp32" in files:
                error = np.load(files[name]) - np.load(files["diffusers-fp32"])
                told["db"] = round(float(10 * np.log10(4 / max(np.square(error, dtype=np.float64).mean(), 1e-20))), 1)
        self.found["sample"] = found

    def profile(self) -> None:
        worker = self.workers.get("kuosan-bf16", self.helper)
        told = worker.ask(build="profile")
        if not self.fail("profile", told):
            self.found["profile"] = told

    def forward(self) -> None:
        for how in ("eager", "cudnn.benchmark", "CUDA graph"):
            told = self.helper.ask(build=f"forward:{how}")
            if not self.fail(f"forward, {how}", told):
                self.found["forward"][how] = told
        for where in ("pass", "norm"):
            told = self.helper.ask(build=f"{where}:eager")
            if not self.fail(f"{where}, eager", told):
                self.found[where]["eager"] = told
        self.helper.ask(drop=1)

    def compiling(self) -> None:
        """Each in a process of its own, which is ended when it takes too long."""
        for where in ("norm", "forward", "pass"):
            how = "torch.compile"
            task = f"{where}:{how}"
            left = self.args.seconds - (time.monotonic() - BEGIN)
            if left < 20:
                self.found["failed"][task] = "left out: the time was over"
                continue
            worker = Worker("kuosan-bf16", self.args)
            told = worker.ask(min(COMPILE_SECONDS, left), build=task)
            if not self.fail(task, told):
                self.found[where][how] = told
            worker.end()

    def report(self) -> str:
        """All that was found, as markdown."""
        found, args = self.found, self.args
        card = found.get(
            "card", {"name": "unknown", "torch": "?", "product": 0, "product_tflops": float("nan"), "tf32": "?"}
        )
        peak = card["product_tflops"]
        lines = [
            f"{card['name']}, torch {card['torch']}; one bf16 product of {card['product']} x {card['product']} runs at "
            f"{peak:.0f} TFLOP/s, the data sheet says {NOMINAL:.0f}. {card['tf32']}. {args.rounds} rounds in turns; "
            f"median (lowest-highest).",
        ]
        head = "| loop | parameters | images / s | ms a step | faster than diffusers-fp32 | peak GiB | GFLOP an image "
        head += "| TFLOP/s | of the product | of the data sheet | processor |"
        for network, each in found["train"].items():
            batches = ", ".join(sorted({str(told["batch"]) for told in each.values()}))
            lines += [f"\nTraining {TITLES[network]}, batch {batches}:\n", head, "|---" * 11 + "|"]
            for name, told in each.items():
                rate = statistics.median(told["rates"])
                lines.append(
                    f"| {name} | {told['parameters'] / 1e6:.1f} M | {spread(told['rates'], 0)} "
                    f"| {1000 * told['batch'] / rate:.1f} | {ratio(each, name, 'rates', True)} "
                    f"| {told['peak'] / 2**30:.2f} | {told['flops'] / 1e9:.1f} | {told['tflops']:.1f} "
                    f"| {told['tflops'] / peak:.1%} | {told['tflops'] / NOMINAL:.1%} | {told['busy_processor']:.0%} |"
                )
        if found["sample"]:
            lines += [
                f"\nSampling {args.samples} images of 32 px, {3 if args.smoke else 50} DDIM steps:\n",
                "| sampler | seconds | images / s | faster than diffusers-fp32 | peak GiB | dB to diffusers-fp32 |",
                "|---|---|---|---|---|---|",
            ]
            for name, told in found["sample"].items():
                rate = args.samples / statistics.median(told["seconds"])
                lines.append(
                    f"| {name} | {spread(told['seconds'], 3)} | {rate:.0f} "
                    f"| {ratio(found['sample'], name, 'seconds', False)} | {told['peak'] / 2**30:.2f} "
                    f"| {told.get('db', '-')} |"
                )
        if found["forward"]:
            lines += [f"\nOne forward pass of {args.samples} images in sampling, bf16:\n"]
            lines += ["| how | ms | first call, s | off by |", "|---|---|---|---|"]
            for how, told in found["forward"].items():
                lines.append(f"| {how} | {1000 * told['seconds']:.2f} | {told['first']:.1f} | {told['off']:.1e} |")
        if found["pass"]:
            lines += ["\nForward and backward of a batch of the 32 px network in training, bf16, without the loop:\n"]
            lines += ["| how | ms | images / s | first call, s |", "|---|---|---|---|"]
            for how, told in found["pass"].items():
                lines.append(
                    f"| {how} | {1000 * told['seconds']:.2f} | {told['images_per_s']:.0f} | {told['first']:.1f} |"
                )
        if found["norm"]:
            lines += ["\nOne group norm with bias and SiLU of the finest level, forward and backward, bf16:\n"]
            lines += [
                "| how | ms | GB/s, were each number moved as seldom as can be | first call, s |",
                "|---|---|---|---|",
            ]
            for how, told in found["norm"].items():
                lines.append(f"| {how} | {1000 * told['seconds']:.3f} | {told['gb_per_s']:.0f} | {told['first']:.1f} |")
        if "profile" in found:
            told = found["profile"]
            lines += [
                f"\nOne training step of kuosan-bf16 at 32 px: {1000 * told['wall']:.1f} ms, of which kernels run "
                f"{1000 * told['busy']:.1f} ms; {told['launches']} launches; waits for the device at {told['waits']}; "
                f"noise of 256 images takes {told['draw']} s in one thread.\n",
                "| kernel | ms | launches |",
                "|---|---|---|",
            ]
            lines += [f"| `{key[:110]}` | {1000 * s:.3f} | {count} |" for key, s, count in told["kernels"]]
        if found["failed"]:
            lines += ["\nLeft out:\n", *(f"- {name}: {why}" for name, why in found["failed"].items())]
        return "\n".join(lines) + "\n"


def ratio(each: dict[str, Any], name: str, what: str, more: bool) -> str:
    """How much quicker a contestant is than diffusers as it comes, round by round."""
    reference = each.get("diffusers-fp32", {}).get(what)
    if not reference:
        return "-"
    pairs = list(zip(each[name][what], reference))
    return spread([mine / other if more else other / mine for mine, other in pairs], 2)


if __name__ == "__main__":
    main()
