"""Trains the small world's transformer: legs that end when they must and go on where the last one was saved.

Data, noise and captions of a step follow from the seed and the step's number, so that a run in legs is the run
without a break. Processes of one thread each share a batch and sum their gradients, which on a CPU with few cores
is faster than one process with several threads. A final leg lets the learning rate fall to zero.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from . import captions, latents
from .dit import Transformer, size_of
from .text import TextEncoder

CHECKPOINT = "checkpoint-{:07d}.pt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is trained and how; the same for all legs of a run."""

    start_from: Path
    """Transformer file whose weights begin the first leg."""
    vae: Path
    text_encoder: Path
    seed: int = 0
    clips: int = 32
    """Batch of a step on clips; two of three steps are."""
    stills: int = 64
    learning_rate: float = 1e-3
    warm_up: int = 200
    """Steps until the learning rate is reached."""
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    shards: int = 24
    """Shards of scenes in all; the first ones alone serve the first steps."""
    shard_size: int = 512
    steps_per_shard: int = 120
    log_every: int = 50
    evaluate_every: int = 1000
    """0: never."""
    evaluated: int = 18
    """Videos of each group."""
    last_shares: tuple[tuple[str, float], ...] = (("digit", 0.55), ("letter", 0.1), ("invented", 0.35))
    """How often the base is shown what while the learning rate falls; before that, scenes.SHARES."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """One run of the command."""

    work: Path
    seconds: float
    last_step: int
    decay: int
    """Steps of the final fall of the learning rate, from where this leg begins; 0: none, unless it has begun."""
    save_seconds: float = 240.0
    processes: int = 2


class Run:
    """Weights, their average, the optimizer and the step: all that a checkpoint holds."""

    def __init__(self, plan: Plan, work: Path):
        self.plan, self.work = plan, work
        tensors = load_file(plan.start_from)
        self.model, self.average = (Transformer(**size_of(tensors)) for _ in range(2))
        for model in (self.model, self.average):
            model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        self.average.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay,
            fused=True,
        )
        self.step = 0
        self.decay: tuple[int, int] | None = None
        """First step of the final fall, and how many it takes."""
        if saved := checkpoints(work):
            self._load(torch.load(saved[-1], weights_only=True))

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(), "step": self.step, "decay": self.decay,
        }
        latents.written_whole(self.work / CHECKPOINT.format(self.step), state)
        for old in checkpoints(self.work)[:-2]:
            old.unlink()

    def learning_rate(self) -> float:
        rate = self.plan.learning_rate * min(1.0, (self.step + 1) / self.plan.warm_up)
        if self.decay:
            begin, steps = self.decay
            rate *= max(0.0, 1 - (self.step - begin) / steps)
        return rate

    @property
    def is_done(self) -> bool:
        return bool(self.decay) and self.step >= sum(self.decay)

    def _load(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.decay = state["step"], state["decay"] and tuple(state["decay"])


def checkpoints(work: Path) -> list[Path]:
    """Those of a working folder, the oldest first."""
    return sorted(work.glob("checkpoint-*.pt"))


class Batches:
    """The part of each step's batch that one of several processes works on."""

    def __init__(self, plan: Plan, work: Path, rank: int, processes: int):
        self.plan, self.folder, self.rank, self.processes = plan, work / "latents", rank, processes
        self.text = TextEncoder(plan.text_encoder)
        self.shards: dict[bool, list[latents.Shard]] = {False: [], True: []}

    def __call__(self, step: int, is_last: bool = False):
        """Clean latents, noise, noise levels, and the encoded captions with their lengths.

        is_last: the learning rate is falling.
        """
        moves = step % 3 != 2
        size = (self.plan.clips if moves else self.plan.stills) // self.processes
        rng = np.random.default_rng([self.plan.seed, step, self.rank])
        shards = self._shards(moves, min(self.plan.shards, 1 + step // self.plan.steps_per_shard))
        chosen = [(shard, self._row(shard, is_last, rng))
                  for shard in (shards[rng.integers(len(shards))] for _ in range(size))]
        clean_BCFHW = torch.stack([shard.latent_NCFHW[row] for shard, row in chosen]).float()
        text_BLD, length_B = self.text([captions.caption(shard.scenes[row], rng) for shard, row in chosen])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        noise_BCFHW = torch.randn(clean_BCFHW.shape, generator=generator)
        return clean_BCFHW, noise_BCFHW, _sigma(size, generator), text_BLD, length_B

    def _row(self, shard: latents.Shard, is_last: bool, rng: np.random.Generator) -> int:
        if not is_last:
            return int(rng.integers(self.plan.shard_size))
        kinds, shares = zip(*self.plan.last_shares, strict=True)
        kind = rng.choice(kinds, p=shares)
        return int(rng.choice([row for row, scene in enumerate(shard.scenes) if scene.kind == kind]))

    def _shards(self, moves: bool, count: int) -> list[latents.Shard]:
        known = self.shards[moves]
        if len(known) < count:
            # Each process encodes every other shard ahead of need; then all read the files.
            for number in range(len(known), count):
                if number % self.processes == self.rank:
                    self._shard(moves, number)
            if self.processes > 1:
                dist.barrier()
            known += [self._shard(moves, number) for number in range(len(known), count)]
        return known

    def _shard(self, moves: bool, number: int) -> latents.Shard:
        return latents.shard(self.folder, self.plan.vae, self.plan.seed, number, moves, self.plan.shard_size)


def _sigma(count: int, generator: torch.Generator) -> torch.Tensor:
    """Half logit-normal (Esser et al. 2024), half uniform and then shifted by 5 as Wan's training does."""
    normal = torch.randn(count, generator=generator).sigmoid()
    uniform = torch.rand(count, generator=generator)
    return torch.where(torch.arange(count) % 2 == 0, normal, 5 * uniform / (1 + 4 * uniform))


def loss_of(model: Transformer, batch) -> torch.Tensor:
    """Mean squared error of the velocity (flow matching, Lipman et al. 2023)."""
    clean_BCFHW, noise_BCFHW, sigma_B, text_BLD, length_B = batch
    sigma = sigma_B[:, None, None, None, None]
    velocity = model((1 - sigma) * clean_BCFHW + sigma * noise_BCFHW, sigma_B, text_BLD, length_B)
    return (velocity - (noise_BCFHW - clean_BCFHW)).square().mean()


def train(rank: int, plan: Plan, leg: Leg, rendezvous: str) -> None:
    """One process of a leg."""
    torch.set_num_threads(1)
    if leg.processes > 1:
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=leg.processes)
    run, batches = Run(plan, leg.work), Batches(plan, leg.work, rank, leg.processes)
    if leg.decay and not run.decay:
        run.decay = (run.step, leg.decay)
    parent = os.getppid()
    began = saved = logged = time.monotonic()
    losses: dict[bool, list[float]] = {False: [], True: []}
    while not run.is_done and run.step < leg.last_step:
        if os.getppid() != parent:
            raise SystemExit("The command that started this process was killed; it goes on from its last checkpoint.")
        now = time.monotonic()
        loss, wanted = _step(run, batches(run.step, bool(run.decay)), leg.processes, [now - began > leg.seconds,
                                                                    now - saved > leg.save_seconds])
        must_stop, must_save = wanted
        losses[run.step % 3 != 2].append(loss)
        run.step += 1
        if rank == 0:
            if run.step % plan.log_every == 0:
                now, before = time.monotonic(), logged
                logged = now
                means = {name: round(float(np.mean(losses[moves])), 5)
                         for name, moves in (("clips", True), ("stills", False)) if losses[moves]}
                _log(leg.work, {"step": run.step, "loss": means, "learning_rate": run.learning_rate(),
                                "seconds_a_step": round((now - before) / plan.log_every, 3)})
                losses = {False: [], True: []}
            if must_save or must_stop:
                run.save()
            if plan.evaluate_every and run.step % plan.evaluate_every == 0:
                _evaluate(run, batches.text)
        if must_save:
            saved = time.monotonic()
        if must_stop:
            break
    if rank == 0:
        run.save()
    if leg.processes > 1:
        dist.barrier()
        dist.destroy_process_group()


def _step(run: Run, batch, processes: int, wishes: list[bool]) -> tuple[float, list[bool]]:
    """One step of all processes; returns their mean loss and the wishes of the first one, which all then know."""
    for group in run.optimizer.param_groups:
        group["lr"] = run.learning_rate()
    loss = loss_of(run.model, batch)
    loss.backward()
    parameters = list(run.model.parameters())
    shared = torch.cat([*(parameter.grad.flatten() for parameter in parameters),
                        torch.tensor([loss.item(), *map(float, wishes)])])
    if processes > 1:
        if dist.get_rank():
            shared[-len(wishes):] = 0
        dist.all_reduce(shared)
        shared[: -len(wishes)] /= processes
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, gradient in zip(parameters, shared.split([*sizes, len(wishes) + 1]), strict=False):
        parameter.grad = gradient.view_as(parameter)
    torch.nn.utils.clip_grad_norm_(parameters, run.plan.clip_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    momentum = min(run.plan.ema, (run.step + 1) / (run.step + 10))
    torch._foreach_lerp_(list(run.average.parameters()), [p.detach() for p in parameters], 1 - momentum)
    return float(shared[-len(wishes) - 1]), [wish > 0 for wish in shared[-len(wishes):].tolist()]


def _evaluate(run: Run, text: TextEncoder) -> None:
    from .evaluate import evaluate
    from .judge import Judge

    began = time.monotonic()
    shares = evaluate(run.average, text, latents.Vae(run.plan.vae), Judge(), run.plan.evaluated)
    _log(run.work, {"step": run.step, "evaluation": shares, "seconds": round(time.monotonic() - began, 1)})


def _log(work: Path, record: dict) -> None:
    with (work / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
