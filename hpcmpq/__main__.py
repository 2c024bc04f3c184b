"""The console script, which is `python -m hpcmpq` too: it hears signals before it reads what takes seconds."""

from hpcmpq.stopping import stop_at_once


def main() -> None:
    """The command line, `hpcmpq.cli.main`, told to stop at will from here on."""
    stop_at_once()
    from hpcmpq.cli import main as run

    run()


if __name__ == "__main__":
    main()
