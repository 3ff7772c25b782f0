"""A second place for what is finished."""

import re

from olivine_api.base import Rule
from olivine_api.sources import Source

_REPOSITORY = r"^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*/?$"
_STORE = r"^(s3|gs|az|pvc|file)://"


class Publish(Source):
    """Where a copy of what is finished goes, beside storage: a prefix of a store, or a repository of a hub."""

    rules = (
        *Source.rules,
        Rule(
            cel=f"self.uri.matches(r'({_STORE}|{_REPOSITORY})')",
            holds=lambda publish: re.search(f"({_STORE}|{_REPOSITORY})", publish.uri) is not None,
            message="publish.uri on the hub must be hf://org/name, without a path: the whole repository becomes what is published",
            field_path=".uri",
        ),
    )
