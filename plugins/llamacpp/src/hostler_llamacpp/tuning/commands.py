"""`hostler tune`: the command. Imported by every `hostler --help`, so what it needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hostler import home_option, json_option

if TYPE_CHECKING:
    from hostler_llamacpp.tuning.applying import Applied


class Share(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """`1%` or `0.01`."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Text to a number of 0 to 1."""
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            self.fail(f"{text!r} is no share; write 1% or 0.01", param, ctx)
        return number


@click.command()
@click.argument("model")
@click.option("--quick", is_flag=True, help="Single types only, fewer rounds, half the text: about a tenth of the time.")
@click.option("--max-loss", type=Share(), default="1%", help="Perplexity that may be lost [1%].")
@click.option("--apply", "is_applied", is_flag=True, help="Keep what is recommended under the model's id.")
@click.option("--choose", metavar="NAME", help="Keep this variant instead of the recommended one; with --apply.")
@click.option("--revert", "is_reverted", is_flag=True, help="Take back what --apply has kept.")
@click.option("--again", "is_again", is_flag=True, help="Measure anew what an earlier command has measured.")
@click.option(
    "--plot",
    "plot_stem",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="STEM",
    help="Write STEM.png and STEM.svg: speed against loss.",
)
@json_option("Print progress and the result as JSON lines.")
@home_option
def tune(
    model: str,
    quick: bool,
    max_loss: float,
    is_applied: bool,
    choose: str | None,
    is_reverted: bool,
    is_again: bool,
    plot_stem: Path | None,
    is_json: bool,
) -> None:
    """Find what a GGUF model runs best with on this machine.

    Measures quantizations, mixes of them, and settings; shows speed against loss, and recommends. The model's own file is
    never changed: --apply puts a variant in its place, --revert takes it back. A command that was interrupted goes on
    where it was when it is given again; what was measured once is known until the machine or the file changes.
    """
    from hostler import HostlerError, read_settings
    from hostler_llamacpp.tuning import applying, plot, report
    from hostler_llamacpp.tuning.display import display_for
    from hostler_llamacpp.tuning.job import Order, Tuning
    from hostler_llamacpp.tuning.source import find_source
    from hostler_llamacpp.tuning.work import Work

    if choose is not None and not is_applied:
        raise click.UsageError("--choose says what --apply keeps; give both")
    if is_reverted and (is_applied or choose is not None):
        raise click.UsageError("--revert takes back what --apply has kept; give one of them")
    settings = read_settings()
    if is_reverted:
        _say(applying.revert(settings, model), is_json=is_json)
        return
    if plot_stem is not None and not plot.has_matplotlib():
        raise click.ClickException(f"--plot needs matplotlib, which is not installed; get it with: {plot.INSTALL}")
    source = find_source(settings, model)
    applied = None
    display = display_for(is_json=is_json)
    try:
        with Work(settings.home, source.id) as work:
            try:
                tuning = Tuning(settings, Order(source, max_loss, quick, is_again), work, display)
                tuned = tuning.run()
                if is_applied:
                    applied = applying.apply(settings, work, tuning, tuned, source, choose or tuned.recommended)
            except HostlerError:
                work.clear()
                raise
            work.clear()
    except KeyboardInterrupt:
        raise click.ClickException("interrupted; the same command goes on where it was") from None
    finally:
        display.close()
    pictures = plot.draw(tuned, plot_stem) if plot_stem is not None else []
    if is_json:
        import msgspec

        click.echo(msgspec.json.encode({"step": "", "state": "tuned", "result": report.as_json(tuned)}).decode())
    else:
        report.print_report(tuned)
        if not pictures:
            report.print_lines(report.plot_of_characters(tuned))
        for path in pictures:
            click.echo(f"{path} is written")
    if applied is not None:
        _say(applied, is_json=is_json)
    elif not is_json:
        click.echo(f"Keep it with: hostler tune {source.id} --apply" + (" --quick" if quick else ""))


def _say(applied: Applied, *, is_json: bool) -> None:
    import msgspec

    if is_json:
        click.echo(msgspec.json.encode({"step": "", "state": "applied", "result": applied}).decode())
        return
    with_what = ", ".join(f"{name} {value}" for name, value in applied.settings.items())
    what = "its own file" if applied.variant == "original" else f"the variant {applied.variant}"
    click.echo(f"{applied.model} runs {what}" + (f" with {with_what}" if with_what else "") + " from its next start on")
    if applied.is_running:
        click.echo(
            f"It is running as it was started; to have it now: hostler stop {applied.model} && hostler start {applied.model}"
        )
