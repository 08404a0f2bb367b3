"""`python -m cb_datasets.cli`."""

from . import main


main()
