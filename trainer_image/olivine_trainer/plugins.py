"""Classes of the user's own, from Python files in ConfigMaps: imported under private names, faults told with file, class and line."""

import hashlib
import linecache
import sys
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from olivine_api.parameters import Plugin
from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError, TrainerError
from olivine_trainer.faults import first_line, is_out_of_memory


@dataclass(frozen=True)
class OwnClass:
    """A class of the user's, imported."""

    field: str
    """Where the specification names it, e.g. training.loss."""
    file: str
    """ConfigMap and key, as `losses/contrastive.py`."""
    name: str
    parameters: Mapping[str, Any]
    implementation: type

    def make(self) -> Any:
        """`class(**parameters)`. Raises ConfigurationError where that fails."""
        with self.blamed(f"cannot be made with {_written(self.parameters)}"):
            return self.implementation(**self.parameters)

    @contextmanager
    def blamed(self, doing: str) -> Generator[None]:
        """Turn what the user's code raises into a ConfigurationError with file, class and line; memory that runs out stays what it is."""
        try:
            yield
        except TrainerError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise self.refused(f"{doing}: {_told(error, self.file)}") from error

    def refused(self, why: str, reason: Reason = Reason.PLUGIN_FAILED) -> ConfigurationError:
        """The error that says what is wrong with the class."""
        return ConfigurationError(reason, f"{self.field}: class {self.name} of {self.file} {why}")


def import_own(plugin: Plugin, field: str, sources: Mapping[str, str]) -> OwnClass:
    """The class that a specification names; `sources` holds the files by `<ConfigMap>/<key>`.

    Raises ConfigurationError for a file that is not there, does not run, or has no such class.
    """
    file = file_of(plugin)
    source = sources.get(file)
    if source is None:
        raise ConfigurationError(
            Reason.PLUGIN_FAILED,
            f"{field}: there is no key {plugin.key} in a ConfigMap {plugin.config_map}: make it in the job's namespace,"
            f" e.g. kubectl create configmap {plugin.config_map} --from-file={plugin.key}",
        )
    module = _run(source, file, field)
    name = plugin.class_name or ""
    found = getattr(module, name, None)
    if not isinstance(found, type):
        own = [key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__]
        has = f"its classes are {', '.join(own)}" if own else "it has no classes"
        raise ConfigurationError(Reason.PLUGIN_FAILED, f"{field}.class is {name}, which {file} does not have: {has}")
    return OwnClass(field=field, file=file, name=name, parameters=_arguments(plugin), implementation=found)


def file_of(plugin: Plugin) -> str:
    """`<ConfigMap>/<key>`."""
    return f"{plugin.config_map}/{plugin.key}"


def _run(source: str, file: str, field: str) -> ModuleType:
    """The file as a module that no import statement meets; the same text runs once a process."""
    name = "_olivine_plugin_" + hashlib.sha256(f"{file}\n{source}".encode()).hexdigest()[:16]
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = file
    sys.modules[name] = module  # dataclasses and pickle look there
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # tracebacks show the line
    try:
        exec(compile(source, file, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigurationError(Reason.PLUGIN_FAILED, f"{field}: {file} cannot be imported: {_told(error, file)}") from error
    return module


def _told(error: BaseException, file: str) -> str:
    """`line 7: TypeError: …`; the last line of the user's file that was being run."""
    what = f"{type(error).__name__}: {first_line(error, 300)}" if isinstance(error, Exception) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"line {lines[-1]}: {what}" if lines else what


def _arguments(plugin: Plugin) -> dict[str, Any]:
    """JSON's numbers arrive as floats: whole ones become integers, which Python takes wherever it takes a float."""
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in (plugin.parameters or {}).items()
    }


def _written(parameters: Mapping[str, Any]) -> str:
    return "parameters " + ", ".join(f"{name}={value!r}" for name, value in parameters.items()) if parameters else "no parameters"
