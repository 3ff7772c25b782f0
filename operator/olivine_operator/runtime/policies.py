"""The settings of a namespace: the administrator's, with the policy that holds there."""

from collections.abc import Mapping

from olivine_operator.plan.observed import NamespaceView
from olivine_operator.plan.policy import policy_for
from olivine_operator.plan.settings import OperatorSettings
from olivine_operator.runtime.api import NAMESPACES, KubeApi
from olivine_operator.runtime.cache import Cache


class Policies:
    """Settings by namespace."""

    def __init__(self, api: KubeApi, cache: Cache, settings: OperatorSettings) -> None:
        self._api = api
        self._cache = cache
        self._settings = settings

    async def settings_for(self, namespace: str) -> OperatorSettings:
        """The settings with the policy that holds in a namespace."""
        labels: Mapping[str, str] = {}
        if self._settings.policies:
            known = self._cache.namespace(namespace)
            if known is None:
                # A resource may be told of before its namespace is: no reason to judge it by another's policy.
                known = NamespaceView.from_raw(await self._api.get(NAMESPACES, None, namespace))
                self._cache.namespaces.put(known)
            labels = known.labels
        return self._settings.model_copy(update={"policy": policy_for(self._settings, labels)})
