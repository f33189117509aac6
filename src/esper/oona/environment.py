"""What processes on one bus must agree on, told by the environment: it holds secrets, so no file and no option does."""

from collections.abc import Mapping

from obstore.exceptions import BaseError as StoreError

from esper.contracts.errors import BusError
from esper.oona.claims import Claims
from esper.oona.codec import Codec, Signing

KEYS, STORE = "ESPER_BUS_KEYS", "ESPER_BUS_STORE"


def codec(environment: Mapping[str, str]) -> Codec:
    """Writes and reads messages as the environment says.

    Args:
        environment: ``ESPER_BUS_KEYS``, secrets to sign with as ``ID=HEX``, with commas between, the one to sign with
            first; ``ESPER_BUS_STORE``, URL of the store of large payloads, see :class:`esper.oona.claims.Claims`.

    Raises:
        BusError: if one of them is no such thing; values are not told.
    """
    signing = claims = None
    if text := environment.get(KEYS):
        keys = {}
        for number, part in enumerate(text.split(","), 1):
            id_, _, secret = part.strip().partition("=")
            try:
                keys[id_] = bytes.fromhex(secret)
            except ValueError:
                raise BusError(f"{KEYS}: key {number} is no ID=HEX. Make one with: openssl rand -hex 32") from None
        signing = Signing(keys, next(iter(keys)))
    if url := environment.get(STORE):
        try:
            claims = Claims(url)
        except ModuleNotFoundError as error:
            raise BusError(f"{STORE} needs {error.name}, which is not installed.") from None
        except (ValueError, StoreError) as error:
            raise BusError(f"{STORE} is no URL of a store: {type(error).__name__}.") from None
    return Codec(signing, claims)
