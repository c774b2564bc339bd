"""Checkpoints of a run: everything that its next step depends on, in a form that any number of ranks can take up.

One file holds it all (checkpoint_file.py): whole parameters, and the optimizers' state put together from the ranks'
shards, by the names of the parameters. Ranks as many as before go on to the bit. Another number of ranks shares the
state anew; rounding then differs, and two things are converted:

- A gradient is the sum over a rank's rows of a step, averaged over the ranks; with half as many ranks, of twice
  the rows each, it is twice as large. Running means of gradients scale by the ratio of rows, those of squares by
  its square. (Muon's mean of squares is of orthogonal matrices, whose size does not depend on it.)
- Adam's gradients add up over two steps, and may be half done. Each rank then starts from the mean of the ranks'.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer import config as configs
from trainer import schedule
from trainer.checkpoint_file import checkpoint_path, find_checkpoint, read_checkpoint_file, write_checkpoint_file
from trainer.config import TrainConfig
from trainer.errors import UNREADABLE_INPUT, WRONG_USAGE, TrainerError
from trainer.loop import Training
from trainer.position import collective
from trainer.shard_state import ShardState

FORMAT = 1

FREE_FIELDS = ("validation_interval", "validation_micro_batches", "log_interval", "attention", "compile")
"""What may differ between a checkpoint and the run that takes it up: reports, and how the same values are computed."""

_GRADIENT_POWER = {"momentum": 1, "mean": 1}
"""How the optimizers' states scale with gradients; Adam's mean_square is the one of power 2."""

_KEYS = {
    "config": dict,
    "num_steps_done": int,
    "num_rows_done": int,
    "world_size": int,
    "rows_per_rank": int,
    "window_blocks": int,
    "shards": list,
    "parameters": dict,
    "muon": dict,
    "adam": dict,
    "adam_num_steps": int,
    "gradients": list,
    "random": list,
    "rotary": dict,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that has been read and checked; `path` is the file."""

    path: Path
    document: dict[str, Any]

    def check_steps_left(self, num_steps: int) -> None:
        """Raises TrainerError (wrong usage) where the run would have nothing to do."""
        done = self.document["num_steps_done"]
        if done >= num_steps:
            raise TrainerError(
                f"{self.path}: has {done} steps done, and the run is to end after {num_steps}; give a larger --steps, "
                "or an earlier checkpoint",
                WRONG_USAGE,
            )


class Saver:
    """Writes a checkpoint after every `interval` steps and after the last; every rank calls it after every step."""

    def __init__(self, training: Training, folder: Path, interval: int, last_step: int) -> None:
        self._training = training
        self._folder = folder
        self._interval = interval
        self._last_step = last_step
        # Pickled shards travel between hosts' memories: NCCL would take them through the GPUs'.
        is_cuda, is_alone = training.ranks.device.type == "cuda", training.ranks.world_size == 1
        self._group = dist.new_group(backend="gloo") if is_cuda and not is_alone else None

    def after_step(self, num_steps: int) -> None:
        """A collective, where a checkpoint is due."""
        if num_steps % self._interval and num_steps != self._last_step:
            return
        with self._training.progress.left_out():
            self._training.finite.finish()  # or what is saved may be spoilt already
            self._save()

    def _save(self) -> None:
        ranks, began_s = self._training.ranks, time.perf_counter()
        own = _own_part(self._training)
        parts: list[Any] | None = [None] * ranks.world_size if ranks.is_first else None
        with collective("gather of a checkpoint"):
            if ranks.world_size > 1:
                dist.gather_object(own, parts, group=self._group)
            else:
                parts = [own]
        if parts is None:
            return
        path = checkpoint_path(self._folder, self._training.num_steps_done)
        num_bytes = write_checkpoint_file(_put_together(self._training, parts), path)
        print(
            f"step {self._training.num_steps_done:>5}  checkpoint {path} ({num_bytes / 1e6:,.1f} MB, "
            f"{time.perf_counter() - began_s:.1f} s)",
            flush=True,
        )


def _own_part(training: Training) -> dict[str, Any]:
    """What this rank alone has, on the CPU: its shards, its unused gradients and its random state."""
    model, device = training.model, training.ranks.device
    gradients = {
        name: parameter.grad.cpu() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    random = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device)
    return {
        "muon": _named_states(model, model.muon_parameters(), training.muon.states()),
        "adam": _named_states(model, model.adam_parameters(), training.adam.states()),
        "gradients": gradients,
        "random": random,
    }


