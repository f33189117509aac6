"""A Trainer with GrowthCallback: the same bytes where nothing grows, growth where it pays, and runs that are gone on
with."""

import functools
import logging
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what lightning imports
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.plugins.precision import MixedPrecision
    from lightning.pytorch.strategies import DDPStrategy
    from torchmetrics.classification import MulticlassAccuracy

    from esper.integrations.lightning import GrowthCallback

import esper
from esper.contracts.errors import CheckpointError, ConfigError
from tests.few import few
from tests.runtime.toy import BATCH, DATA, Script, growing
from tests.tree_digest import tree_digest

EPOCHS = 6

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks:UserWarning"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Mlp(nn.Sequential):
    """Two hidden units, which are too few."""

    place = ""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 2), nn.ReLU(), nn.Dropout(0.1), nn.Linear(2, 3))


class Cnn(nn.Sequential):
    """The four features as channels of a small image."""

    place = "1"

    def __init__(self) -> None:
        pooled = nn.AdaptiveAvgPool2d(1)
        super().__init__(
            nn.Unflatten(1, (4, 1, 1)),
            nn.Conv2d(4, 2, 1),
            nn.BatchNorm2d(2),
            nn.ReLU(),
            pooled,
            nn.Flatten(),
            nn.Linear(2, 3),
        )


