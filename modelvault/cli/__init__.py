"""The command line: parse, call one operation, render. No logic lives here, and nothing heavy is imported to show help."""


def main() -> None:
    """Run the command line; the console script and ``python -m modelvault`` enter here."""
    # Imported late: the package must be importable (by the docs, by tests) without Typer building every command.
    from modelvault.cli.app import app

    app()
