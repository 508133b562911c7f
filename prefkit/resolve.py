"""A name in a pipeline file -> a function; its keyword-only parameters ARE the options.

A pipeline file says `use = "prompt_length"` and gives `max_words = 100`. This module finds the function `prompt_length`
in its stage's module (or anywhere, as `package.module:function`), checks the given options against the annotations
of its keyword-only parameters, and fills in the defaults. There is no registry and no options class: adding a
function to the module of its stage makes it usable, documented and checked.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from prefkit.errors import PrefkitError, UsageError, did_you_mean, one_line

if TYPE_CHECKING:
    import pydantic


@dataclass(frozen=True)
class Call:
    """A function by its address, with all its options: plain data that can be hashed, stored and sent to a worker."""

    address: str  # "package.module:function"
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The bare function name: the reject reason, strategy tag and metric name."""
        return self.address.rpartition(":")[2]

    def call(self, *arguments: Any) -> Any:
        """Call it. What a function from outside prefkit raises becomes a UsageError that names it."""
        try:
            return self.function()(*arguments)
        except PrefkitError:
            raise
        except Exception as error:
            if not self.is_external:
                raise
            raise UsageError(f"{self.address} failed: {type(error).__name__}: {error}") from error

    @property
    def is_external(self) -> bool:
        """Whether the function comes from outside prefkit."""
        return not self.address.startswith("prefkit.")

    def function(self) -> Callable[..., Any]:
        """The function with its options bound; what remains are its positional parameters."""
        return functools.partial(load(self.address), **self.options)


def load(address: str) -> Callable[..., Any]:
    """Import `package.module:function`; UsageError where it does not exist."""
    module_name, _, function_name = address.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), function_name]):
        raise UsageError(f'"{address}": write it as package.module:function.')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(f'"{address}": cannot import "{error.name}". Is it installed, or on PYTHONPATH?') from error
    except Exception as error:  # whatever the module does while it is imported
        raise UsageError(f'"{address}": importing it failed: {type(error).__name__}: {error}') from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = functions_of(module)
        raise UsageError(f'"{address}": no function "{function_name}" there.{did_you_mean(function_name, known)}')
    return function


def functions_of(module: Any) -> list[str]:
    """Names of the public functions that a module has and itself defines, or a module within it if it is a package."""
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
        and not name.startswith("_")
    ]


def find(name: str, home: str, where: str) -> str:
    """The address of `name`: itself if it is one, else in `home`, a module with functions or a package of modules.

    In a package (`home` ends with a dot), each function lives in the module of its own name.
    """
    if ":" in name:
        return name
    if home.endswith("."):
        package = importlib.import_module(home.rstrip("."))
        known = modules_of(package)
    else:
        known = functions_of(importlib.import_module(home))
    if name not in known:
        raise UsageError(f'{where}: there is no "{name}".{did_you_mean(name, known)}')
    return f"{home}{name}:{name}" if home.endswith(".") else f"{home}:{name}"


def modules_of(package: Any) -> list[str]:
    """Names of the public modules of a package."""
    import pkgutil

    return [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]


def options_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a function: its keyword-only parameters, in order."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check(address: str, given: Mapping[str, Any], where: str) -> Call:
    """Check `given` against the options of the function at `address` and fill in the defaults.

    Raises UsageError for an unknown option (with the nearest known one), a missing one, or a value of the wrong type.
    """
    import pydantic

    try:
        known, model = _model(load(address))
    except (NameError, TypeError, ValueError, pydantic.PydanticUserError) as error:
        # it has no signature, or a type that only type checkers import, or that no value in a pipeline file has
        raise UsageError(f'"{address}": its parameters cannot be read as options ({one_line(error)}).') from error
    for key in given:
        if key not in known:
            raise UsageError(f'{where}: unknown option "{key}".{did_you_mean(key, known) or " It takes no options."}')
    try:  # strict, so that true is no number and "no" is not false; as JSON, so that a list may be a tuple
        checked = model.model_validate_json(json.dumps(given, default=str), strict=True)
    except pydantic.ValidationError as error:
        raise UsageError(f"{where}: option {_said(error.errors(), given)}.") from error
    return Call(address, checked.model_dump(mode="json"))


def _model(function: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], type[pydantic.BaseModel]]:
    """The options of a function, and what checks their values."""
    import pydantic

    known = options_of(function)
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        key: (hints.get(key, Any), ... if parameter.default is parameter.empty else parameter.default)
        for key, parameter in known.items()
    }
    config = pydantic.ConfigDict(protected_namespaces=(), allow_inf_nan=False)
    return known, pydantic.create_model("Options", __config__=config, **fields)


def _said(errors: Sequence[Any], given: Mapping[str, Any]) -> str:
    """Where pydantic's errors are, what may stand there, in all its kinds, and what does."""
    places = [_place(error["loc"], given) for error in errors]
    place = max(places, key=len)  # of a value that may be of several kinds, this one came furthest
    here = [error for error, at in zip(errors, places, strict=True) if at == place]
    first, *others = dict.fromkeys(error["msg"].replace("an object", "a table") for error in here)
    allowed = " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])
    shown = "" if here[0]["type"] in ("missing", "too_short") else f", not {here[0]['input']!r}"
    return f"{'.'.join(map(str, place))}: {allowed}{shown}"


def _place(path: Sequence[Any], given: Any) -> list[Any]:
    """Where an error is in what was given: pydantic's `path` without the kinds that a value may be of."""
    place = []
    for number, part in enumerate(path):
        within = isinstance(given, Mapping) and part in given
        if number == 0 or within or (isinstance(given, list | tuple) and isinstance(part, int)):
            place.append(part)
            given = given[part] if within else given[part] if part in range(len(given)) else None
    return place


def summary(function: Callable[..., Any]) -> str:
    """First paragraph of the docstring, on one line: what help texts, the data-set card and the report print."""
    return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())
