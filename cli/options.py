"""Command-line options, made from what dataclasses declare: which there are, of what type, with which default."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from netgraft.options import Option

PATH = click.Path(path_type=Path)


class DeclaredCommand(click.Command):
    """A command with the options that dataclasses declare, in front of those of its own.

    Args:
        declared: Returns them; called only when the command runs or explains itself, so that ``netgraft --help``
            imports nothing.
    """

    def __init__(self, *args: Any, declared: Callable[[], Iterable[Option]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._declared = declared
        self._made: list[click.Option] | None = None
        self._sections: dict[str, str] = {}

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return what must be given, the declared options, and the command's own."""
        if self._made is None:
            declared = list(self._declared())
            self._made = [_click_option(option) for option in declared]
            self._sections = {option.name: option.section for option in declared}
        own = super().get_params(ctx)
        needed = [parameter for parameter in own if parameter.required]
        return [*needed, *self._made, *(parameter for parameter in own if parameter not in needed)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under headings, those that few people need last."""
        from netgraft.options import SECTIONS

        parameters = self.get_params(ctx)
        used = [name for name in SECTIONS if name in self._sections.values()]
        if len(used) < 3:
            super().format_options(ctx, formatter)
            return
        for section in used:
            self.write(
                ctx,
                formatter,
                HEADINGS[section],
                [
                    parameter
                    for parameter in parameters
                    if not isinstance(parameter, HyperparameterOption | click.Argument)
                    and self._sections.get(parameter.name or "", "run") == section
                ],
            )

    def write(
        self, ctx: click.Context, formatter: click.HelpFormatter, heading: str, parameters: Sequence[click.Parameter]
    ) -> None:
        """Write some options under a heading."""
        records = [record for parameter in parameters if (record := parameter.get_help_record(ctx)) is not None]
        if records:
            with formatter.section(heading):
                formatter.write_dl(records)


HEADINGS = {
    "data": "Data",
    "models": "Models",
    "method": "Method",
    "run": "Run",
    "expert": "For experts",
}


def _click_option(option: Option) -> click.Option:
    """Make an option that is None unless it is given: its default is known where it is declared."""
    from netgraft.options import shown

    kinds: dict[Any, Any] = {int: click.INT, float: click.FLOAT, str: click.STRING, Path: PATH}
    text = option.meaning
    if not option.required and option.default is not None and option.type is not bool:
        text += f"  [{shown(option.default)}]"
    if option.type is bool:
        return click.Option([option.flag, option.name], is_flag=True, default=None, help=text)
    kind = kinds[option.type]
    if option.choices:
        kind = click.Choice(option.choices)
    return click.Option(
        [option.flag, option.name], type=kind, required=option.required, help=text, callback=_checked(option)
    )


def _checked(option: Option) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Refuse numbers out of range, for commands that make no job of their options too."""
    from netgraft.errors import RequestError

    def check(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        try:
            if value is not None:
                option.check_held(value)
        except RequestError as error:
            raise click.BadParameter(str(error), context, parameter) from error
        return value

    return check


class HyperparameterOption(click.Option):
    """A field of a method's dataclass, passed on as text: the field's own reader checks it."""

    def __init__(self, option: Option) -> None:
        from netgraft.options import shown

        self.field = option.name
        self.kind = "|".join(option.choices) or _type(option.type if option.default is None else option.default)
        self.shown_default = "" if option.default is None else shown(option.default)
        self.meaning = option.meaning
        self.flag = option.flag
        text = f"{option.meaning}  [{self.shown_default}]" if self.shown_default else option.meaning
        # other options of the command may have the same name
        super().__init__([option.flag, f"hyperparameter_{option.name}"], metavar=self.kind, help=text)


def hyperparameters(method: type) -> list[HyperparameterOption]:
    """Make an option of each field."""
    from netgraft.options import declared

    return [HyperparameterOption(option) for option in declared(method).values()]


def _type(default: object) -> str:
    """Say what a value looks like, from a default or from its type."""
    if isinstance(default, tuple):
        return f"{_type(default[0])},..."
    kind = default if isinstance(default, type) else type(default)
    return {bool: "true|false", int: "INTEGER", float: "NUMBER"}.get(kind, "TEXT")


Lookup = Callable[[Sequence[str]], tuple[str, type]]


class HyperparameterCommand(DeclaredCommand):
    """A command with an option more for each hyper-parameter of a dataclass.

    Args:
        lookup: Command-line arguments -> heading and dataclass; called only when the command runs or explains itself.
    """

    def __init__(self, *args: Any, lookup: Lookup, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lookup = lookup

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find the dataclass, parse, and gather what was given of its fields in the parameter ``settings``."""
        heading, method = self._lookup(args)
        options = hyperparameters(method)
        ctx.meta["netgraft.heading"], ctx.meta["netgraft.hyperparameters"] = heading, options
        rest = super().parse_args(ctx, args)
        values = {option.field: ctx.params.pop(option.name or "") for option in options}
        ctx.params["settings"] = {name: value for name, value in values.items() if value is not None}
        return rest

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the declared options, the command's own and the hyper-parameters."""
        return [*super().get_params(ctx), *ctx.meta.get("netgraft.hyperparameters", [])]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the hyper-parameters under their own heading."""
        super().format_options(ctx, formatter)
        self.write(ctx, formatter, ctx.meta["netgraft.heading"], ctx.meta["netgraft.hyperparameters"])


def value_of(args: Sequence[str], option: str) -> str | None:
    """Find the value of a long option among arguments that are not parsed yet; of several the last one counts."""
    found = None
    for position, argument in enumerate(args):
        if argument == "--":
            break
        if argument == option and position + 1 < len(args):
            found = args[position + 1]
        elif argument.startswith(f"{option}="):
            found = argument.partition("=")[2]
    return found


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the options that were given: the others have their defaults where they are declared."""
    return {name: value for name, value in options.items() if value is not None}


def job_options(*names: str) -> list[Option]:
    """Return some of the options that jobs declare, for commands that take the same."""
    from netgraft.jobs.options import DistillOptions
    from netgraft.options import declared

    return [declared(DistillOptions)[name] for name in names]


def flag(name: str, meaning: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare a switch that is None unless it is given."""
    return click.option(name, is_flag=True, default=None, help=meaning)


def config_option(command: Callable[..., None]) -> Callable[..., None]:
    """Declare the file that repeats an earlier run."""
    meaning = "TOML file of options, such as a run's config.toml; options beside it win."
    return click.option("--config", type=PATH, metavar="FILE", help=meaning)(command)


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Declare what every command that runs a job says."""
    as_json = click.option(
        "--json", "as_json", is_flag=True, default=None, help="Print the result as JSON; progress as JSON lines."
    )
    return flag("--quiet", "Say nothing but errors.")(as_json(command))
