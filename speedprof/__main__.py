"""`python -m speedprof`."""

from speedprof.cli import main

if __name__ == "__main__":
    main()
