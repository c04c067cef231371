"""`python -m hostler` is `hostler`."""

from hostler.cli import main

main()
