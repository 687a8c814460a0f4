"""The command line.

Exit codes: 0 done (HOLD and REJECT are results), 1 the run failed, 2 the input is wrong.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import console, views
from flows.config import RetrainConfig, load_config
from infra.errors import InputError, RunError
from tasks._snapshot import all_paths

app = typer.Typer(
    help="Keep tabular models fresh: retrain, prove, ship, watch, and go back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The model's evergreen.toml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one key for this call, such as split.by=time."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]


@app.command()
def retrain(config: ConfigPath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Retrain a model, and put it in production if it is better."""
    settings = load_config(config, set_)
    all_paths(settings.data, config.resolve().parent)  # a source that is absent is refused at once

    def flow() -> dict[str, Any]:
        from flows.retrain import retrain as retrain_flow

        return retrain_flow(settings, str(config.resolve())).to_json()

    outcome = _run(config, settings, flow)
    print(json.dumps(outcome) if as_json else views.outcome_text(outcome, config))


@app.command()
def predict(
    config: ConfigPath,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A file, a folder or a pattern.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A .parquet or .csv file.")],
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score files with the champion; every row says which version scored it."""
    settings = load_config(config, set_)

    def flow() -> dict[str, Any]:
        from flows.predict import predict as predict_flow

        done = predict_flow(settings, str(config.resolve()), str(Path(source).absolute()), str(output.absolute()))
        return {"model": done.model, "version": done.version, "rows": done.num_rows, "output": done.output}

    done = _run(config, settings, flow)
    text = f"{done['rows']:,} rows scored by version {done['version']} of {done['model']}: {done['output']}"
    print(json.dumps(done) if as_json else text)


@app.command()
def plan(config: ConfigPath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Show what a retrain would do now, and why, without doing it."""
    settings = load_config(config, set_)
    _stay_offline(config)
    from flows.plan import plan_of

    planned = plan_of(settings, config)
    print(json.dumps(planned) if as_json else views.plan_text(planned))


@app.command()
def status(config: ConfigPath, as_json: AsJson = False) -> None:
    """Show what is in production, since when, and where it answers."""
    found = views.status_of(load_config(config), config)
    print(json.dumps(found) if as_json else views.status_text(found))


@app.command()
def history(config: ConfigPath, as_json: AsJson = False) -> None:
    """Show every verdict, promotion and rollback."""
    rows = views.history_of(load_config(config), config)
    print(json.dumps(rows) if as_json else views.history_text(rows))


@app.command()
def rollback(
    config: ConfigPath,
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="The version; the previous champion if empty.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put an earlier version back in production."""
    settings = load_config(config)
    _stay_offline(config)
    from flows.rollback import roll_back

    done = roll_back(settings, config, to)
    text = f"Version {done['champion_version']} is in production again, after version {done['previous_version']}."
    print(json.dumps(done) if as_json else text)


@app.command()
def serve(
    config: ConfigPath,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 for any free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Answer requests with the champion; a new one is taken up without a restart."""
    from infra.serving.server import serve as serve_model
    from infra.settings import Settings

    settings = load_config(config)
    serve_model(Settings().locate(config).root, settings.model.name, host, port)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("demo"),
    rows: Annotated[int, typer.Option(min=1_000, help="Rows in a year.")] = 60_000,
    months: Annotated[int, typer.Option(min=3, max=60, help="Months of data.")] = 12,
) -> None:
    """Write demo data: loan applications by month, and the evergreen.toml to learn from them."""
    from tasks._demo import write_demo

    write_demo(folder, rows=rows, months=months)
    print(f"{months} months of loan applications are in {folder / 'data'}.")
    print(f"Next: evergreen retrain {folder / 'evergreen.toml'}")


def _stay_offline(config: Path) -> None:
    """Keep Prefect, which some modules import, from its home in the user's folder; no server is asked."""
    from infra import prefect_server
    from infra.settings import Settings

    prefect_server.stay_in(Settings().locate(config).state / "prefect")


def _run(config: Path, settings: RetrainConfig, flow: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a flow with a Prefect server, embedded unless one is set, and with its progress shown."""
    from infra import prefect_server
    from infra.settings import Settings

    place = Settings()
    state = place.locate(config).state
    server = prefect_server.start(state / "prefect", place.prefect_api_url)
    try:
        # Before the first import of Prefect, which reads its settings then: else it starts a server of its own.
        prefect_server.configure_environment(state / "prefect", server.url)
        # Standard output belongs to the answer; whatever a library prints goes to standard error.
        with redirect_stdout(sys.stderr), console.shown() as shown:
            # While the server starts: the slow imports, and the tables of a new MLflow database.
            import distributed  # noqa: F401

            import flows.predict
            import flows.retrain  # noqa: F401
            from flows.workspace import open_tracking, reporter

            open_tracking(place, place.locate(config), settings.model.name)
            server.wait()
            token = reporter.set(shown)
            try:
                return flow()
            finally:
                reporter.reset(token)
    finally:
        server.stop()


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    try:
        app(standalone_mode=False)
    except InputError as error:
        print(f"evergreen: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"evergreen: {error}", file=sys.stderr)
        sys.exit(1)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "exit_code") or not hasattr(error, "show"):
            raise
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
