import threading

import pytest

from esper.contracts.errors import ConfigError
from esper.contracts.flags import none_in_play
from esper.migration.router import HISTORY, MigrationRouter
from tests.migration.flags import NEW, flags


class BrokenError(Exception):
    pass


def broken():
    raise BrokenError("the new way")


class Hiding(MigrationRouter):
    """What a router must not be: where the new way fails, it runs the old one."""

    def route(self, feature, legacy_fn, new_fn):
        try:
            return super().route(feature, legacy_fn, new_fn)
        except BrokenError:
            return legacy_fn()


def hides_errors(router: MigrationRouter) -> bool:
    ran = []
    try:
        router.route("extended_lifecycle", lambda: ran.append("old"), broken)
    except BrokenError:
        return bool(ran)
    return True


@pytest.mark.parametrize(("values", "path"), [(NEW, "new"), (flags(), "legacy")])
def test_the_flag_says_which_runs_and_only_that_one_does(values, path):
    router, ran = MigrationRouter(values), []
    router.route("extended_lifecycle", lambda: ran.append("legacy"), lambda: ran.append("new"))
    assert ran == [path]
    (route,) = router.history
    assert (route.path, route.reason, route.error) == (path, "set for extended_lifecycle", None)
    assert router.counts("extended_lifecycle")[path] == 1


def test_where_nobody_set_a_flag_the_old_way_runs_as_the_layers_are_the_old_ones():
    router = MigrationRouter(none_in_play())
    assert router.route("extended_lifecycle", lambda: "legacy", lambda: "new") == "legacy"


def test_what_the_new_way_raises_is_raised_recorded_and_never_hidden():
    router = MigrationRouter(NEW)
    assert not hides_errors(router)
    assert hides_errors(Hiding(NEW)), "the check sees one that hides"
    assert router.history[0].error == "BrokenError: the new way"
    assert router.counts("extended_lifecycle") == {"legacy": 0, "new": 1, "legacy_failed": 0, "new_failed": 1}


def test_an_interruption_is_recorded_and_passes_too():
    router = MigrationRouter(NEW)

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        router.route("extended_lifecycle", lambda: None, interrupted)
    assert router.history[0].error == "KeyboardInterrupt"


def test_an_unknown_flag_is_refused_and_neither_runs():
    router = MigrationRouter(NEW)
    with pytest.raises(ConfigError, match="Did you mean 'extended_lifecycle'"):
        router.route("extended_lifecycles", broken, broken)
    assert router.history == ()


def test_nothing_is_lost_where_threads_route_at_once_and_the_history_is_bounded():
    router = MigrationRouter(NEW)

    def many():
        for _ in range(500):
            router.route("chunked_architecture", lambda: 0, lambda: 1)

    threads = [threading.Thread(target=many) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert router.counts("chunked_architecture")["new"] == 3000
    assert len(router.history) == HISTORY
