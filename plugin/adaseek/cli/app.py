"""The commands of `adaseek`.

Exit codes: 0 done (also when nothing was better than the original); 1 an input or a setting
cannot be used; 2 wrong usage; 3 a limit or an error ended the run early, the best so far is
written; 130 interrupted with Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn  # Any: the user's objects, and JSON values

import click

from adaseek._comparison import compare_heldout
from adaseek._units import format_estimate
from adaseek._version import __version__
from adaseek.cli import load
from adaseek.cli.command import INTERRUPTED, Command
from adaseek.cli.drafts import drafts
from adaseek.cli.inspection import inspect_path, inspect_program
from adaseek.cli.show import comparison_json, print_json, print_view
from adaseek.errors import ConfigurationError
from adaseek.plugins import load_plugins
from adaseek.program import Program
from adaseek.recipe import Recipe
from adaseek.result import TuningResult
from adaseek.table import comparison_table, heldout_table, text_table

__all__ = ["main"]

_ENDED_EARLY = 3
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits; `argv` is the command line of the process by default."""
    try:
        code = _cli.main(
            args=None if argv is None else list(argv), prog_name="adaseek", standalone_mode=False
        )
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        code = INTERRUPTED
    sys.exit(code or 0)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 an input cannot be used, 2 wrong usage, 3 ended early with the "
    "best so far, 130 interrupted.",
)
@click.version_option(__version__, package_name="adaseek", message="adaseek %(version)s")
def _cli() -> None:
    """Make a gen-AI program better, cheaper and faster without rewriting it.

    A PROGRAM is written MODULE:ATTR or path/to/file.py:ATTR. ATTR is the program itself, or a
    class or function that makes it without arguments.
    """


_cli.add_command(drafts)


