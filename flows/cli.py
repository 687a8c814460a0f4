"""The command line.

Exit codes: 0 done (HOLD and REJECT are results), 1 the run failed, 2 the input is wrong.
"""

import gc as collector
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from flows import console, views
from flows.config import RetrainConfig, load_config
from infra.errors import InputError, RunError

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
    is_new = _first_look(config, settings)

    def flow() -> dict[str, Any]:
        from flows.outcome import Outcome
        from flows.retrain import retrain as retrain_flow

        outcome = retrain_flow(settings, str(config.resolve()))
        assert isinstance(outcome, Outcome), "only scheduled runs are skipped"
        return outcome.to_json()

    outcome = _run(config, settings, flow, needs_workers=is_new)
    print(json.dumps(outcome) if as_json else views.outcome_text(outcome, config))


@app.command()
def predict(
    config: ConfigPath,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A file, a folder or a pattern, here or on S3.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A .parquet or .csv file.")],
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score files with the champion; every row says which version scored it."""
    from tasks._predict import check_output
    from tasks._snapshot import all_sources

    settings = load_config(config, set_)
    address = source if "://" in source else str(Path(source).absolute())
    scored = settings.data.model_copy(update={"source": address})
    check_output(output.absolute())
    all_sources(scored, config.resolve().parent)

    def flow() -> dict[str, Any]:
        from flows.predict import Predicted
        from flows.predict import predict as predict_flow

        done = predict_flow(settings, str(config.resolve()), str(scored.source), str(output.absolute()))
        assert isinstance(done, Predicted), "only scheduled runs are skipped"
        return {"model": done.model, "version": done.version, "rows": done.num_rows, "output": done.output}

    done = _run(config, settings, flow, needs_workers=True)
    text = f"{done['rows']:,} rows scored by version {done['version']} of {done['model']}: {done['output']}"
    print(json.dumps(done) if as_json else text)


@app.command()
def compress(
    config: ConfigPath,
    version: Annotated[str, typer.Option(metavar="N", help="The version; the one in production if empty.")] = "",
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make a registered version smaller, and register the best form that is proven to be as good."""
    settings = load_config(config, set_)

    def flow() -> dict[str, Any]:
        from flows.compress import Compressed
        from flows.compress import compress as compress_flow

        done = compress_flow(settings, str(config.resolve()), version)
        assert isinstance(done, Compressed), "only scheduled runs are skipped"
        return done.to_json()

    done = _run(config, settings, flow, needs_workers=True)
    print(json.dumps(done) if as_json else views.compressed_text(done, config))


@app.command()
def maintain(
    config: ConfigPath,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")] = False,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Remove what no version and no next run needs: old caches, deleted MLflow runs, old flow runs."""
    settings = load_config(config, set_)

    def flow() -> dict[str, Any]:
        from flows.maintain import Maintained
        from flows.maintain import maintain as maintain_flow

        done = maintain_flow(settings, str(config.resolve()), dry_run)
        assert isinstance(done, Maintained), "only scheduled runs are skipped"
        return done.to_json()

    done = _run(config, settings, flow, needs_workers=False)
    print(json.dumps(done) if as_json else views.maintained_text(done))


@app.command()
def gc(
    config: ConfigPath,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What caches and models may take together, such as 10GB.")
    ] = None,
    keep_days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="Days that cached results stay which the newest run left out.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")] = False,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Remove from the storage what no version and no next run needs; no server is asked."""
    size = None if max_bytes is None else _size(max_bytes, "--max-bytes")
    given = {"max_bytes": size, "keep_days": keep_days}
    limits = [f"maintain.{key}={value}" for key, value in given.items() if value is not None]
    settings = load_config(config, [*(set_ or ()), *limits])
    _stay_offline(config)
    from flows.gc import collect_garbage

    done = collect_garbage(settings, config, dry_run).to_json()
    print(json.dumps(done) if as_json else views.collected_text(done))


def _size(text: str, option: str) -> int:
    """Return the bytes of a size such as 10GB or 1.5GiB."""
    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError as error:
        raise InputError(
            f"A size is a number with a unit, but got {option}={text}. Write for example {option} 10GB."
        ) from error


@app.command()
def plan(
    config: ConfigPath,
    set_: Overrides = None,
    files: Annotated[bool, typer.Option("--files", help="List every source file, with its keys.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a retrain would do now, and why, without doing it."""
    settings = load_config(config, set_)
    _stay_offline(config)
    from flows.plan import plan_of

    planned = plan_of(settings, config)
    print(json.dumps(planned) if as_json else views.plan_text(planned, with_files=files))


