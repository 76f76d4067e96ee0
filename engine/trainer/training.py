"""Train a model inside the bytes of a plan, from start to end or from wherever the last run stopped."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trady.engine import Engine
from trady.engine.runtime import Measurement
from trady.engine.trainer.checkpoints import (
    BEST_FILE,
    TUNED_FILE,
    Checkpoint,
    Position,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from trady.engine.trainer.draw_times import draw_anew, draw_number
from trady.engine.trainer.evaluating import Tally, evaluate
from trady.engine.trainer.interrupts import Interrupts, noted_interrupts
from trady.engine.trainer.metrics_log import MetricsLog, opened_log
from trady.engine.trainer.outcomes import History, Score, TrainingReport
from trady.engine.trainer.planned_model import PlannedModel, build_planned, check_classes
from trady.engine.trainer.processes import Processes
from trady.engine.trainer.progress import Display, silent_display
from trady.engine.trainer.recipes import learning_rate_at
from trady.engine.trainer.reproducing import (
    deterministic_algorithms,
    generator_states,
    machine_description,
    seed_generators,
    set_generator_states,
)
from trady.engine.trainer.run_folder import check_processes, open_folder
from trady.engine.trainer.run_options import RunOptions
from trady.engine.trainer.stepping import LossNotFiniteError, Stepper
from trady.engine.trainer.training_data import TrainingData, fit_head_to, open_training_data
from trady.planner.errors import DataError, EngineError
from trady.planner.models import Batch
from trady.planner.options import OptimizerKind
from trady.planner.plan import Plan


def train(
    plan: Plan,
    options: RunOptions,
    folder: Path,
    *,
    resume: bool = False,
    trust_pickle: bool = False,
    processes: Processes | None = None,
    display: Display | None = None,
) -> TrainingReport:
    """Train as planned; write plan, options, metrics, checkpoints and weights into a folder.

    The outcome is a function of plan, options, model and data: a run that was killed at any moment and resumed ends
    with the same weights, bit by bit, on the same machine, versions and number of threads.

    Args:
        plan: What trains.
        options: How.
        folder: The run's own; it must hold no run unless ``resume``.
        resume: Go on from the folder's checkpoint; from the beginning where there is none yet.
        trust_pickle: Let the model file run any code it wants.
        processes: Who takes part; this process alone by default.
        display: Shows progress; nothing by default.

    Returns:
        How the run ended, and what it reached.

    Error:
        EngineError: The folder holds a run, the loss is not finite, or a checkpoint cannot be read or written.
        TradyError: The model or the data cannot be had.
    """
    group, shown = processes or Processes(), display or silent_display()
    check_processes(options, group.size)
    if group.is_first:
        open_folder(folder, plan, options, resume)
    with deterministic_algorithms():
        seed_generators(options.seed, group.rank)
        planned = build_planned(
            plan, options.model, arch=options.arch, loss=options.loss, trust_pickle=trust_pickle, device=group.device
        )
        data = open_training_data(options.data, planned)
        if data.num_classes is not None:
            check_classes(planned, data.num_classes, shown.say)
        checkpoint = load_checkpoint(folder) if resume else None
        if options.fit_head and checkpoint is None:
            accuracy = fit_head_to(data.training, planned, options.seed)
            shown.say(f"Fitted the head to the frozen model's features: {accuracy:.1%} of them right")
        run = _Run(planned, data, options, folder, group, shown)
        if checkpoint is not None:
            run.restore(checkpoint)
        return run.to_the_end(checkpoint)


class _Run:
    """A run under way."""

    def __init__(
        self,
        planned: PlannedModel,
        data: TrainingData,
        options: RunOptions,
        folder: Path,
        processes: Processes,
        display: Display,
    ) -> None:
        self._planned, self._data, self._options, self._folder = planned, data, options, folder
        self._processes, self._display = processes, display
        self._engine = Engine(
            planned.model, planned.plan, seed=options.seed, strict=options.strict, carry=options.carry
        )
        self._stepper = Stepper(self._engine, planned, options, processes)
        self._batches = data.training_batches(options.data, options.batch_size, options.seed, processes)
        self._validation = data.validation_batches(options.data, options.batch_size, processes)
        self._interrupts = Interrupts()
        self._log: MetricsLog | None = None
        self._position = Position()
        self._saved: Position | None = None
        self._tally, self._history = Tally(), History()
        self._seconds, self._started = 0.0, time.perf_counter()
        self._epoch_generators = generator_states()

    # --- from start to end ---------------------------------------------------------------------------------------

    def to_the_end(self, checkpoint: Checkpoint | None) -> TrainingReport:
        """Train until the last epoch, or until a signal comes."""
        kept = 0 if checkpoint is None else checkpoint.log_bytes
        with noted_interrupts() as self._interrupts, self._opened_log(kept):
            if checkpoint is None:
                self._score_untrained()
            while self._position.epoch < self._options.epochs and not self._stopping():
                self._epoch()
            if self._interrupts:
                return self._report()
            if self._processes.is_first:
                save_weights(self._folder / TUNED_FILE, self._engine.state_dict())
        return self._report(self._measure())

    @contextmanager
    def _opened_log(self, keep_bytes: int) -> Iterator[None]:
        if not self._processes.is_first:
            yield
            return
        tensorboard = self._options.tensorboard
        step = self._position.step
        with opened_log(self._folder, keep_bytes=keep_bytes, step=step, tensorboard=tensorboard) as self._log:
            yield

    def _stopping(self) -> bool:
        """Whether a signal came, to this process or another: all stop at the same point."""
        (stopping,) = self._processes.any_of(bool(self._interrupts))
        if stopping and not self._interrupts:
            self._interrupts.received = 2
        return stopping

    def _score_untrained(self) -> None:
        if self._validation is None:
            return
        self._history.before = self._score("Before training")
        if self._history.before is not None:
            self._write("start", **self._history.before.figures("validation"))
            self._display.say(f"Before training ({self._head_before}): {self._history.before}")

    @property
    def _head_before(self) -> str:
        """What the score before training is the score of."""
        if not self._planned.head:
            return "the model as it came"
        return "fitted head alone" if self._options.fit_head else "fresh head, untrained"

    # --- one epoch -----------------------------------------------------------------------------------------------

    def _epoch(self) -> None:
        epoch, num_batches = self._position.epoch, self._batches.num_batches
        self._display.start(f"Epoch {epoch + 1}/{self._options.epochs}", num_batches, self._position.batch)
        self._started = time.perf_counter()
        batches = self._batches_left()
        while self._position.batch < num_batches:
            if self._stopping():
                return self._save()
            self._draw_if_due()
            self._step(batches)
        self._check_weights()
        score = None if self._validation is None else self._score(f"Evaluating {epoch + 1}")
        if self._stopping():
            return self._save()
        self._finish_epoch(score)

    def _batches_left(self) -> Iterator[Batch]:
        """The epoch's batches from the position on; those before are made again only where the user's function is."""
        if self._position.batch == 0:
            self._epoch_generators = generator_states()
        now = generator_states()
        set_generator_states(self._epoch_generators)
        batches = self._batches.epoch(self._position.epoch, self._position.batch)
        set_generator_states(now)
        return batches

    def _draw_if_due(self) -> None:
        number = draw_number(self._options.draw_every, self._position)
        if number is None:
            return
        report = draw_anew(self._engine, number, self._planned, self._data.training, self._options.batch_size)
        self._stepper.follow_draw()
        self._display.say(str(report))
        self._write(
            "draw",
            draw=report.epoch,
            entered=report.entered,
            left=report.left,
            trainable_elements=report.trainable_elements,
            update_bytes=report.ledger.scopes.update,
            training_bytes=report.ledger.scopes.training,
            seconds=report.seconds,
            notes=list(report.notes),
        )

    def _step(self, batches: Iterator[Batch]) -> None:
        position = self._position
        size = min(self._options.accumulate, self._batches.num_batches - position.batch)
        rate = self._learning_rate()
        before = self._tally.loss_sum, self._tally.samples
        try:
            done = self._stepper.step(itertools.islice(batches, size), size, rate, self._tally)
        except LossNotFiniteError as error:
            raise self._not_finite(f"the loss is {error.loss}", rate) from error
        if done < size:
            raise DataError(
                f"{self._options.data.source} gave {position.batch + done} batches in epoch {position.epoch}, "
                f"{self._batches.num_batches} when they were counted. It must give as many each time it is called."
            )
        self._position = Position(position.epoch, position.batch + done, position.step + 1)
        loss = (self._tally.loss_sum - before[0]) / max(self._tally.samples - before[1], 1)
        if self._log is not None:
            self._log.show(self._position.step, loss=loss, learning_rate=rate)
        self._display.advance(done, f"loss {loss:.4g}, learning rate {rate:.3g}")

    def _learning_rate(self) -> float:
        steps = -(-self._batches.num_batches // self._options.accumulate)
        return learning_rate_at(
            self._position.step,
            peak=self._options.learning_rate,
            warmup_steps=self._options.warmup_epochs * steps,
            total_steps=self._options.epochs * steps,
        )

    def _finish_epoch(self, score: Score | None) -> None:
        """Tell how the epoch went, and save."""
        epoch, history = self._position.epoch, self._history
        tally = self._tally.over(self._processes)
        seconds = self._seconds + time.perf_counter() - self._started
        trained = Score(tally.loss, tally.accuracy)
        is_best = score is not None and (history.best is None or score.rank > history.best.rank)
        if is_best:
            history.best, history.best_epoch = score, epoch
        history.after = score
        history.epoch_seconds.append(seconds)
        figures = trained.figures("train") | ({} if score is None else score.figures("validation"))
        self._write("epoch", epoch=epoch, **figures, learning_rate=self._learning_rate(), seconds=seconds)
        told = f"; validation {score}{' (best)' if is_best else ''}" if score is not None else ""
        self._display.say(f"Epoch {epoch + 1}/{self._options.epochs}: {trained}{told}; {seconds:.1f} s")
        if is_best and self._processes.is_first:
            save_weights(self._folder / BEST_FILE, self._engine.state_dict())
        self._position = Position(epoch + 1, 0, self._position.step)
        self._tally, self._seconds, self._started = Tally(), 0.0, time.perf_counter()
        self._epoch_generators = generator_states()
        self._save()

    def _score(self, label: str) -> Score | None:
        """Loss and accuracy on the validation data; ``None`` where a signal came."""
        assert self._validation is not None
        self._display.start(label, self._validation.num_batches)
        tally = evaluate(
            self._engine.model,
            map(self._planned.placed, self._validation.epoch(0)),
            self._stepper.forward,
            processes=self._processes,
            stop=lambda: bool(self._interrupts),
        )
        return None if self._stopping() else Score(tally.loss, tally.accuracy)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write a checkpoint of this very point."""
        seconds = self._seconds + time.perf_counter() - self._started
        mine = {"now": generator_states(), "epoch": self._epoch_generators}
        generators, tallies = self._processes.gathered(mine), self._processes.gathered(asdict(self._tally))
        if self._processes.is_first:
            assert self._log is not None
            checkpoint = Checkpoint(
                position=self._position,
                model=self._engine.state_dict(),
                optimizer=self._stepper.optimizer.state_dict(),
                scaler=self._stepper.scaler.state_dict(),
                draws=self._engine.draw_state(),
                generators=generators,
                tally=tallies,
                seconds=seconds,
                history=asdict(self._history),
                log_bytes=self._log.written_bytes(),
                machine=machine_description(),
            )
            save_checkpoint(self._folder, checkpoint)
        self._saved = self._position
        self._processes.wait()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint."""
        machine = machine_description()
        changed = [name for name, value in machine.items() if checkpoint.machine.get(name) != value]
        if changed:
            told = ", ".join(f"{name} {checkpoint.machine.get(name)} then, {machine[name]} now" for name in changed)
            self._display.say(f"Note: the last bits may come out otherwise than without the stop: {told}.")
        rank = self._processes.rank
        self._engine.load_draw_state(checkpoint.draws)
        self._engine.load_state_dict(checkpoint.model)
        self._stepper.optimizer.load_state_dict(checkpoint.optimizer)
        self._stepper.scaler.load_state_dict(checkpoint.scaler)
        self._stepper.follow_draw()
        self._position = self._saved = checkpoint.position
        self._seconds = checkpoint.seconds
        self._tally = Tally(**checkpoint.tally[rank])
        self._history = History.restored(checkpoint.history)
        self._epoch_generators = checkpoint.generators[rank]["epoch"]
        set_generator_states(checkpoint.generators[rank]["now"])
        self._display.say(f"Going on at epoch {self._position.epoch + 1}, batch {self._position.batch}")

    # --- the end -------------------------------------------------------------------------------------------------

    def _check_weights(self) -> None:
        (is_bad,) = self._processes.any_of(not self._stepper.all_finite())
        if is_bad:
            raise self._not_finite("the weights are not finite", self._learning_rate())

    def _not_finite(self, what: str, rate: float) -> EngineError:
        epoch, step, saved = self._position.epoch, self._position.step, self._saved
        kept = f"{self._folder} keeps the checkpoint of step {saved.step}" if saved else "Nothing was saved yet"
        amp = ", without --amp" if self._options.amp else ""
        clip = "" if self._options.optimizer is OptimizerKind.SINKGD else ", or with --clip 1"
        return EngineError(
            f"Training stopped: {what} in epoch {epoch + 1}, step {step + 1}, at learning rate {rate:.4g}. {kept}. "
            f"Start anew with --lr {self._options.learning_rate / 10:.3g}{clip}{amp}; if it is not finite "
            "at the first step, look for odd values in the data."
        )

    def _measure(self) -> Measurement | None:
        """One step as planned, measured; on the first process."""
        if not self._processes.is_first:
            return None
        batch = self._planned.placed(next(self._batches.epoch(0)))
        return self._engine.measure(batch.inputs, batch.targets, self._planned.loss)

    def _report(self, measurement: Measurement | None = None) -> TrainingReport:
        skipped = (*self._batches.skipped, *(self._validation.skipped if self._validation else ()))
        notes = (f"{len(skipped)} unreadable items were left out: {skipped[0]}",) if skipped else ()
        return TrainingReport(
            folder=self._folder,
            plan=self._planned.plan,
            position=self._position,
            options=self._options,
            history=self._history,
            head=self._head_before,
            evaluated_on=self._data.note,
            interrupted_by=self._interrupts.received,
            measurement=measurement,
            notes=notes,
        )

    def _write(self, kind: str, **figures: Any) -> None:
        if self._log is not None:
            self._log.write(kind, step=self._position.step, **figures)