def _evaluation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say how programs are run and scored."""
    options = (
        click.option("--metric", required=True, metavar="MODULE:FN", help="Scores one answer."),
        click.option(
            "--inputs",
            metavar="A,B",
            help="Fields the program is called with.  [default: as the program says]",
        ),
        click.option(
            "--model",
            "models",
            multiple=True,
            metavar="NAME[@URL]",
            help="A model to choose from, e.g. openai/qwen@http://127.0.0.1:8000/v1. "
            "May be given several times.",
        ),
        click.option(
            "--prices",
            type=_FILE,
            metavar="FILE",
            help='JSON: {"model": {"input": USD per 1M tokens, "output": ...}}.',
        ),
        click.option(
            "--reward",
            "rewards",
            multiple=True,
            metavar="NAME=MODULE:FN",
            help="A function that rates answers, for ensembles that take the best of theirs. "
            "May be given several times.",
        ),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option(
            "--threads", type=int, default=8, show_default=True, help="Workflow runs at once."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@_cli.command(cls=Command)
@click.argument("program")
@click.option(
    "--train", type=_FILE, required=True, metavar="FILE", help="Examples, one JSON object per line."
)
@click.option(
    "--val",
    type=_FILE,
    metavar="FILE",
    help="Examples for the final comparison.  [default: half of --train]",
)
@_evaluation_options
@click.option("--budget", type=int, metavar="N", help="Workflow runs in all.")
@click.option(
    "--auto",
    type=click.Choice(["light", "medium", "heavy"]),
    help="A size in place of --budget.  [default: light]",
)
@click.option(
    "--objectives",
    metavar="A,B",
    help="Some of quality, cost, latency.  [default: all that can be known]",
)
@click.option(
    "--constraint",
    "constraints",
    multiple=True,
    metavar="BOUND",
    help="E.g. 'cost<=0.01' or 'latency<=0.8x' of the original. May be given several "
    "times.  [default: quality>=1x]",
)
@click.option("--max-cost-usd", type=float, metavar="USD", help="Cap on the money really paid.")
@click.option("--max-seconds", type=float, metavar="S", help="Cap on the time.")
@click.option(
    "--run-dir",
    type=_FOLDER,
    metavar="DIR",
    help="Where journal, result, recipe and report go; give it again to resume.  "
    "[default: a new folder]",
)
@click.option(
    "--no-instructions",
    is_flag=True,
    help="Do not let the program's own model propose instructions.",
)
@click.option(
    "--decompose",
    is_flag=True,
    help="Also try to do parts of a step's task first, in calls of their own.",
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
def tune(
    program: str,
    *,
    train: Path,
    val: Path | None,
    metric: str,
    inputs: str | None,
    models: tuple[str, ...],
    prices: Path | None,
    rewards: tuple[str, ...],
    seed: int,
    threads: int,
    constraints: tuple[str, ...],
    objectives: str | None,
    run_dir: Path | None,
    no_instructions: bool,
    decompose: bool,
    quiet: bool,
    **limits: Any,
) -> int:
    """Search for a better, cheaper or faster PROGRAM and write the recipe.

    Writes journal.db, result.json, recipe.json and report.html to the run's folder, and prints
    the original against the recommended program.
    """
    from adaseek.cogs import DecomposeCog, known_cogs
    from adaseek.tuner import Tuner  # brings the search: slow to import

    target = load.program(program)
    tuner = Tuner(
        load.function(metric, "--metric"),
        models=list(models),
        cogs=(*known_cogs(load_plugins()), DecomposeCog()) if decompose else None,
        prices=load.prices(prices),
        rewards=load.rewards(rewards),
        seed=seed,
        num_threads=threads,
        constraints=[load.parse_constraint(text) for text in constraints] or None,
        objectives=_split(objectives) or None,
        run_dir=run_dir,
        proposer=None if no_instructions else _own_model(target),
        verbose=not quiet,
        **limits,
    )
    read = _reader(target, inputs)
    result = tuner.tune(target, trainset=read(train), valset=None if val is None else read(val))
    print_view(comparison_table(result))
    click.echo(result.verdict)
    click.echo(f"recipe: {Path(result.run_dir) / 'recipe.json'}")
    _try_report(result)
    code = _exit_code(result.ended)
    if code:
        click.echo(f"ended early: {result.ended}", err=True)
        click.echo(f"The same command with --run-dir {result.run_dir} goes on from here.", err=True)
    return code


@_cli.command(cls=Command)
@click.argument("program")
@click.option(
    "--data",
    type=_FILE,
    required=True,
    metavar="FILE",
    help="Held-out examples, one JSON object per line.",
)
@_evaluation_options
@click.option("--recipe", metavar="PATH", help="A recipe.json, or the folder of a run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    program: str,
    *,
    data: Path,
    metric: str,
    inputs: str | None,
    models: tuple[str, ...],
    prices: Path | None,
    rewards: tuple[str, ...],
    seed: int,
    threads: int,
    recipe: str | None,
    as_json: bool,
) -> int:
    """Measure PROGRAM, and what a recipe makes of it, on held-out examples.

    Shows means with 95% confidence intervals and the difference paired by example.
    """
    from adaseek.tuner import Tuner  # brings the search: slow to import

    target = load.program(program)
    tuner = Tuner(
        load.function(metric, "--metric"),
        models=list(models),
        prices=load.prices(prices),
        rewards=load.rewards(rewards),
        seed=seed,
        num_threads=threads,
        verbose=False,
    )
    applied = Recipe() if recipe is None else Recipe.load(recipe)
    found = tuner.evaluate(target, applied, _reader(target, inputs)(data))
    if as_json:
        print_json({c.objective: comparison_json(c) for c in compare_heldout(found)})
    elif recipe is None:
        rows = [(o, format_estimate(o, e), str(e.num)) for o, e in found.original.items()]
        print_view(text_table("original program", ["objective", "mean [95%]", "examples"], rows))
    else:
        print_view(heldout_table(found, title=f"original against {recipe}"))
    return 0


@_cli.command(cls=Command)
@click.argument("target", metavar="RUN_DIR|RECIPE|PROGRAM")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--mermaid", "as_mermaid", is_flag=True, help="Print the workflow as a mermaid flowchart."
)
@click.option(
    "--probe",
    is_flag=True,
    help="Run the program on marked values, with models and tools replaced, to find its edges.",
)
def inspect(target: str, *, as_json: bool, as_mermaid: bool, probe: bool) -> int:
    """Show a run, a recipe, or how AdaSeek sees a program.

    Of a run: Pareto set, changes against the original, importance, where the money went. Of a
    program: its steps, what can be tuned at them, and why the rest cannot.
    """
    path = Path(target)
    if path.exists():
        inspect_path(path, as_json=as_json, as_mermaid=as_mermaid)
    elif ":" in target:
        inspect_program(target, as_json=as_json, as_mermaid=as_mermaid, probe=probe)
    else:
        raise ConfigurationError(
            f"`target` is {target!r}, but must be the folder of a run, a recipe file, or a "
            "program such as MODULE:ATTR."
        )
    return 0


@_cli.command(cls=Command)
@click.argument("run_dir", type=_FOLDER)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to write.  [default: report.html in the folder]",
)
def report(run_dir: Path, *, output: Path | None) -> int:
    """Write the HTML report of the run in RUN_DIR."""
    written = TuningResult.load(run_dir).report(output or run_dir / "report.html")
    click.echo(str(written))
    return 0


@_cli.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    options_metavar="MODEL",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[FLAGS OF VLLM SERVE]...")
def serve(arguments: tuple[str, ...]) -> int:
    """Serve MODEL with vLLM and AdaSeek's engine patches.

    Everything is passed on to vLLM; --kv-retention and --token-tree switch the patches on.
    """
    from adaseek_vllm.serve import main as serve_model

    return serve_model(list(arguments))


def _reader(program: Any, inputs: str | None) -> Callable[[Path], list[Any]]:
    """Returns what reads a file of examples for `program`."""
    own = Program(program, load_plugins()).workflow.inputs
    return lambda path: load.read_examples(path, inputs=_split(inputs), default_inputs=own)


def _own_model(program: Any) -> Any:
    """Returns the first model that the program itself calls, None if it is not known."""
    models = load_plugins().hook.adaseek_models(obj=program)
    return models[0] if models else None


def _split(names: str | None) -> list[str]:
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def _exit_code(ended: str) -> int:
    """Returns 0 for a run that went as planned; `ended` is `TuningResult.ended`."""
    if ended in ("budget", "converged"):
        return 0
    return INTERRUPTED if ended.startswith(("interrupted", "RunInterrupted")) else _ENDED_EARLY


def _try_report(result: TuningResult) -> None:
    """Writes the report; a run that was paid for does not fail for want of it."""
    try:
        click.echo(f"report: {result.report(Path(result.run_dir) / 'report.html')}")
    except ConfigurationError as error:
        click.echo(f"no report: {error}", err=True)
