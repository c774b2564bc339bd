"""The training loop: micro-batches, both optimizers in turn, the schedule, validation, and what is said of it all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from speedprof import annotate
from trainer import schedule
from trainer.adam import DistAdam
from trainer.attention import Sight, make_sight
from trainer.config import TrainConfig
from trainer.data import MicroBatch, micro_batches
from trainer.finite import FiniteWatch
from trainer.lambdas import lambda_table
from trainer.learning_rate import LearningRates
from trainer.model import GPT, compiled_regions, num_parameters
from trainer.muon import Muon
from trainer.position import HERE, collective
from trainer.progress import Progress
from trainer.ranks import Ranks
from trainer.scalars import packed_num_scalars

Loss = Callable[[MicroBatch, Sight, Sight], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Shards to train on and, if any, to validate on."""

    train: list[Path]
    validation: list[Path]


def build_model(config: TrainConfig, ranks: Ranks) -> tuple[GPT, Loss]:
    """The model with its first weights, and what gives a row's loss: the model itself, or compiled."""
    regions = compiled_regions() if config.compile == "blocks" else None
    num_scalars = packed_num_scalars(config, ranks.world_size)
    model = GPT(config, num_scalars=num_scalars, device=ranks.device, regions=regions)
    model.initialise(config.seed)
    if config.compile == "model":
        # Every window has a graph, in training and, with an FP8 head, in validation: more than Dynamo's limit of 8.
        torch._dynamo.config.recompile_limit = 64
        return model, torch.compile(model, dynamic=False, fullgraph=True)
    return model, model


