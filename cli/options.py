"""Options that come from dataclasses: their fields say which there are, of what type, with which default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click

Lookup = Callable[[Sequence[str]], tuple[str, type]]

Defaults = Callable[[], tuple[type, ...]]


class Hyperparameter(click.Option):
    """A field of a method's dataclass, passed on as text: the field's own reader checks it."""

    def __init__(self, name: str, kind: str, default: str, meaning: str) -> None:
        self.flag = f"--{name.replace('_', '-')}"
        super().__init__([self.flag, _key(name)], metavar=kind, help=f"{meaning}  [{default}]")
        self.field, self.kind, self.shown_default, self.meaning = name, kind, default, meaning


def _key(name: str) -> str:
    return f"hyperparameter_{name}"


def hyperparameters(method: type) -> list[Hyperparameter]:
    """Make an option of each field."""
    from netgraft.methods.hyperparameters import meanings

    choices = {field.name: field.metadata["choices"] for field in fields(method)}
    return [
        Hyperparameter(name, "|".join(choices[name]) or _type(default), _show(default), meaning)
        for name, (_, default, meaning) in meanings(method).items()
    ]


def _type(default: object) -> str:
    if isinstance(default, tuple):
        return f"{_type(default[0])},..."
    return {bool: "true|false", int: "INTEGER", float: "NUMBER"}.get(type(default), "TEXT")


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_show, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


class SettingsCommand(click.Command):
    """A command with more options than are declared: one for each hyper-parameter of a dataclass.

    Args:
        lookup: Command-line arguments -> heading and dataclass; called only when the command runs or explains itself.
        defaults: Dataclasses whose fields' defaults the help shows beside the options of the same names.
    """

    def __init__(self, *args: Any, lookup: Lookup, defaults: Defaults, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lookup = lookup
        self._defaults = defaults

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find the dataclass, parse, and gather what was given of its fields in the parameter ``settings``."""
        heading, method = self._lookup(args)
        ctx.meta["netgraft.heading"] = heading
        ctx.meta["netgraft.methods.hyperparameters"] = hyperparameters(method)
        rest = super().parse_args(ctx, args)
        options: list[Hyperparameter] = ctx.meta["netgraft.methods.hyperparameters"]
        values = {option.field: ctx.params.pop(_key(option.field)) for option in options}
        ctx.params["settings"] = {name: value for name, value in values.items() if value is not None}
        return rest

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the declared options and the hyper-parameters."""
        return [*super().get_params(ctx), *ctx.meta.get("netgraft.methods.hyperparameters", [])]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the hyper-parameters under their own heading."""
        own, generated = [], []
        defaults = self._shown_defaults()
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            if isinstance(parameter, Hyperparameter):
                generated.append(record)
            else:
                default = defaults.get(parameter.name or "")
                own.append((record[0], f"{record[1]}  [{default}]" if default else record[1]))
        with formatter.section("Options"):
            formatter.write_dl(own)
        with formatter.section(ctx.meta["netgraft.heading"]):
            formatter.write_dl(generated)

    def _shown_defaults(self) -> dict[str, str]:
        declared = {field.name: field.default for kind in self._defaults() for field in fields(kind)}
        return {
            name: str(default)
            for name, default in declared.items()
            if default is not MISSING and default is not None and not isinstance(default, bool)
        }


def value_of(args: Sequence[str], option: str) -> str | None:
    """Find the value of a long option among arguments that are not parsed yet."""
    for position, argument in enumerate(args):
        if argument == "--":
            break
        if argument == option and position + 1 < len(args):
            return args[position + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def given(**options: Any) -> dict[str, Any]:
    """Keep the options that were given: the others have their defaults where they are defined."""
    return {name: value for name, value in options.items() if value is not None}


Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def stack(*decorators: Decorator) -> Decorator:
    """Apply several option decorators; the first stands first in the help."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def flag(name: str, meaning: str) -> Decorator:
    """Declare a switch that is None unless it is given."""
    return click.option(name, is_flag=True, default=None, help=meaning)


PATH = click.Path(path_type=Path)


data_options = stack(
    click.option("--data-root", type=PATH, help="Folder of the named data sets; NETGRAFT_DATA by default."),
    flag("--download", "Let torchvision download the data set."),
)


image_size_option = click.option(
    "--image-size", type=click.IntRange(min=1), help="Height and width of what the model takes; its own by default."
)


device_option = click.option(
    "--device", "accelerator", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where to compute."
)


run_options = stack(
    click.option("--seed", type=int, help="Of weights, views, batches and the subset."),
    click.option("--out", type=PATH, help="Run folder; a new one under runs/ by default."),
    flag("--resume", "Go on with the run in the folder."),
    data_options,
    device_option,
    click.option("--devices", type=click.IntRange(min=1), help="Processes that share each batch."),
    click.option(
        "--precision", type=click.Choice(["auto", "32", "bf16"]), help="Of the arithmetic; auto: the faster one here."
    ),
    click.option("--checkpoint-seconds", type=float, help="Save at least so often."),
    click.option(
        "--cache-memory",
        "cache_gib",
        type=float,
        help="GiB for the outputs of frozen blocks; half of what is free by default.",
    ),
)


output_options = stack(
    flag("--quiet", "Say nothing but errors."),
    click.option(
        "--json", "as_json", is_flag=True, default=None, help="Print the result as JSON; progress as JSON lines."
    ),
)
