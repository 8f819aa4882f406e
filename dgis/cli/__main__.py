"""Run ``dgis`` as ``python -m dgis.cli``."""

from dgis.cli import main

main()