class Training:
    """One run: model, optimizers, data and the window that they have come to.

    num_steps_done, num_rows_done: how far it is; rows count over all ranks. A checkpoint sets both.
    validation_loss: of the last validation, on every rank; None before the first.
    is_logging_rates: whether the log says the schedule of the learning rates once, and the rates at every step.
    """

    def __init__(
        self, config: TrainConfig, data: TrainingData, ranks: Ranks, *, is_logging_rates: bool = False
    ) -> None:
        self.config = config
        self.is_logging_rates = is_logging_rates and ranks.is_first
        self.ranks = ranks
        self.num_accumulated = config.accumulation_steps(ranks.world_size)
        self.model, self.loss = build_model(config, ranks)
        self.muon, self.adam = build_optimizers(config, self.model)
        self.data = data
        self.num_steps_done = self.num_rows_done = 0
        self.validation_loss: float | None = None
        self.window_blocks = schedule.long_window_blocks(config, 0)
        self.short_window_blocks = schedule.short_window_blocks(self.window_blocks)
        self.rates = LearningRates(config)
        self.progress = Progress(ranks, config.tokens_per_step(ranks.world_size))
        self.finite = FiniteWatch(backward_groups(self.muon, self.adam, self.model), ranks.rank)
        self._num_marks = 0

    def run(self, num_steps: int, after_step: Callable[[int], None] = lambda _: None) -> None:
        """Train until `num_steps` steps of the schedule are done, validating at intervals and at the end.

        after_step: called after each step with the number of steps done; its time is not training's.
        """
        interval = self.config.validation_interval
        annotate.phase(f"window {self.window_blocks}")
        self.rows = self._read_rows(self.data.train, self.num_rows_done)
        self.rates = LearningRates(self.config, self.num_steps_done)
        if self.is_logging_rates:
            print(self.rates.describe(), flush=True)
        self.progress.start(self.num_steps_done)
        for step in range(self.num_steps_done, num_steps):
            HERE.step = step
            self._set_window(schedule.long_window_blocks(self.config, step))
            with self._mark("train"):
                loss_sum = self.train_step(step)
            is_due = step % self.config.log_interval == 0 or step == num_steps - 1
            self.progress.step_ended(step, loss_sum / self._num_step_tokens, self.muon.learning_rate, is_due=is_due)
            self.num_steps_done = step + 1
            after_step(step + 1)
            if interval is not None and (step + 1) % interval == 0 and step + 1 < num_steps:
                self.validate(step + 1)
        self.finite.finish()
        self.progress.flush()
        if num_steps == self.config.num_steps:
            self._set_window(self.config.final_rope_window_blocks)
            self._look_farther(self.config.final_validation_window_blocks)
        self.validate(num_steps)
        if self.ranks.is_first:
            values = {name: value.item() for name, value in self.model.lambdas().items()}
            print(lambda_table(self.config, values).describe(), flush=True)

    def train_step(self, step: int) -> Tensor:
        """One update from this rank's micro-batches; their summed loss, fp32, still on the device."""
        self._follow_schedule(step)
        is_adam_step = schedule.is_adam_step(self.config, step)
        loss_sum = torch.zeros((), device=self.ranks.device)
        for number in range(self.num_accumulated):
            batch, short, long = self._next_row(self.rows)
            with annotate.range("forward"):
                loss = self.loss(batch, short, long)
            is_last = number == self.num_accumulated - 1
            if is_adam_step and is_last and self.config.adam_reduces_in == "backward":
                self.adam.reduce_in_backward(True)
            with annotate.range("backward"):
                loss.backward()
            loss_sum += loss.detach()
        self.num_rows_done += self.num_accumulated * self.ranks.world_size
        gradient_norms = self.finite.see(step, loss_sum)
        self._update(is_adam_step)
        annotate.metric("loss", loss_sum / self._num_step_tokens)
        if step % self.config.log_interval == 0:
            self._say_details(gradient_norms)
        return loss_sum

    def _say_details(self, gradient_norms: Mapping[str, Tensor]) -> None:
        """Every lambda, after the update, and every group's gradient norm on this rank, before it.

        Norms are per token of a step; Adam's gradients are sums over the steps since its last.
        """
        scale = 1 / self._num_step_tokens
        for name, norm in gradient_norms.items():
            annotate.metric(f"gradient_norm/{name}", norm * scale)
        for name, value in self.model.lambdas().items():
            annotate.metric(f"lambda/{name}", value)

    def _update(self, is_adam_step: bool) -> None:
        if is_adam_step:
            self.adam.step()
            self.adam.zero_grad()
        self.muon.step()
        self.muon.zero_grad()

    def _follow_schedule(self, step: int) -> None:
        config = self.config
        self.muon.learning_rate, self.adam.learning_rate = self.rates.at(step)
        self.muon.momentum = schedule.muon_momentum(config, step)
        if self.is_logging_rates:
            print(f"step {step:>5}  lr {self.muon.learning_rate:.8f}  adam {self.adam.learning_rate:.8f}", flush=True)
        annotate.metric("lr", self.muon.learning_rate)
        annotate.metric("adam_lr", self.adam.learning_rate)
        annotate.metric("muon_momentum", self.muon.momentum)

    def validate(self, num_steps: int) -> None:
        """Mean loss over the validation rows of all ranks, after `num_steps` steps; a step mark of its own.

        It runs the training graphs, gradients recorded and dropped, so that nothing is compiled for it; where the head
        trains in FP8, which validation does not take, it has graphs of its own.
        """
        has_own_graphs = self.model.head_matmul == "fp8"
        num_rows = self.config.validation_micro_batches // self.ranks.world_size
        if not self.data.validation or num_rows == 0:
            return
        rows = self._read_rows(self.data.validation)
        loss_sum = torch.zeros((), device=self.ranks.device)
        self.model.train(not has_own_graphs)
        with self.progress.left_out(), self._mark("validation"), torch.set_grad_enabled(not has_own_graphs):
            for _ in range(num_rows):
                batch, short, long = self._next_row(rows)
                with annotate.range("forward"):
                    loss_sum += self.loss(batch, short, long).detach()
            with collective("all_reduce of the validation loss"):
                torch.distributed.all_reduce(loss_sum)
            num_tokens = num_rows * self.ranks.world_size * self.config.micro_batch_tokens
            annotate.metric("validation_loss", loss_sum / num_tokens)
        self.model.train()
        self.validation_loss = loss_sum.item() / num_tokens
        if self.ranks.is_first:
            print(f"step {num_steps:>5}  validation loss {self.validation_loss:.4f}", flush=True)

    def _mark(self, kind: annotate.StepKind) -> AbstractContextManager[None]:
        """The next step mark; validation passes count too, so that numbers only ever grow."""
        self._num_marks += 1
        return annotate.step(self._num_marks - 1, kind=kind)

    def _set_window(self, blocks: int) -> None:
        if blocks == self.window_blocks:
            return
        block_tokens = self.config.window_block_tokens
        self.model.rotary.widen(self.window_blocks * block_tokens, blocks * block_tokens)
        self.window_blocks = blocks
        self.short_window_blocks = schedule.short_window_blocks(blocks)
        annotate.phase(f"window {blocks}")

    def _look_farther(self, blocks: int) -> None:
        """Another long window alone: RoPE and the short one stay, as in the records' last validation."""
        if blocks != self.window_blocks:
            self.window_blocks = blocks
            annotate.phase(f"window {blocks}")

    def _next_row(self, rows: Iterator[MicroBatch]) -> tuple[MicroBatch, Sight, Sight]:
        """A row and what its queries see through the short and the long window."""
        with annotate.range("data"):
            batch = next(rows)
            block_tokens = self.config.window_block_tokens
            short, long = (
                make_sight(self.config, batch.cu_seqlens, blocks * block_tokens, self.model.dtype)
                for blocks in (self.short_window_blocks, self.window_blocks)
            )
        return batch, short, long

    def _read_rows(self, shards: list[Path], first_row: int = 0) -> Iterator[MicroBatch]:
        ranks = self.ranks
        return micro_batches(
            shards,
            self.config,
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=ranks.device,
            first_row=first_row,
        )

    @property
    def _num_step_tokens(self) -> int:
        """Tokens of one step on this rank."""
        return self.num_accumulated * self.config.micro_batch_tokens


