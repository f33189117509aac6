"""Evaluation by flagd's rules through OpenFeature, in this process. The one place that needs the extra ``flags``."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from esper.contracts.errors import ConfigError

try:
    from openfeature import api
    from openfeature.contrib.tools.flagd.core import FlagdCore
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.exception import OpenFeatureError
    from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType
    from openfeature.provider import AbstractProvider, Metadata
except ModuleNotFoundError as error:
    raise ConfigError(
        f"A store of flags needs {error.name}, which is not installed: pip install 'esper-morphogenetic[flags]'."
    ) from error

Context = EvaluationContext | None


class Evaluated(NamedTuple):
    """What flagd says of one flag and model: its value, the variant that gave it, and what went wrong, or None."""

    is_on: bool
    variant: str | None
    error: str | None


class Evaluator:
    """Evaluates flags of one flagd document.

    Args:
        domain: OpenFeature's word for whose provider this is; a later evaluator of the same domain replaces this one.
    """

    def __init__(self, domain: str) -> None:
        self._domain = domain
        self._provider = _Provider()
        self._client = api.get_client(domain)

    def load(self, document: Mapping[str, Any], names: Iterable[str]) -> None:
        """Evaluate this document from now on.

        Args:
            document: of flagd.
            names: of flags that must have an answer.

        Raises:
            ConfigError: if flagd cannot use it; the one before stays.
        """
        before, core = self._provider.core, FlagdCore()
        try:
            core.set_flags(copy.deepcopy({**document}))  # flagd writes into what it is given
        except (OpenFeatureError, TypeError, ValueError, AttributeError, RecursionError, re.error) as error:
            raise ConfigError(f"flagd cannot use it: {error.__cause__ or error}.") from None
        self._provider.core = core
        for name in names:
            if (wrong := self.evaluate(name, "any model").error) is not None:
                self._provider.core = before
                raise ConfigError(f"The rule of {name!r} fails: {wrong}.")

    def evaluate(self, name: str, model_id: str) -> Evaluated:
        """Whether a flag is on for a model; off where the document has no answer. Never raises."""
        if self._client.provider is not self._provider:  # somebody has cleared OpenFeature's providers
            api.set_provider_and_wait(self._provider, self._domain)
        details = self._client.get_boolean_details(name, False, EvaluationContext(model_id))
        if details.error_code is None:
            return Evaluated(details.value, details.variant, None)
        return Evaluated(False, None, details.error_message or str(details.error_code))


class _Provider(AbstractProvider):
    """What OpenFeature asks; flagd's evaluator answers."""

    def __init__(self) -> None:
        super().__init__()
        self.core = FlagdCore()

    def get_metadata(self) -> Metadata:
        return Metadata("flagd in process")

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: Context = None
    ) -> FlagResolutionDetails[bool]:
        return self.core.resolve_boolean_value(flag_key, default_value, evaluation_context)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: Context = None
    ) -> FlagResolutionDetails[str]:
        return self.core.resolve_string_value(flag_key, default_value, evaluation_context)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: Context = None
    ) -> FlagResolutionDetails[int]:
        return self.core.resolve_integer_value(flag_key, default_value, evaluation_context)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: Context = None
    ) -> FlagResolutionDetails[float]:
        return self.core.resolve_float_value(flag_key, default_value, evaluation_context)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: Context = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        return self.core.resolve_object_value(flag_key, default_value, evaluation_context)
