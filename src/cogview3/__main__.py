"""`python -m cogview3` and `torchrun -m cogview3`: the same as the command `cogview3`."""

from cogview3.cli import main

if __name__ == "__main__":
    main()