class Transformer(nn.Module):
    """The four features as tokens; the part behind attention is too narrow."""

    place = ""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(1, 8), nn.Parameter(torch.randn(4, 8))
        self.attend = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.behind = nn.Sequential(nn.Linear(8, 1), nn.ReLU(), nn.Linear(1, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x[..., None]) + self.position
        tokens = tokens + self.attend(tokens, tokens, tokens, need_weights=False)[0]
        return self.head((tokens + self.behind(tokens)).mean(1))


class Busy(pl.LightningModule):
    """Logs, counts and collects in all ways that a module may.

    Args:
        net: builds what is trained.
        scheduler: builds a configuration of a scheduler.
        is_wrapped: whether the net is wrapped here.
    """

    def __init__(self, net: Any = Mlp, scheduler: Any = None, is_wrapped: bool = False, **growth: Any) -> None:
        super().__init__()
        self.net, self.scheduler = net(), scheduler
        if is_wrapped:
            esper.wrap(self.net, growing(**growth))
        self.scale = nn.Parameter(torch.ones(()))
        self.accuracy = MulticlassAccuracy(3)
        self.steps, self.seen, self.held_out = 0, [], {}

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        logits = self(batch[0])
        loss = F.cross_entropy(logits, batch[1]) * (1 + 0.01 * (self.steps % 3) + 0.001 * batch_idx)
        self.accuracy(logits, batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("accuracy", self.accuracy)
        self.seen.append(loss.item())
        if self.logger is not None:
            self.logger.log_metrics({"direct": float(self.steps)})
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["steps"] = self.steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.steps = checkpoint["steps"]

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("held_out", loss)
        self.held_out[batch_idx] = float(loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.03)
        return optimizer if self.scheduler is None else ([optimizer], [self.scheduler(optimizer)])


class Counting(pl.Callback):
    """Counts steps of the optimizer, and edits gradients."""

    def __init__(self) -> None:
        self.steps, self.norms = 0, []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps += 1
        self.norms.append(float(pl_module.scale.grad))
        pl_module.scale.grad.mul_(0.5)


class Lines(Logger):
    """Keeps what is logged."""

    name, version = "lines", 0

    def __init__(self) -> None:
        self.lines: list[tuple[Any, Any]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.lines.append((dict(metrics), step))

    def log_hyperparams(self, *_: Any) -> None:
        pass


def shuffled(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(DATA.x, DATA.y), BATCH, shuffle=True, **options)


def held_out(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(DATA.held_x, DATA.held_y), 100, **options)


def trainer_of(*callbacks: Any, **options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    defaults = {"max_epochs": EPOCHS, "accelerator": "cpu", "logger": Lines(), "log_every_n_steps": 1, **quiet}
    return pl.Trainer(callbacks=list(callbacks), **defaults | options)


def growth(place: str = "", **options: Any) -> GrowthCallback:
    """Asks for growth at a place after the first epoch."""
    return GrowthCallback(policy=Script({1: [place]}), **options)


def body(callback: GrowthCallback) -> str:
    """All bytes that training has made."""
    return tree_digest(callback.session._run.snapshots.body())


def per_epoch(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7)


def per_step(optimizer: Any) -> Any:
    steps = EPOCHS * 4  # every third of ten batches, and the last
    return {"scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, steps), "interval": "step"}


def plateau(optimizer: Any) -> Any:
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.9, patience=0, threshold=0.02)
    return {"scheduler": scheduler, "monitor": "held_out"}


SETUPS: dict[str, tuple[Any, Any, bool, dict[str, Any]]] = {
    "a part": (Transformer, plateau, False, {"gradient_clip_val": 0.5}),
    "a whole module in bfloat16": (Cnn, per_epoch, True, {"precision": "bf16-mixed"}),
    "accumulated": (
        Mlp,
        per_step,
        True,
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.3, "gradient_clip_algorithm": "value"},
    ),
}


def fit(setup: str, callback: GrowthCallback | None, **settings: Any) -> tuple[Busy, pl.Trainer, Counting]:
    net, scheduler, is_whole, options = SETUPS[setup]
    torch.manual_seed(0)
    module, counting = Busy(net, scheduler), Counting()
    if callback is not None:
        place = f"net.{net.place}".rstrip(".") if is_whole else net.place
        esper.wrap(module if is_whole else module.net, growing(layers=[place], **settings), DATA.x[:8])
    torch.manual_seed(1)
    trainer = trainer_of(counting, *([callback] if callback else []), **options)
    trainer.fit(module, shuffled(), held_out())
    return module, trainer, counting


@functools.cache
def bare(setup: str) -> Any:
    return told(*fit(setup, None))


def told(module: Busy, trainer: pl.Trainer, counting: Counting) -> dict[str, Any]:
    """All that can be seen of a run."""
    return {
        "weights": {name: one.tolist() for name, one in esper_free(module).items()},
        "lines": trainer.logger.lines,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "counts": (trainer.global_step, trainer.current_epoch, trainer.fit_loop.total_batch_idx),
        "callback": (counting.steps, counting.norms),
        "module": (module.steps, module.seen, module.held_out),
        "streams": torch.get_rng_state().tolist(),
    }


def esper_free(module: nn.Module) -> dict[str, Tensor]:
    return {name: one for name, one in module.state_dict().items() if "_esper" not in name}


@pytest.mark.parametrize("setup", few(SETUPS, ["a part", "accumulated"]))
def test_where_nothing_grows_all_is_as_without_esper(setup):
    run = told(*fit(setup, GrowthCallback(), max_rounds=0))
    for what, value in bare(setup).items():
        assert run[what] == value, what


@pytest.mark.parametrize("setup", few(SETUPS, ["a whole module in bfloat16"]))
def test_what_was_tried_and_refused_leaves_no_trace(setup):
    net, _, is_whole, _ = SETUPS[setup]
    callback = growth(f"net.{net.place}".rstrip(".") if is_whole else net.place)
    run = told(*fit(setup, callback, gate_z=1e9))
    (ended,) = [event for event in callback.session.events if event["event"] == "round_ended"]
    assert ended["reason"] == "no candidate beat the twin"
    for what, value in bare(setup).items():
        assert run[what] == value, what


@pytest.mark.parametrize("setup", few(SETUPS, ["a part", "a whole module in bfloat16"]))
def test_what_beats_its_twin_stays_and_is_exported(setup):
    net, _, is_whole, _ = SETUPS[setup]
    callback = growth(f"net.{net.place}".rstrip(".") if is_whole else net.place)
    module, trainer, counting = fit(setup, callback, gate_z=0.01)
    assert [report.outcome for report in callback.session.field_reports] == ["FOSSILIZED"]
    assert callback.session.step_count == 10 * EPOCHS
    assert counting.steps == trainer.global_step == bare(setup)["counts"][0]
    plain = esper.export(module if is_whole else module.net).eval()
    assert not any("esper" in name for name in plain.state_dict())
    with torch.no_grad():
        grown = (module if is_whole else module.net).eval()(DATA.held_x)
        torch.testing.assert_close(plain(DATA.held_x), grown, atol=1e-5, rtol=1e-4)


@dataclass
class Going:
    """A run with growth, and all that tells whether another one is the same."""

    module: Busy
    trainer: pl.Trainer
    growth: GrowthCallback

    def told(self) -> dict[str, Any]:
        session = self.growth.session
        return {
            "body": tree_digest(session._run.snapshots.body()),
            "streams": torch.get_rng_state().tolist(),
            "held_out": float(self.trainer.callback_metrics["held_out"]),
            "counts": (self.trainer.global_step, self.trainer.current_epoch, session.step_count, session.train_flops),
            "reports": session.field_reports,
            "steps": self.module.steps,
        }


def going(*callbacks: Any, data: Any = shuffled, ckpt_path: Any = None, **options: Any) -> Going:
    """A run in which something grows, from the beginning or from a checkpoint."""
    torch.manual_seed(0)
    module, callback = Busy(), growth(**{"planned_steps": 10 * EPOCHS} if "planned" in options else {})
    esper.wrap(module.net, growing(gate_z=0.01))
    torch.manual_seed(1 if ckpt_path is None else 2)
    options.pop("planned", None)
    trainer = trainer_of(callback, *callbacks, **{"enable_checkpointing": bool(callbacks)} | options)
    trainer.fit(module, data(), held_out(), ckpt_path=ckpt_path)
    return Going(module, trainer, callback)


def saving(folder: Path, **when: Any) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, **when)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> tuple[dict[str, Any], Path]:
    """A run that was never cut, and the folder of its checkpoints: of steps, of epochs, of validations."""
    folder = tmp_path_factory.mktemp("whole")
    run = going(
        saving(folder / "step", every_n_train_steps=7),
        saving(folder / "epoch", every_n_epochs=1, save_on_train_epoch_end=True),
        saving(folder / "validation", every_n_epochs=2, save_on_train_epoch_end=False),
    )
    assert [report.outcome for report in run.growth.session.field_reports] == ["FOSSILIZED"]
    return run.told(), folder


@pytest.mark.parametrize(
    "where",
    few(
        ["step/step=7", "step/step=28", "step/step=42", "epoch/step=10", "validation/step=20"],
        ["step/step=28", "step/step=42", "validation/step=20"],
    ),
    ids=[
        "first epoch",
        "within a round",
        "after it has grown",
        "an epoch's end",
        "a validation's end",
    ],
)
def test_a_run_that_goes_on_from_a_checkpoint_has_the_same_bytes(whole, where):
    told, folder = whole
    assert going(ckpt_path=folder / f"{where}.ckpt").told() == told


class Cutting(pl.Callback):
    """Interrupts the run within an arm."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        session = next(one.session for one in trainer.callbacks if isinstance(one, GrowthCallback))
        if session is not None and session._run.arm is not None and session._growth.rounds.current.arm_step == 5:
            raise KeyboardInterrupt


def test_a_run_that_was_interrupted_within_an_arm_goes_on_there(whole, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        going(Cutting(), saving(tmp_path, every_n_epochs=100, save_on_exception=True))
    signal.signal(signal.SIGINT, handler)  # the Trainer ignores it from then on
    (path,) = tmp_path.glob("*.ckpt")
    resumed = going(ckpt_path=path).told()
    for what in ("body", "streams", "held_out", "steps"):  # FLOPs of the cut arm are booked too
        assert resumed[what] == whole[0][what], what


def own_order() -> Any:
    return shuffled(generator=torch.Generator().manual_seed(4))


def own_loader() -> Any:
    return esper.BatchLoader((DATA.x, DATA.y), BATCH, seed=3)


class Stream(IterableDataset[Any]):
    """Batches whose number nobody knows."""

    def __iter__(self) -> Any:
        for rows in torch.randperm(len(DATA.x)).split(BATCH):
            yield DATA.x[rows], DATA.y[rows]


def stream() -> Any:
    return DataLoader(Stream(), None)


def by_workers() -> Any:
    return shuffled(num_workers=1)


@pytest.mark.parametrize("data", [own_order, own_loader, stream, by_workers])
def test_data_of_any_kind_go_on_in_the_middle_of_an_epoch(data, tmp_path):
    options = {"data": data, "max_epochs": 2, "planned": True}
    told = going(saving(tmp_path, every_n_train_steps=13), **options).told()
    assert going(ckpt_path=tmp_path / "step=13.ckpt", **options).told() == told


def test_gradients_are_scaled_in_arms_as_in_the_run():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=8)  # the first steps overflow
    run = going(plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() < 2.0**24
    (ended,) = [event for event in run.growth.session.events if event["event"] == "round_ended"]
    assert ended["reason"] in ("beat the twin", "no candidate beat the twin")


def test_a_module_that_wraps_its_net_is_loaded_with_what_it_has_grown(whole, tmp_path):
    run = going(saving(tmp_path, every_n_epochs=EPOCHS))
    (path,) = tmp_path.glob("*.ckpt")
    loaded = Busy.load_from_checkpoint(path, is_wrapped=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(DATA.held_x), run.module.eval()(DATA.held_x))
    again = Busy()
    esper.wrap(again.net, growing())
    tested = trainer_of().validate(again, held_out(), ckpt_path=path, verbose=False)
    assert tested[0]["held_out"] == pytest.approx(run.told()["held_out"])


class Manual(Busy):
    """Steps its optimizer itself."""

    def __init__(self, gives_loss: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.gives_loss = gives_loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss if self.gives_loss else None


def small(module: Any, callback: Any, **options: Any) -> Any:
    """An epoch or two, of a module whose net is wrapped."""
    data, held = options.pop("data", shuffled), options.pop("held", held_out)
    if options.pop("is_wrapped", True):
        esper.wrap(module.net, growing(gate_z=0.01))
    trainer = trainer_of(callback, *options.pop("callbacks", []), **{"max_epochs": 2} | options)
    trainer.fit(module, data() if data else None, held() if held else None)
    return callback.session


def test_a_module_that_optimizes_manually_grows_too():
    session = small(Manual(), growth(), max_epochs=EPOCHS)
    (ended,) = [event for event in session.events if event["event"] == "round_ended"]
    assert ended["reason"] in ("beat the twin", "no candidate beat the twin")


def test_losses_per_sample_may_be_given_and_options_reach_the_session(tmp_path):
    heard: list[Any] = []

    def losses(module: Any, batch: Any) -> Tensor:
        assert not module.training
        return F.cross_entropy(module(batch[0]), batch[1], reduction="none")

    callback = GrowthCallback(losses=losses, directory=tmp_path, on_event=heard.append)
    session = small(Busy(), callback, max_epochs=4, num_sanity_val_steps=0, check_val_every_n_epoch=4)
    assert session._run.judge.num_samples == len(DATA.held_x)
    assert (tmp_path / "audit.jsonl").exists()
    assert heard


class Fading(pl.Callback):
    """Makes gradients smaller from step to step."""

    def __init__(self) -> None:
        self.factor = 1.0
        self.told: Any = None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.factor *= 0.99
        pl_module.scale.grad.mul_(self.factor)
        self.told(self.factor)

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.factor = state_dict["factor"]


def test_a_callback_that_trains_along_goes_its_way_in_arms_and_back():
    fading, in_arms, in_run = Fading(), [], []
    callback = growth(extra={"fading": fading})

    def note(factor: float) -> None:
        is_arm = callback.session is not None and callback.session._run.arm is not None
        (in_arms if is_arm else in_run).append(factor)

    fading.told = note
    module = Busy()
    esper.wrap(module.net, growing(gate_z=1e9))
    trainer_of(callback, fading).fit(module, shuffled(), held_out())
    steps = sorted(set(in_run), reverse=True)  # the first is also taken to be counted, and to see what can grow
    assert len(steps) == 10 * EPOCHS
    assert in_arms == steps[10:30]


def two_optimizers(module: Any) -> Any:
    return [torch.optim.SGD(module.net.parameters(), 0.1), torch.optim.SGD([module.scale], 0.1)]


class Several(Manual):
    configure_optimizers = two_optimizers


class Skipping(Busy):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None


class Silent(Busy):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        return None


class Iterating(Busy):
    def training_step(self, dataloader_iter: Any) -> Tensor:
        return super().training_step(next(dataloader_iter)[0], 0)


class Sharing(DDPStrategy):
    """As DeepSpeed's is a kind of DDP."""


REFUSALS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "nothing is wrapped": ("found nothing", Busy, {"is_wrapped": False}),
    "several optimizers": ("gives 2 optimizers", Several, {}),
    "another strategy": ("a whole module", Busy, {"strategy": Sharing(process_group_backend="gloo"), "devices": 1}),
    "gradients now and then": (
        "ddp_comm_state",
        Busy,
        {"strategy": DDPStrategy(process_group_backend="gloo", ddp_comm_state=object()), "devices": 1},
    ),
    "a batch is skipped": ("gave no loss", Skipping, {}),
    "no loss of manual steps": ("gave no loss", lambda: Manual(gives_loss=False), {}),
    "no held-out loss": ("validation_step returns no loss", Silent, {}),
    "no validation data": ("has no validation data", Busy, {"held": None}),
    "shuffled validation data": ("shuffled", Busy, {"held": lambda: held_out(shuffle=True)}),
    "an unknown length": ("not known", Busy, {"data": stream}),
    "a copy of the weights": ("keeps a copy", Busy, {"callbacks": [WeightAveraging()]}),
    "an iterator": ("dataloader_iter", Iterating, {}),
}


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.filterwarnings("ignore")  # what the Trainer itself warns of
def test_what_cannot_grow_is_refused(case):
    words, module, options = REFUSALS[case]
    with pytest.raises(ConfigError, match=words):
        small(module(), GrowthCallback(), **options)


def test_arguments_that_the_trainer_gives_are_refused():
    with pytest.raises(ConfigError, match="takes 'scheduler' from the Trainer"):
        GrowthCallback(scheduler=None)


def test_two_wrapped_nets_are_refused():
    module = Busy()
    module.other = esper.wrap(Mlp(), growing())
    with pytest.raises(ConfigError, match="found 'net', 'other'"):
        small(module, GrowthCallback())


def test_a_checkpoint_without_growth_is_refused(tmp_path):
    module = Busy(is_wrapped=True)
    trainer = trainer_of(max_epochs=1)
    trainer.fit(module, shuffled(), held_out())
    trainer.save_checkpoint(tmp_path / "bare.ckpt")
    with pytest.raises(ConfigError, match="no growth was saved"):
        trainer_of(growth()).fit(Busy(is_wrapped=True), shuffled(), held_out(), ckpt_path=tmp_path / "bare.ckpt")


def test_a_checkpoint_of_a_run_of_another_length_is_refused(whole):
    with pytest.raises(CheckpointError, match="planned_steps"):
        going(ckpt_path=whole[1] / "epoch/step=10.ckpt", max_epochs=EPOCHS + 1)