def _named_states(
    model: nn.Module, parameters: list[nn.Parameter], states: Iterable[ShardState]
) -> list[tuple[str, int, dict[str, Tensor]]]:
    """(parameter's name, begin, tensors), copies on the CPU; empty parts left out."""
    name_of = _names(model)
    return [
        (
            name_of[parameters[state.index]],
            state.begin,
            {name: part.detach().cpu().clone() for name, part in state.tensors.items()},
        )
        for state in states
        if all(len(part) for part in state.tensors.values())
    ]


def _names(model: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _put_together(training: Training, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The document of the file, from the parts of all ranks in their order."""
    model, config = training.model, training.config
    return {
        "format": FORMAT,
        "torch": str(torch.__version__),
        "config": _spell(config),
        "num_steps_done": training.num_steps_done,
        "num_rows_done": training.num_rows_done,
        "world_size": training.ranks.world_size,
        "rows_per_rank": training.num_accumulated,
        "window_blocks": training.window_blocks,
        "shards": [path.name for path in training.data.train],
        "parameters": {name: parameter.detach().cpu() for name, parameter in model.named_parameters()},
        "muon": _whole_states(state for part in parts for state in part["muon"]),
        "adam": _whole_states(state for part in parts for state in part["adam"]),
        "adam_num_steps": training.adam.num_steps,
        "gradients": [part["gradients"] for part in parts],
        "random": [part["random"] for part in parts],
        "rotary": {"frequencies": model.rotary.frequencies, "scale": model.rotary.scale.cpu()},
    }


def _spell(config: TrainConfig) -> dict[str, str]:
    return {field.name: configs.spell_value(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _whole_states(states: Iterable[tuple[str, int, dict[str, Tensor]]]) -> dict[str, dict[str, Tensor]]:
    """Parameter's name -> state -> the whole tensor, its parts in order."""
    parts: dict[str, list[tuple[int, dict[str, Tensor]]]] = {}
    for name, begin, tensors in states:
        parts.setdefault(name, []).append((begin, tensors))
    return {
        name: {
            state: torch.cat([tensors[state] for _, tensors in sorted(shards, key=lambda shard: shard[0])])
            for state in shards[0][1]
        }
        for name, shards in parts.items()
    }


def read_checkpoint(path: Path, config: TrainConfig, shards: list[Path]) -> Checkpoint:
    """The checkpoint of that file, or the newest of that folder, if this run can take it up.

    Raises TrainerError (unreadable input) for a file that is damaged or no checkpoint; (wrong usage) for one of another
    configuration or of other data.
    """
    path = find_checkpoint(path)
    document = read_checkpoint_file(path)
    if document.get("format") != FORMAT:
        raise TrainerError(
            f"{path}: has checkpoint format {document.get('format')}, this trainer reads {FORMAT}; resume with the "
            "version that wrote it",
            UNREADABLE_INPUT,
        )
    wrong = [key for key, kind in _KEYS.items() if not isinstance(document.get(key), kind)]
    if wrong:
        raise TrainerError(
            f"{path}: lacks {', '.join(wrong)}; take a checkpoint that this trainer wrote", UNREADABLE_INPUT
        )
    _check_config(path, document["config"], _spell(config))
    names = [shard.name for shard in shards]
    if document["shards"] != names:
        raise TrainerError(
            f"{path}: was trained on {_list(document['shards'])}, not {_list(names)}; name the same --data", WRONG_USAGE
        )
    return Checkpoint(path=path, document=document)


def _check_config(path: Path, saved: Mapping[str, str], own: Mapping[str, str]) -> None:
    if saved.get("preset") != own["preset"]:
        raise TrainerError(
            f"{path}: is of preset {saved.get('preset')}, not {own['preset']}; resume with --preset "
            f"{saved.get('preset')}",
            WRONG_USAGE,
        )
    differing = [field for field in own if field not in FREE_FIELDS and saved.get(field) != own[field]]
    if differing:
        problem = ", ".join(f"{field}={saved.get(field, 'unknown')} (here {own[field]})" for field in differing)
        settings = " ".join(f"--set {field}={saved.get(field)}" for field in differing)
        raise TrainerError(f"{path}: has {problem}; resume with {settings}", WRONG_USAGE)


def _list(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if names else "nothing"


@torch.no_grad()
def restore(training: Training, checkpoint: Checkpoint) -> None:
    """Set a fresh `training` to where the checkpoint was. Raises TrainerError (unreadable input) for wrong shapes."""
    document, model = checkpoint.document, training.model
    same_ranks = document["world_size"] == training.ranks.world_size
    ratio = 1.0 if same_ranks else training.num_accumulated / document["rows_per_rank"]
    try:
        for name, parameter in model.named_parameters():
            _copy(parameter, document["parameters"][name])
        for optimizer, parameters, states in (
            ("muon", model.muon_parameters(), training.muon.states()),
            ("adam", model.adam_parameters(), training.adam.states()),
        ):
            _restore_states(model, parameters, states, document[optimizer], _scale_of(optimizer, ratio))
        _restore_gradients(training, document["gradients"], ratio, same_ranks=same_ranks)
        model.rotary.restore(document["rotary"]["frequencies"], document["rotary"]["scale"])
        if same_ranks:
            _restore_random(training, document["random"][training.ranks.rank])
    except (KeyError, IndexError, RuntimeError, TypeError, AttributeError) as error:
        raise TrainerError(
            f"{checkpoint.path}: does not fit the model ({type(error).__name__}: {str(error).splitlines()[0]}); take a "
            "checkpoint of this version of the trainer",
            UNREADABLE_INPUT,
        ) from error
    training.adam.num_steps = document["adam_num_steps"]
    training.window_blocks = document["window_blocks"]
    training.short_window_blocks = schedule.short_window_blocks(training.window_blocks)
    training.num_steps_done = document["num_steps_done"]
    training.num_rows_done = document["num_rows_done"]


def _scale_of(optimizer: str, ratio: float) -> Callable[[str], float]:
    """State's name -> what it is multiplied with where gradients are `ratio` times as large."""
    powers = _GRADIENT_POWER | ({"mean_square": 2} if optimizer == "adam" else {})
    return lambda state: float(ratio ** powers.get(state, 0))


def _restore_states(
    model: nn.Module,
    parameters: list[nn.Parameter],
    states: Iterable[ShardState],
    saved: Mapping[str, Mapping[str, Tensor]],
    scale_of: Callable[[str], float],
) -> None:
    name_of = _names(model)
    for state in states:
        for name, part in state.tensors.items():
            if len(part) == 0:
                continue
            whole = saved[name_of[parameters[state.index]]][name]
            _copy(part, whole[state.begin : state.begin + len(part)] * scale_of(name))


def _restore_gradients(
    training: Training, gradients: list[dict[str, Tensor]], ratio: float, *, same_ranks: bool
) -> None:
    """Gradients that wait for Adam's turn: each rank's own, or on other ranks the mean of all."""
    for name, parameter in training.model.named_parameters():
        if name not in gradients[0]:
            continue
        parameter.grad = torch.zeros_like(parameter)
        if same_ranks:
            parameter.grad.copy_(gradients[training.ranks.rank][name])
        else:
            mean = torch.stack([own[name].float() for own in gradients]).mean(0)
            _copy(parameter.grad, (mean * ratio).to(parameter.dtype))


def _restore_random(training: Training, random: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(random["cpu"])
    if training.ranks.device.type == "cuda" and "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"], training.ranks.device)


def _copy(target: Tensor, source: Tensor) -> None:
    """Copy all values. A vector may be longer or shorter at its end: the padding of the packed scalars, which follows
    the number of ranks and means nothing. Raises RuntimeError for other shapes or for another dtype."""
    if target.dtype != source.dtype or target.shape[1:] != source.shape[1:] or target.dim() != source.dim():
        raise RuntimeError(f"{source.dtype} {list(source.shape)} for {target.dtype} {list(target.shape)}")
    if target.dim() == 1:
        num_shared = min(len(target), len(source))
        target[:num_shared].copy_(source[:num_shared])
        return
    if len(target) != len(source):
        raise RuntimeError(f"{list(source.shape)} for {list(target.shape)}")
    target.copy_(source)
