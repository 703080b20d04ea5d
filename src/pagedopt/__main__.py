"""`python -m pagedopt`: the command, where its script is not on the path."""

from pagedopt.cli import main

if __name__ == "__main__":
    main()
