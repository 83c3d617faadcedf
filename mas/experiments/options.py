"""Typed options from signatures: the arguments of a function or class are what a config may set.

A new strategy, stream, model, deficit or probe needs no second list of its options: the pydantic
model that checks its part of the YAML is made from its signature.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError, create_model

from mas.imports import IMPORT, check_options, import_function

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Options(BaseModel):
    """Base of all parts of a config: unknown keys are errors, values do not change."""

    model_config = STRICT


class EntryOptions(Options):
    """The options of one entry of a registry, such as a strategy or a probe.

    Attributes:
        entry: the function or class that takes the options.
        argument_names: which fields are its arguments; the others belong to the experiment.
    """

    entry: ClassVar[Callable[..., Any]]
    argument_names: ClassVar[frozenset[str]] = frozenset()

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of the entry, as plain data."""
        return self.model_dump(include=set(self.argument_names))


class ImportedOptions(EntryOptions):
    """The options of an entry of the user's own: ``{name: import, function: package.module:name, ...}``.

    Attributes:
        given: names of the arguments that the experiment gives.
        function: where it is imported from. Results can be read where it cannot be imported.
    """

    model_config = ConfigDict(extra="allow")
    given: ClassVar[frozenset[str]] = frozenset()
    function: str

    @property
    def entry(self) -> Callable[..., Any]:  # type: ignore[override]
        """The imported function or class."""
        return import_function(self.function)

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of the function, as plain data."""
        return dict(self.model_extra or {})

    def check(self) -> None:
        """Raise ValueError if the function cannot be imported or does not take these options."""
        check_options(self.entry, self.arguments(), self.given, self.function)
        check_types(self.entry, self.arguments(), self.function)


Typed = Callable[[str, Any, Any], Any]  # (name, annotation, default) -> annotation


def models_of(
    registry: Mapping[str, Any],
    key: str,
    *,
    leave_out: Iterable[str] = (),
    base: type[EntryOptions] = EntryOptions,
    typed: Typed = lambda name, annotation, default: annotation,
) -> dict[str, type[EntryOptions]]:
    """Make a pydantic model for each entry of a registry, told apart by ``key``.

    Args:
        registry: functions or classes by name.
        key: the field that holds the name.
        leave_out: arguments that are no options.
        base: of the models.
        typed: returns an option's type, where it differs from the signature.

    >>> def ring(radius: float = 1.0): "A ring."
    >>> models = models_of({"ring": ring}, "name")
    >>> models["ring"](name="ring").arguments()
    {'radius': 1.0}
    """
    made: dict[str, type[EntryOptions]] = {}
    for name, entry in registry.items():
        arguments = _fields(entry, frozenset(leave_out), typed)
        fields: dict[str, Any] = {key: (Literal[name], name), **arguments}
        model = create_model(f"{name}_options", __base__=base, **fields)
        model.entry = staticmethod(entry)
        model.argument_names = frozenset(arguments)
        made[name] = model
    made.setdefault(IMPORT, _imported(key, frozenset(leave_out), base))
    return made


def _imported(key: str, given: frozenset[str], base: type[EntryOptions]) -> type[EntryOptions]:
    """Return the model of an entry that is imported."""
    fields: dict[str, Any] = {key: (Literal["import"], IMPORT)}
    # of several bases the last one's config counts, and the imported options allow further keys
    bases: Any = (ImportedOptions,) if issubclass(ImportedOptions, base) else (base, ImportedOptions)
    model: type[ImportedOptions] = create_model("import_options", __base__=bases, **fields)
    model.given = given
    return model


def check_types(function: Callable[..., Any], options: Mapping[str, Any], path: str) -> None:
    """Raise ValueError if an option is not of the type that the function's signature gives; without one, any will do.

    Args:
        function: that is to be called.
        options: keyword arguments from a config.
        path: of the function, for the message.
    """
    hints = _type_hints(function)
    for name, value in options.items():
        if name not in hints:
            continue
        try:
            TypeAdapter(hints[name], config=_ANY_TYPE).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise ValueError(f"{path}: {name} is {value!r}; expected {reason}") from None
        except PydanticUserError:  # a type that pydantic cannot check
            continue


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    called = function.__init__ if inspect.isclass(function) else function
    try:
        return get_type_hints(called, include_extras=True)
    except (NameError, TypeError):  # names that only a type checker sees
        return {}


_ANY_TYPE = ConfigDict(arbitrary_types_allowed=True)


def tag_of(model: type[BaseModel]) -> tuple[str, str] | None:
    """Return the field that tells a model from others, and its value; None if it has none.

    >>> tag_of(models_of({"ring": lambda: None}, "name")["ring"])
    ('name', 'ring')
    """
    for name, field in model.model_fields.items():
        values = get_args(field.annotation)
        if get_origin(field.annotation) is Literal and len(values) == 1:
            return name, values[0]
    return None


def describe(entry: Any) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(entry) or "").partition("\n")[0]


def _fields(entry: Any, leave_out: frozenset[str], typed: Typed) -> dict[str, Any]:
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    fields: dict[str, Any] = {}
    for p in inspect.signature(entry).parameters.values():
        if p.kind in named and p.name not in leave_out:
            default = ... if p.default is p.empty else p.default
            fields[p.name] = (typed(p.name, p.annotation, p.default), default)
    return fields
