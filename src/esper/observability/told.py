"""Events in words: what the plain lines, the live display and trackers say about them."""

from typing import Any, Literal, NamedTuple

from esper.observability.labels import place_label
from esper.observability.tried import REASONS

Event = dict[str, Any]
Tone = Literal["plain", "good", "bad"]

RESPONSES = {"rollback": "goes back", "lower_lr": "goes back, with lower learning rates", "stop": "stops"}
"""What a run does in an emergency in which no graft alone is at fault."""


class Told(NamedTuple):
    """An event in words.

    Attributes:
        what: one or two words for the kind of event.
        places: where it happened, in words.
        text: what happened, and why.
        tone: whether it is good or bad news.
    """

    what: str
    places: tuple[str, ...]
    text: str
    tone: Tone = "plain"

    def __str__(self) -> str:
        return ", ".join(self.places) + self.text


def told(event: Event) -> Told | None:
    """The event in words; None for epochs, telemetry and all that has no news for a person."""
    match event["event"]:
        case "note":
            return Told("note", (), event["text"], "bad")
        case "round_begun":
            return Told(f"round {event['round']}", (), f"candidates: {_places(event['candidates'])}")
        case "arm_ended":
            return _arm(event)
        case "round_ended":
            adopted = event["adopted"]
            verdict = f"adopted a graft on {place(adopted)}" if adopted else "nothing adopted"
            tone: Tone = "good" if adopted else "plain"
            return Told(f"round {event['round']}", (), f"ends; {verdict}: {event['reason']}", tone)
        case "trial_begun":
            return Told(f"trial {event['trial']}", (), f"grows in the run itself: {_places(event['candidates'])}")
        case "trial_ended":
            stayed = f"the graft on {_places(event['adopted'])}" if event["adopted"] else "nothing"
            tone = "good" if event["adopted"] else "plain"
            return Told(f"trial {event['trial']}", (), f"ends; {stayed} stays: {event['reason']}", tone)
        case "transition" if event["target"] == "GERMINATED":
            return Told("germinated", (place(event),), f": {event['reason']}")
        case "veto" | "refused":
            return Told(event["event"], (place(event),), f": {event['reason']}")
        case "emergency" if event["response"] == "cull":
            return Told("emergency", (), f"{event['reason']}; the graft on {place(event)} is taken out", "bad")
        case "emergency":
            return Told("emergency", (), f"{event['reason']}; the run {RESPONSES[event['response']]}", "bad")
        case "rollback":
            return Told("rollback", (), f"to the state after step {event['to_step']}: {event['reason']}", "bad")
        case "keep_look":
            verdict = "stays" if event["passed"] else "has not proved its worth yet"
            z = number(event.get("ablation_z"), "+.1f")
            tone = "good" if event["passed"] else "plain"
            return Told("look", (place(event),), f" {verdict} (against the run without it: z = {z})", tone)
        case "field_report":
            tone = "good" if event["outcome"] == "FOSSILIZED" else "plain"
            why = REASONS.get(event["reason"], event["reason"])
            return Told("ended", (place(event),), f" {event['outcome']}: {why}", tone)
        case "fault":
            what = "a graft" if event["lifecycles"] else "a fossil"
            return Told("fault", (), f"non-finite values in {what} on {place(event)}", "bad")
        case "recovery":
            if event["recovered"]:
                return Told("recovery", (), "the run has recovered after a graft was removed")
            return Told(
                "recovery", (), "the run has not recovered: it goes back to before the graft that was removed", "bad"
            )
    return None


def place(event: Event) -> str:
    """What the place of an event, or of a candidate, is called."""
    return place_label(event.get("layer_id") or "")


def number(value: float | None, spec: str) -> str:
    """A number; "-" for one that is undefined."""
    return "-" if value is None else format(value, spec)


def _places(candidates: list[Event]) -> str:
    return ", ".join(map(place, candidates))


def _arm(event: Event) -> Told:
    verdict = "beats" if event["passed"] else "does not beat"
    if str(event.get("verdict")).startswith("variation"):  # and it did not fail by anything that the gate asks before
        verdict = "is only as good as a bias, though it beats"
    layer_id, _, blueprint = str(event["arm"]).partition("/")[2].rpartition("/")
    tried = f"{place_label(layer_id)}/{blueprint}"
    text = (
        f" {verdict} the run itself: held-out loss {number(event['gate_loss'], '.4f')} "
        f"against {number(event['twin_gate_loss'], '.4f')} (z = {number(event['twin_z'], '+.1f')})"
    )
    return Told("arm", (tried,), text, "good" if event["passed"] else "plain")
