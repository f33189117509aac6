"""What a run is called on a bus."""


def group_of(run_id: str) -> str:
    """The group of a run: its id with ``_`` for every sign that a group's name may not have."""
    return "".join(sign if (sign.isascii() and sign.isalnum()) or sign in "-_" else "_" for sign in run_id)
