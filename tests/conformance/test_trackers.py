"""Every tracker is told the same of a run, each line once, also where the run is resumed.

Those whose library is not installed are skipped; ``make test-trackers`` runs all.
"""

import pytest

from esper.contracts.errors import ConfigError
from esper.observability.tracking.following import Tracking
from esper.observability.tracking.tracker import TRACKERS, tracker_kind
from tests.observability.tracked import READERS, Stored, local
from tests.runtime.toy import Recipe, growing, loader, train_from

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the trackers' own, of each other and of SQLAlchemy
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

RECIPE = Recipe(config=growing(max_rounds=1), epochs=8)


def run(directory, name: str, *, stops: bool) -> Stored:
    """A run that grows, followed by a tracker; with ``stops`` it ends in an epoch, and goes on from before that."""
    source = loader()
    trial = RECIPE.build(loader=source, directory=directory)
    tracking = Tracking(name, directory, tell=pytest.fail)
    tracking.follow(trial.session)
    if stops:
        for batch, _ in zip(source, range(10), strict=False):
            trial.session.step(batch)
        trial.session.after_epoch()
        trial.session.save(directory / "checkpoints")
        for _ in range(5):
            for batch in source:
                trial.session.step(batch)
            trial.session.after_epoch()
        tracking.close()
        (directory / "checkpoints").rename(directory / "newest")
        source = loader()
        trial = RECIPE.build(loader=source)
        trial.session.load(sorted((directory / "newest").iterdir())[0])
        tracking = Tracking(name, directory, tell=pytest.fail)
        tracking.follow(trial.session)
    train_from(trial, source)
    tracking.close()
    return READERS[name](directory)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """What each tracker holds of a run that was not interrupted, and of the same run that was."""
    found: dict[str, dict[bool, Stored]] = {}

    def of(name: str) -> dict[bool, Stored]:
        try:
            tracker_kind(name)
        except ConfigError as error:
            pytest.skip(str(error))
        if name not in found:
            found[name] = {}
            for stops in (False, True):
                directory = tmp_path_factory.mktemp(f"{name}-{stops}")
                with pytest.MonkeyPatch.context() as patch:
                    patch.chdir(directory)
                    for key, value in local(directory).items():
                        patch.setenv(key, value)
                    if name == "trackio":
                        import trackio.sqlite_storage
                        import trackio.utils

                        for module in (trackio.sqlite_storage, trackio.utils):
                            patch.setattr(module, "TRACKIO_DIR", directory / "trackio")
                    found[name][stops] = run(directory, name, stops=stops)
        return found[name]

    return of


@pytest.mark.parametrize("name", TRACKERS)
def test_scalars_stand_at_the_steps_of_the_run(stored, name):
    scalars = stored(name)[False].scalars
    assert [step for step, _ in scalars["loss/select"]] == [10 * epoch for epoch in range(1, 9)]
    assert [value for _, value in scalars["epoch"]] == list(range(1, 9))
    assert {"lr", "loss/train", "metric/accuracy", "flops/run", "flops/arms", "seeds/DORMANT"} <= scalars.keys()
    ((step, count),) = scalars["lifecycles/FOSSILIZED"]
    assert count == 1
    assert [step] == [at for at, _ in scalars["parameters/fossils"]]
    assert scalars["gates/alpha/model"][0][1] == 1


@pytest.mark.parametrize("name", TRACKERS)
def test_what_seeds_sense_is_a_histogram_with_a_sample_a_seed(stored, name):
    histograms = stored(name)[False].histograms
    assert histograms["sensed/gradient_norm/model"] == [(10 * epoch, 1) for epoch in range(1, 9)]


@pytest.mark.parametrize("name", TRACKERS)
def test_events_of_growth_are_told_in_words(stored, name):
    texts = " ".join(stored(name)[False].texts.values())
    for told in ("round 1", "germinated", "FOSSILIZED", "the whole model"):
        assert told in texts


@pytest.mark.parametrize("name", TRACKERS)
def test_a_run_that_is_resumed_is_told_once_and_steps_never_fall(stored, name):
    whole, resumed = stored(name)[False], stored(name)[True]
    assert resumed.scalars == whole.scalars
    assert resumed.histograms == whole.histograms
    assert resumed.texts.keys() == whole.texts.keys()
    for points in resumed.scalars.values():
        steps = [step for step, _ in points]
        assert steps == sorted(steps)
