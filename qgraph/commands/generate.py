"""`qgraph generate`: text from a decoder, as it comes."""

from typing import TYPE_CHECKING, Annotated

import typer

from qgraph.commands.options import Json, Model, Quiet, Verbose, complete_engine
from qgraph.commands.output import Output

if TYPE_CHECKING:
    from qgraph.generation import Generation

EXAMPLES = """[bold]Examples[/bold]

qgraph generate model.onnx --prompt 'The capital of France is'

qgraph generate model.int8 --prompt 'Once upon a time' --temperature 0.8 --top-k 40 --tokens 200"""


def command(
    ctx: typer.Context,
    model: Model,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="Text to go on from.")],
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, metavar="N", help="The most tokens to generate.")
    ] = 128,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The tokenizer.json; default: the one beside the model."),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(
            min=0, metavar="T", help="0 takes the likeliest token; above, tokens are drawn."
        ),
    ] = 0.0,
    top_k: Annotated[
        int, typer.Option(min=0, metavar="K", help="Draw from the K likeliest only; 0 for all.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="Seed of the draws.")] = 0,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Engine; default: the artifact's, or onnxruntime-cpu.",
            autocompletion=complete_engine,
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, metavar="N", help="Threads; 0 means all cores.")
    ] = 0,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Continue a text with a decoder and measure tokens a second.

    The text goes to stdout as it comes, everything else to stderr. Models with a KV cache run each
    token once; others run the whole text again for every token.
    """
    from qgraph.generation import generate

    out = Output.begin(ctx, verbose, quiet, as_json)
    found = generate(
        model,
        prompt,
        tokens=tokens,
        tokenizer=tokenizer,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        engine=engine,
        threads=threads,
        on_text=None if out.shared.json else out.stream,
        on_note=out.note,
    )
    out.emit({"model": model, "prompt": prompt, **found.as_json()}, "")
    out.note(speed(found))


def speed(found: "Generation") -> str:
    """Return the line about time: tokens a second of the prompt and of what was generated."""
    from qgraph import text

    prompt = text.counted(len(found.prompt_ids), "token")
    parts = [f"prompt: {prompt} at {found.prefill_tokens_per_s:,.1f} tokens/s"]
    if found.decode_tokens_per_s is not None:
        written = text.counted(len(found.ids), "token")
        parts.append(f"text: {written} at {found.decode_tokens_per_s:,.1f} tokens/s")
    return f"{'; '.join(parts)}; in {found.engine}; stopped by the {found.stopped}"
