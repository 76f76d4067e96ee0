"""The engine: a plan at work on the user's own model."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from trady.engine.optim import OptimizerFollower, SliceMove
from trady.engine.runtime import (
    DATA_PARALLEL,
    BatchGuard,
    DrawnSlices,
    DrawReport,
    GradientAverage,
    LeanMode,
    Measurement,
    Notices,
    ObservedNorms,
    Reentry,
    StorageNotes,
    always_trained_names,
    dense_norms,
    frozen,
    mark_active,
    mean_over_processes,
    measure_step,
    norms_with_statistics,
    prepare_model,
)
from trady.planner.errors import EngineError
from trady.planner.ledger import BatchedLedger, Ledger
from trady.planner.models import Batch, Inputs, LossFunction, as_it_was
from trady.planner.options import NormMode
from trady.planner.plan import Plan
from trady.planner.sampling import STRATEGIES, ChannelDraw, Observes, check_plan, draw, drawable_layers

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer | None)

_UNSEEN_COMPILED: Final = (
    "Under torch.compile the engine does not see every drawn weight (a packed projection used by parts, for instance), "
    "and those would not train. Run without compiling, or plan with --exclude for these layers."
)
_log: Final = logging.getLogger(__name__)


class Engine(nn.Module):
    """Trains a model inside the bytes of a plan.

    The model stays the user's own: same modules, same keys, its weights current after every optimizer step. While
    the engine's forward runs, operations are redirected to forms that keep only what the drawn channels need.

    Args:
        model: The planned model; frozen but for what always trains, cast and laid out as planned.
        plan: What trains.
        seed: Seed of the draws.
        strict: A batch larger than planned is an error instead of a warning.
        carry: Optimizers keep their state of every channel on the CPU instead of starting anew at each draw.

    Raises:
        EngineError: The plan is of another model (what differs is named), or for int8.

    Example:
        >>> from trady.planner import make_plan
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
        >>> pictures, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
        >>> engine = Engine(net, make_plan(net, pictures, budget="2KB", optimizer="sgd"))
        >>> optimizer = engine.register(torch.optim.SGD(engine.parameters(), lr=0.1))
        >>> report = engine.resample(epoch=1)
        >>> nn.functional.cross_entropy(engine(pictures), labels).backward()
        >>> optimizer.step()

    Known limitations:
        Under ``torch.compile`` gradients are the same, but bytes are the compiler's and not the plan's.
        ``DistributedDataParallel`` around the engine holds the slices that were drawn when it was made: where a draw
        changes counts, wrap again after it (the engine says so). Around a model with an engine attached it may stay;
        the engine then averages the slices itself, which ``join()`` and communication hooks know nothing of.
        ``fully_shard`` (FSDP2) shards frozen weights and the head, not those drawn from: no process has the whole of
        their channels. Shard a model with an engine attached and leave out :meth:`drawable_weights`; the sharded
        parameters need a parameter group of their own, and ``clip_grad_norm_`` a call of its own.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, *, seed: int = 0, strict: bool = False, carry: bool = False
    ) -> None:
        super().__init__()
        check_plan(plan)
        prepare_model(model, plan)
        self.model = model
        self.plan, self.seed = plan, seed
        self._costs = BatchedLedger(plan.table)
        self._flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._always_trained = always_trained_names(model, plan)
        self._norms = norms_with_statistics(model) if plan.settings.norm is NormMode.FROZEN else []
        self._slices = DrawnSlices(plan.table)
        self._follower = OptimizerFollower(carry=carry)
        self._observed = ObservedNorms(plan)
        self._reentry = Reentry(self)
        self._average = GradientAverage()
        self._notes: StorageNotes | None = None
        self._hooks: list[RemovableHandle] = []
        self._is_checkpointed = False
        self._notices = Notices()
        self._notices.tell_machine(plan)
        self._guard = BatchGuard(strict)
        self.channels = ChannelDraw(0, {})
        self._take(draw(plan, 0, seed=seed, ledger=self._costs))

    @classmethod
    def attach(
        cls, model: nn.Module, plan: Plan, *, seed: int = 0, strict: bool = False, carry: bool = False
    ) -> "Engine":
        """Let the user's own ``model(x)`` run lean, until :meth:`detach`; arguments as for the engine itself."""
        engine = cls(model, plan, seed=seed, strict=strict, carry=carry)
        engine._reentry.install(attached=True)
        return engine

    def detach(self) -> None:
        """Give the model back as it was: its own forward, and the parameters that required a gradient before."""
        self._slices.synchronise(self.model)
        self._reentry.remove()
        self._follower.release()
        self._unhook()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._flags[name])

    def __getstate__(self) -> dict[str, Any]:
        """A copy or pickle is attached to nothing and follows no optimizer."""
        left_out = ("_reentry", "_average", "_notes", "_hooks")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a copied state."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._reentry, self._average, self._notes = Reentry(self), GradientAverage(), None
        self._hooks = []

    @property
    def epoch(self) -> int:
        """The epoch that was drawn for last."""
        return self.channels.epoch

    @property
    def ledger(self) -> Ledger:
        """Planned lines and scopes of a step with the channels drawn now."""
        return self.channels.ledger(self._costs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward; lean while gradients are recorded."""
        with self.redirected((args, kwargs)):
            return self.model(*args, **kwargs)

    @contextmanager
    def redirected(self, inputs: object = None) -> Iterator[None]:
        """The context in which the model's operations run lean; checkpointing enters it again to recompute.

        Args:
            inputs: What the model is called with, for the check of the batch size; ``None`` to leave that out.

        Raises:
            EngineError: A compiled model hides a drawn weight.
        """
        if not torch.is_grad_enabled():
            with frozen(self._norms):
                yield
            return
        if torch.compiler.is_compiling():
            redirections = self._slices.redirections(self.model, None)
            with frozen(self._norms), LeanMode(redirections):
                yield
            if len(redirections.used) < len(self.channels.channels):
                raise EngineError(_UNSEEN_COMPILED)
            return
        self._guard.check(self, inputs)
        self._average.before_forward(self)
        self._slices.synchronise(self.model)
        redirections = self._slices.redirections(self.model, self._notes)
        undo = mark_active(self._reentry)
        try:
            with frozen(self._norms), LeanMode(redirections):
                yield
        finally:
            undo()
        if redirections.is_checkpointed:
            self._reentry.install()
            self._is_checkpointed = True
        elif inputs is not None:
            self._notices.tell_unused(self.channels.channels, redirections.used)

    @contextmanager
    def recording(self) -> Iterator[StorageNotes]:
        """Note, during the forward passes inside, which ledger line each kept storage belongs to."""
        before, self._notes = self._notes, StorageNotes()
        try:
            yield self._notes
        finally:
            self._notes = before

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """What trains: the slices, by the name of their weight, and what always trains."""
        dot = f"{prefix}." if prefix else ""
        for name, compact in self._slices.named_parameters():
            yield f"{dot}{name}", compact
        if recurse:
            for name, parameter in self.model.named_parameters(remove_duplicate=remove_duplicate):
                if parameter.requires_grad:
                    yield f"{dot}{name}", parameter

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The plain model's state, its weights current."""
        self._slices.synchronise(self.model)
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the plain model's state; the slices follow."""
        loaded = self.model.load_state_dict(state_dict, strict=strict, assign=assign)
        self._freeze()
        self._slices.synchronise(self.model)
        return loaded

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Inside another module: our keys are the plain model's, which lies one level down."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}model.{key.removeprefix(prefix)}"] = state_dict.pop(key)

    def _replicate_for_data_parallel(self) -> Any:
        raise EngineError(DATA_PARALLEL)

    def _apply(self, fn: Any, recurse: bool = True) -> "Engine":
        """Slices follow the model to other devices and types."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._slices.move_to(fn)
        return self

    def train(self, mode: bool = True) -> "Engine":
        """Set training mode; norms whose statistics are frozen stay in evaluation mode."""
        super().train(mode)
        for norm in self._norms:
            norm.training = False
        return self

    def register(self, optimizer: Optimizer) -> Optimizer:
        """Let an optimizer's state follow the draws, and its steps reach the model's weights.

        Args:
            optimizer: Any of ``torch.optim`` over :meth:`parameters`; ``None`` says that there is none.

        Returns:
            The same optimizer.
        """
        self._follower.register(optimizer)
        if optimizer is None:
            self._unhook()
        else:
            self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))
        return optimizer

    def resample(
        self, epoch: int, *, batches: Iterable[Batch] | None = None, loss: LossFunction | None = None
    ) -> DrawReport:
        """Draw the channels of an epoch and train those from now on.

        Args:
            epoch: From 0. Any counter will do: it is all the draw depends on, beside plan, seed and norms seen.
            batches: Labelled batches for the dense pass of ``d-det-rgn``; other strategies take none.
            loss: Loss of that pass; by default the model's own, else cross-entropy.

        Returns:
            The draw that trains from now on.

        Error:
            EngineError: Gradients wait for a step, the optimizer was not registered, or norms are needed.
        """
        started, before = time.perf_counter(), self.channels
        self._follower.check_held([compact for _, compact in self._slices.named_parameters()])
        norms, notes = self._norms_to_draw_by(batches, loss)
        drawn = draw(self.plan, epoch, seed=self.seed, observed=norms, ledger=self._costs)
        if drawn.as_lists != before.as_lists:
            self._follower.check_before_draw(self.named_parameters())
            notes = [*notes, *self._take(drawn)]
        self.channels = drawn
        report = DrawReport(
            epoch,
            entered=len(drawn.pairs - before.pairs),
            left=len(before.pairs - drawn.pairs),
            trainable_elements=self._slices.num_elements,
            ledger=self.ledger,
            seconds=time.perf_counter() - started,
            notes=tuple(notes),
        )
        _log.info("%s", report)
        return report

    def measure(self, inputs: Inputs, targets: object = None, loss: LossFunction | None = None) -> Measurement:
        """Planned ledger beside the measured one, for one real step that changes nothing; arguments as in a step."""
        return measure_step(self, inputs, targets, loss)

    def draw_state(self) -> dict[str, Any]:
        """What the next draws depend on beside plan and model: for a checkpoint; tensors and plain containers."""
        return {
            "epoch": self.epoch,
            "seed": self.seed,
            "channels": {name: torch.as_tensor(found) for name, found in self.channels.channels.items()},
            "observed": dict(self._observed.norms),
            "follower": self._follower.state_dict(),
        }

    def load_draw_state(self, state: Mapping[str, Any]) -> None:
        """Draw as :meth:`draw_state` recorded; optimizers load their own state afterwards."""
        self.seed = int(state["seed"])
        self._observed.norms = {name: found.clone() for name, found in state["observed"].items()}
        channels = {name: found.numpy() for name, found in state["channels"].items()}
        self._take(ChannelDraw(int(state["epoch"]), channels))
        self._follower.load_state_dict(state["follower"])

    def is_always_trained(self, name: str) -> bool:
        """Whether a parameter of the model trains whatever is drawn."""
        return name in self._always_trained

    def drawable_weights(self) -> set[nn.Parameter]:
        """Weights of the model that any draw of this plan may take channels of: ``fully_shard`` is to ignore them."""
        layers = [self.plan.table.layers[index] for index in drawable_layers(self.plan)]
        return {self.model.get_parameter(layer.weight_name) for layer in layers}

    @property
    def slices(self) -> DrawnSlices:
        """The slices that train."""
        return self._slices

    def _take(self, drawn: ChannelDraw) -> list[str]:
        """Train these channels, optimizers following; returns notes for the log."""
        before = self._trained_biases()
        moves = self._slices.apply(self.model, drawn)
        self.channels = drawn
        after = self._trained_biases()
        names = dict.fromkeys([*before, *after])
        moves += [SliceMove(name, None, before.get(name), None, after.get(name), None) for name in names]
        self._freeze()
        return self._follower.move(moves, order=self.parameters())

    def _trained_biases(self) -> dict[str, nn.Parameter]:
        """Biases that train with their layers, where the plan asks for it."""
        if not self.plan.settings.train_bias:
            return {}
        names = [name for name in self._slices.bias_names if name not in self._always_trained]
        return {name: self.model.get_parameter(name) for name in names}

    def _freeze(self) -> None:
        """Let nothing of the model itself train but what always does, and biases of drawn layers where asked."""
        biases = self._trained_biases()
        for name, parameter in self.model.named_parameters():
            trains = name in self._always_trained or name in biases
            if parameter.requires_grad != trains:
                parameter.requires_grad_(trains)
                parameter.grad = None

    @contextmanager
    def thawed(self) -> Iterator[nn.Module]:
        """The model with the parameters requiring a gradient that did before the engine froze it."""
        with as_it_was(self.model):
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(self._flags.get(name, False))
            yield self.model

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _before_step(self, *_: Any) -> None:
        self._slices.read_changed(self.model)
        if self._is_checkpointed:
            self._notices.tell_without_gradient(self._slices.named_parameters(), self.parameters())
        if STRATEGIES[self.plan.strategy.name].observes is Observes.OWN_DRAWS:
            self._observed.see(self._slices.channel_norms(), self._slices.channels)

    def _after_step(self, *_: Any) -> None:
        self._slices.write_back(self.model)

    def _norms_to_draw_by(
        self, batches: Iterable[Batch] | None, loss: LossFunction | None
    ) -> tuple[dict[str, list[float]] | None, list[str]]:
        if STRATEGIES[self.plan.strategy.name].observes is not Observes.DENSE_PASS:
            return self._observed.as_lists(), []
        if batches is None:
            raise EngineError(
                "Strategy 'd-det-rgn' draws by the norms of a dense pass before each draw. "
                "Give resample(epoch, batches=...) some labelled batches."
            )
        with self.thawed() as model:
            found = dense_norms(model, self.plan, batches, loss)
        norms = mean_over_processes(found.norms, next(self.parameters()).device)
        return norms, [str(found)]
