"""Commands whose options hold one value each, and take it once: of two, the parser would silently drop the first."""

from typing import Any

from typer.core import TyperCommand

from hpcmpq.errors import UserError


class OnceCommand(TyperCommand):
    """A command that refuses an option that is given again, unless it is one of many values or a flag."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See the parser's own.

        Raises:
            UserError: If an option of one value is given again.
        """
        typed = list(args)
        left: list[str] = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:  # completing what is typed so far
            _, _, order = self.make_parser(ctx).parse_args(args=typed)
            for option in order:
                if _is_single(option) and order.count(option) > 1:
                    raise UserError(
                        f"{option.opts[0]} is given {order.count(option)} times and takes one value; give it once"
                    )
        return left


def _is_single(parameter: Any) -> bool:
    """Whether a parameter is an option of one value."""
    return parameter.param_type_name == "option" and not (
        parameter.multiple or parameter.is_flag or parameter.count
    )
