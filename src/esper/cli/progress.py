"""What a run shows while it runs: one plain line per thing worth knowing."""

from typing import Any

EPOCH_LINES = 12


class Progress:
    """Prints the events of a session.

    Args:
        epochs: of the run; at most about ``EPOCH_LINES`` of them are shown.
        heading: what to print before the first line.
    """

    def __init__(self, epochs: int, heading: str) -> None:
        self._epochs, self._heading = epochs, heading
        self._every = -(-epochs // EPOCH_LINES)

    def __call__(self, event: dict[str, Any]) -> None:
        """Print the event if it is worth a line."""
        line = self._line(event)
        if line is not None:
            self.say(line)

    def say(self, line: str) -> None:
        """Print a line."""
        if self._heading:
            print(self._heading)
            self._heading = ""
        print(line, flush=True)

    def _line(self, event: dict[str, Any]) -> str | None:
        match event["event"]:
            case "epoch":
                return self._epoch(event)
            case "note":
                return f"note         {event['text']}"
            case "round_begun":
                places = ", ".join(_place(candidate) for candidate in event["candidates"])
                return f"round {event['round']}      begins; to try: {places}"
            case "arm_ended":
                return self._arm(event)
            case "round_ended":
                adopted = event["adopted"]
                verdict = f"adopted a graft on {_place(adopted)}" if adopted else "nothing adopted"
                return f"round {event['round']}      ends; {verdict}: {event['reason']}"
            case "trial_begun":
                places = ", ".join(_place(candidate) for candidate in event["candidates"])
                return f"trial {event['trial']}      begins in the run itself: {places}"
            case "trial_ended":
                places = ", ".join(_place(one) for one in event["adopted"]) or "nothing"
                return f"trial {event['trial']}      ends; stays: {places}: {event['reason']}"
            case "veto":
                return f"veto         {_place(event)}: {event['reason']}"
            case "emergency":
                how = (
                    "the run goes back" if event["response"] == "rollback" else f"out with the graft on {_place(event)}"
                )
                return f"emergency    {event['reason']}; {how}"
            case "rollback":
                return f"rollback     to the state after step {event['to_step']}: {event['reason']}"
            case "keep_look":
                verdict = "keeps its place" if event["passed"] else "is not kept yet"
                z = _number(event.get("ablation_z"), "+.1f")
                return f"  look       {_place(event)} {verdict} (without it: z = {z})"
            case "field_report":
                return f"  ended      {_place(event)} {event['outcome']}: {event['reason']}"
            case "fault":
                return f"fault        non-finite values in a graft on {_place(event)}"
            case "recovery":
                how = "recovered" if event["recovered"] else "restored from before the graft"
                return f"recovery     the run has {how} after a graft was removed"
        return None

    def _epoch(self, event: dict[str, Any]) -> str | None:
        epoch = event["epoch"]
        if epoch % self._every and epoch not in (1, self._epochs):
            return None
        return (
            f"epoch {epoch:>3}/{self._epochs:<3}"
            f"train loss {_number(event['train_loss'], '.4f')}   held-out loss {_number(event['val_loss'], '.4f')}   "
            f"accuracy {_number(event['val_metric'], '.1%')}"
        )

    @staticmethod
    def _arm(event: dict[str, Any]) -> str:
        verdict = "beats" if event["passed"] else "does not beat"
        place = "/".join(str(event["arm"]).split("/")[1:])
        return (
            f"  arm        {place} {verdict} the run itself: held-out loss {_number(event['gate_loss'], '.4f')} "
            f"against {_number(event['twin_gate_loss'], '.4f')} (z = {_number(event['twin_z'], '+.1f')})"
        )


def _place(event: dict[str, Any]) -> str:
    name = event["layer_id"]
    return "the whole model" if name == "" else name


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
