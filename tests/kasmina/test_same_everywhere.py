"""The same seed gives the same bytes in every process, whatever the order of its sets."""

import os
import subprocess
import sys

BIRTH = """
import hashlib, torch
import esper
from esper.blueprints.catalogue import make_blueprint
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.places.lifecycle import Birth, transition
from esper.tasks.cnn import cnn
from esper.tasks.gpt import GPT

torch.manual_seed(0)
bytes_ = hashlib.sha256()
transformer = GPT(8, 6, 4, 8, 2, 2), torch.zeros(2, 6).long()
convolutions = cnn((1, 16), (2, 2, 4), (1, 2), 3), torch.randn(4, 16)
for host, x in (transformer, convolutions):
    esper.wrap(host, example=x)
    for place in places(host):
        bytes_.update(repr(place.site.pieces).encode())
        for blueprint in ("widen", "deepen", "bottleneck_mlp"):
            if place.kind == "colony" and place.ports_of(make_blueprint(blueprint, {})).pieces:
                command = Command(place.layer_id, "all", State.GERMINATED, blueprint=blueprint)
                transition(place, command, birth=Birth(1, ramp_steps=1))
                (graft,) = place.arena.grafts.values()
                bytes_.update(graft.birth(0, place.hosts).detach().numpy().tobytes())
                place.forget()
print(bytes_.hexdigest())
"""


def born(hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", BIRTH], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def test_a_colony_is_born_with_the_same_bytes_in_every_process():
    assert len({born(hash_seed) for hash_seed in "1245"}) == 1
