"""``python -m modelvault``."""

from modelvault.cli import main

if __name__ == "__main__":
    main()