@app.command()
def up(
    place: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where the models are.")] = Path(),
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port of Prefect, its pages included.")] = 4200,
    mlflow_port: Annotated[
        int,
        typer.Option(min=1, max=65_535, help="Port of MLflow; the next ones for models with roots of their own."),
    ] = 5000,
    database: Annotated[
        str | None, typer.Option(help="postgresql://user:password@host/name for both servers; SQLite if empty.")
    ] = None,
) -> None:
    """Start everything: Prefect, MLflow, the schedules of every evergreen.toml below a folder, what they serve."""
    from flows.up import Ports
    from flows.up import up as run_platform

    run_platform(place, Ports(port, mlflow_port), database, lambda line: print(line, flush=True))


@app.command()
def down(
    place: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="What evergreen up was given.")] = Path(),
) -> None:
    """Stop what evergreen up has started; runs that work go on at the next start."""
    from flows.up import down as stop_platform

    ended = stop_platform(place)
    print(f"Stopped: {ended.prefect_ui_url} and {ended.mlflow_url}.")


@app.command()
def status(
    config: Annotated[Path, typer.Argument(metavar="[CONFIG]", help="A model's evergreen.toml, or a folder.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Show what is in production, since when, and where it answers; of a folder, every model and the servers."""
    if config.is_dir():
        every = views.platform_of(config)
        print(json.dumps(every) if as_json else views.platform_text(every))
        return
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


def _first_look(config: Path, settings: RetrainConfig) -> bool:
    """Refuse what names, headers and the cluster's files show to be wrong, at once; return if a source is new."""
    from infra.settings import Settings
    from infra.storage import Store
    from tasks._first_look import first_look

    base, root = config.resolve().parent, Settings().locate(config).root
    if tls := settings.cluster.tls_files(base):
        tls.check()
    return first_look(settings.data, settings.model.name, base, Store(root))


def _run(
    config: Path, settings: RetrainConfig, flow: Callable[[], dict[str, Any]], *, needs_workers: bool = False
) -> dict[str, Any]:
    """Run a flow with a Prefect server, embedded unless one is set, and with its progress shown.

    `needs_workers` has them start at once; else they start when the first one is needed.
    """
    from infra import imports, prefect_server, services
    from infra.settings import Settings

    place = Settings()
    state = place.locate(config).state
    beside = services.running(state)
    given = place.prefect_api_url or (beside.prefect_api_url if beside else None)
    server = prefect_server.start(state / "prefect", given)
    try:
        # Before the first import of Prefect, which reads its settings then: else it starts a server of its own.
        prefect_server.configure_environment(state / "prefect", server.url)
        # Standard output belongs to the answer; whatever a library prints goes to standard error.
        with redirect_stdout(sys.stderr), console.shown() as shown, ExitStack() as opened:
            # While the server starts: the workers, the slow imports, and the tables of a new MLflow database.
            with imports.collector_paused():
                import distributed  # noqa: F401

                from infra.clusters import started_early

                if needs_workers and settings.cluster.address is None:
                    opened.enter_context(started_early(settings.cluster, state / "dask", ["tasks._jobs"]))
                import flows.predict
                import flows.retrain  # noqa: F401
                from flows.workspace import open_tracking, reporter

                open_tracking(place, place.locate(config), settings.model.name)
            server.wait()
            if given is None:
                opened.enter_context(prefect_server.heartbeat_off())
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
    collector.set_threshold(50_000, 20, 50)  # patient: commands import much, and looks in between take a sixth of it
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
    finally:
        collector.freeze()  # else the interpreter looks at every object once more before it ends, for 2 s


if __name__ == "__main__":
    main()
