"""x"""


def show() -> None:
    pass