def build_optimizers(config: TrainConfig, model: GPT) -> tuple[Muon, DistAdam]:
    is_compiled = config.compile != "off"
    muon = Muon(
        model.muon_parameters(),
        learning_rate=config.muon_learning_rate,
        momentum=config.muon_momentum_low,
        beta2=config.muon_beta2,
        weight_decay=config.muon_weight_decay,
        method=config.orthogonalisation,
        variant=config.muon_variant,
        newton_schulz_kernel=config.newton_schulz_kernel,
        compile=is_compiled,
    )
    adam = DistAdam(
        model.adam_parameters(),
        learning_rate=config.adam_learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        compile=is_compiled,
    )
    return muon, adam


def backward_groups(muon: Muon, adam: DistAdam, model: GPT) -> dict[str, Sequence[nn.Parameter]]:
    """Group name -> parameters, about in the order in which backward ends their gradients: head, matrices, the rest."""
    plans = {"muon": (muon.plan(), model.muon_parameters()), "adam": (adam.plan(), model.adam_parameters())}
    groups = {
        optimizer: {plan["name"]: [parameters[index] for index in plan["indices"]] for plan in plan_list}
        for optimizer, (plan_list, parameters) in plans.items()
    }
    head, *others = groups["adam"].items()
    return dict([head, *reversed(groups["muon"].items()), *others])


def declare(training: Training) -> None:
    """Say once what a capture should know of this run."""
    config = training.config
    annotate.declare("preset", config.preset)
    annotate.declare("tokens_per_step", config.tokens_per_step(training.ranks.world_size))
    annotate.declare("attention", config.attention)
    annotate.declare("compile", config.compile)
    annotate.declare("optimizer_plan", training.muon.plan() + training.adam.plan())


def write_header(training: Training, data: TrainingData) -> None:
    """What the first lines of the log say, on rank 0."""
    config, ranks, model = training.config, training.ranks, training.model
    if not ranks.is_first:
        return
    muon, adam = (num_parameters(group) for group in (model.muon_parameters(), model.adam_parameters()))
    validation = _short(data.validation[0]) if data.validation else "none"
    print(
        f"preset {config.preset}  ranks {ranks.world_size}  device {ranks.device.type}  attention {config.attention}  "
        f"compile {config.compile}\n"
        f"parameters {muon + adam:,} (Muon {muon:,}, Adam {adam:,}, scalars {len(model.scalars)})  "
        f"tokens per step {config.tokens_per_step(ranks.world_size):,}  schedule {config.num_steps} steps\n"
        f"data {_short(data.train[0])} and {len(data.train) - 1} more  validation {validation}",
        flush=True,
    )


def _short(path: Path) -> str:
    """The path with `~` for the user's home folder: logs are passed on, and need not say whose they are."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
