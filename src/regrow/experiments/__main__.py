"""`python -m regrow.experiments` is the command `regrow`."""

from regrow.experiments.main import main

main()
