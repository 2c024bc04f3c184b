"""`python -m hpcmpq` is the console script."""

from hpcmpq.cli import main

if __name__ == "__main__":
    main()
