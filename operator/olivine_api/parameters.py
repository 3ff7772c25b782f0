"""What plug-ins and named parts take: scalars by name, and classes in a ConfigMap."""

from typing import Annotated

from pydantic import Field, StringConstraints

from olivine_api.base import ApiModel, Rule
from olivine_api.sources import ObjectName

Text = Annotated[str, StringConstraints(max_length=256)]
Scalar = Text | bool | float
ParameterName = Annotated[str, StringConstraints(max_length=64)]
Parameters = Annotated[dict[ParameterName, Scalar], Field(max_length=32)]

_PLUGIN_TOGETHER = Rule(
    cel="has(self.configMap) == has(self.key) && has(self.key) == has(self.class)",
    holds=lambda part: (part.config_map is None) == (part.key is None) == (part.class_name is None),
    message="configMap, key and class go together: the ConfigMap, the Python file in it, and the class in that file",
)


class Plugin(ApiModel):
    """A built-in by its name, or a class of one's own in a ConfigMap of the namespace."""

    rules = (_PLUGIN_TOGETHER,)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]
    config_map: ObjectName | None = None
    """The ConfigMap with the Python file."""
    key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*[.]py$", max_length=253)] | None = None
    """The file's key in it, e.g. losses.py."""
    class_name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)] | None = Field(
        default=None, alias="class"
    )
    """The class in that file."""
    parameters: Parameters | None = None
    """Keyword arguments of the class."""
