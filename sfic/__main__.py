"""`python -m sfic`: the CLI."""

from sfic.cli import main

if __name__ == "__main__":
    main()
