"""`hostler convert`: the command. Imported by every `hostler --help`, so what it needs is imported when it runs."""

from __future__ import annotations

import click

from hostler import home_option, json_option


@click.command()
@click.argument("model")
@click.option("--to", type=click.Choice(["onnxgenai"]), default="onnxgenai", help="The format to convert into.")
@click.option(
    "--quant",
    type=click.Choice(["int4", "int4-mixed", "int8", "fp16", "fp32"]),
    default="int4",
    help="Precision [int4]; int4-mixed is larger, slower and closer to the source.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "dml"]),
    help="What it is to run on [what the installed onnxruntime-genai is made for].",
)
@click.option("--id", "model_id", metavar="ID", help="Register it under this id [MODEL-onnx-QUANT].")
@click.option(
    "--python",
    metavar="PATH",
    envvar="HOSTLER_CONVERT_PYTHON",
    help="An interpreter that has torch and transformers, where hostler's own does not; also HOSTLER_CONVERT_PYTHON.",
)
@click.option("--force", is_flag=True, help="Register it even if the check fails or cannot be made, or memory seems short.")
@click.option("--keep", is_flag=True, help="Leave the work folder with its intermediate files and logs.")
@json_option("Print progress and the result as JSON lines.")
@home_option
def convert(
    model: str,
    to: str,
    quant: str,
    device: str | None,
    model_id: str | None,
    python: str | None,
    force: bool,
    keep: bool,
    is_json: bool,
) -> None:
    """Convert a model into the format of ONNX Runtime GenAI.

    MODEL is a GGUF model of this home, a GGUF file, or a folder with safetensors, config and tokenizer. The result is held
    against the source on a short text, and becomes a model of its own. A command that was interrupted, or killed, goes on
    after its last finished step when it is given again.
    """
    del to  # there is one
    from hostler import read_settings, show_bytes, show_seconds
    from hostler_onnxgenai.conversion.display import Display, JsonLines, Lines
    from hostler_onnxgenai.conversion.job import Conversion, Order
    from hostler_onnxgenai.conversion.source import find_source
    from hostler_onnxgenai.conversion.target import QUANTS, default_id
    from hostler_onnxgenai.versions import devices

    chosen = device or devices()[0]
    if chosen not in QUANTS[quant].devices:
        allowed = ", ".join(name for name, one in QUANTS.items() if chosen in one.devices)
        raise click.UsageError(f"--quant {quant} is not made for --device {chosen}; choose among {allowed}")
    settings = read_settings()
    source = find_source(settings, model)
    order = Order(
        source=source,
        device=chosen,
        quant=quant,
        model_id=model_id or default_id(source, quant, chosen),
        python=python,
        is_forced=force,
        keeps_work=keep,
    )
    display: Display = JsonLines() if is_json else Lines()
    try:
        done = Conversion(settings, order, display).run()
    except KeyboardInterrupt:
        raise click.ClickException("interrupted; the same command goes on after the last finished step") from None
    if is_json:
        import msgspec

        click.echo(msgspec.json.encode({"step": "", "state": "converted", "model": done}).decode())
        return
    others = f"{source.id} " if source.reference == source.id else ""  # a file is no model that could be measured
    click.echo(
        f"{done.id} is here: {show_bytes(done.size_bytes)} after {show_seconds(done.seconds)}; measure it with: "
        f"hostler bench {others}{done.id}"
    )
